"""The study file's format: `python -m sweep.study --schema`."""

from sweep.study.study import main

main()
