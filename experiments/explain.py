"""Describe a run without training: the same as ``jaxdqn explain``."""

import sys

from jaxdqn.cli.explain import main

if __name__ == "__main__":
    sys.exit(main())
