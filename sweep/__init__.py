"""What runs, where and when."""

# first of all: it decides where everything else is imported from
from sweep.process import environment as environment
