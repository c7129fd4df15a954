"""Measure each acceleration technique: the same as ``jaxdqn compare``."""

import sys

from benchmarks.techniques.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
