"""What a study will cost on this machine, and what its images and words will come to."""
