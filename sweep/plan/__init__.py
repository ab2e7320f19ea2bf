"""What a study will cost on this machine, and how many images and texts it can use."""
