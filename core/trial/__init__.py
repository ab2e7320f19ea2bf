"""The settings of one trial, its result, and the recipe by which it can be made again."""
