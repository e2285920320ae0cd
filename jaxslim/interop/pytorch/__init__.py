"""Networks from the state dicts of PyTorch."""
