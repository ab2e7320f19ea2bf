"""Who carries a trial out: the worker process, and the driver's end of it."""
