"""Evaluate a run: ``python -m experiments.evaluate``, the same as ``jaxdqn evaluate``."""

import sys

from jaxdqn.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
