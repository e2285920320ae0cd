"""What an experiment found, as values, tables, files and plots. Nothing here imports JAX."""
