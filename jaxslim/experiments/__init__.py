"""Longer work on checkpoints: cutting, sweeps, and experiments in stages."""
