"""``python -m auxin``: the command line."""

import sys

from auxin.cli import main

if __name__ == "__main__":
    sys.exit(main())
