"""Networks out of JAX, and in from PyTorch."""
