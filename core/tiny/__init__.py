"""Kolors at toy width: the same classes, trained weights small enough to ship, pictures of 128 px."""
