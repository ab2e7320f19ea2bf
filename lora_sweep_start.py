"""Where the installed command begins, under a name that nobody else has: `sweep` may be anybody's on the
user's PYTHONPATH.
"""

import os
import sys


def main() -> None:
    """Import the command line from beside this file, and run it."""
    # until sweep.process.environment puts the whole path in order
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    try:
        from sweep.cli import main
    except KeyboardInterrupt:
        sys.exit(130)
    main()
