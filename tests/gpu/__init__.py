"""Kolors' true shape on a GPU, without weights: speed, memory, numbers."""
