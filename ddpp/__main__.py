"""`python -m ddpp`, the same as the command `ddpp`."""

import sys

from ddpp.cli import main

if __name__ == "__main__":
    sys.exit(main())
