"""What one trial is told, what it came to, and the recipe by which it can be made again."""
