"""Slimming: L1 penalties, scores of channels, pruning in one call, and what makes up for the cut."""
