"""Kolors itself: where its weights lie, how they are fetched, how they are loaded."""
