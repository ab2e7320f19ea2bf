"""Kolors at toy width: the same classes, trained weights small enough to ship, images of 128 px."""
