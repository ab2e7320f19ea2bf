"""Kill, tear, fill and hang everything, in real sweeps of the toy."""
