"""What an earlier start of a study left: the lock, the fingerprint, what is done about unfinished trials."""
