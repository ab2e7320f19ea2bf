"""What an earlier start left: the lock, the fingerprint, and what is done about each unfinished trial."""
