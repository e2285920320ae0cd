"""Slimming: what makes channels unimportant, what scores them, and the one call that prunes."""
