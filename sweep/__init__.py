"""What runs, where and when."""
from sweep.process import environment as environment  # first of all: it decides where everything else is imported from
