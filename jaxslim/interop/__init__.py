"""Formats of other frameworks and runtimes. Nothing is here yet."""
