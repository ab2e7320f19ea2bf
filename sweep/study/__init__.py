"""What the user wrote: the study file, its story, its settings and its search space."""
