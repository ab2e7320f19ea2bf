"""Trains the tiny backbone from nothing: `python -m core.tiny.build`."""
