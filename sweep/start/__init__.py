"""What a command needs before its work: the study, the runs folder, and what refuses a start."""
