"""Formats of other frameworks and runtimes."""
