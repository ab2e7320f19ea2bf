"""What must be true, in rooms of the same names as the code's."""
