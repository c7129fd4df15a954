"""Measure each acceleration technique: the same as ``jaxdqn compare``."""

import sys

from jaxdqn.cli.compare import main

if __name__ == "__main__":
    sys.exit(main())
