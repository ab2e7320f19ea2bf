"""The story's images: rendered, scored, and on one sheet."""
