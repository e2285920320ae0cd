"""Training a network from a configuration: the loop, and what it needs."""
