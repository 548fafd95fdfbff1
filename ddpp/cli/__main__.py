"""Run the command line as a module: python -m ddpp.cli."""

import sys

from ddpp.cli import main

sys.exit(main())
