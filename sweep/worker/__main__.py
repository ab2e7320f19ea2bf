"""A worker process, as the driver starts it: `python -m sweep.worker`."""

from sweep.worker.worker import main

main()
