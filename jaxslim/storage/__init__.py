"""Checkpoints: arrays and JSON with checksums."""
