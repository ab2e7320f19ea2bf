"""What an earlier start left: the lock, the fingerprint, and how unfinished trials go on."""
