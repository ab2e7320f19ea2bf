"""What people look at or hand in."""
