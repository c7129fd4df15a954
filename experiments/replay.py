"""Export a run's replay: ``python -m experiments.replay``, the same as ``jaxdqn replay``."""

import sys

from jaxdqn.cli.replay import main

if __name__ == "__main__":
    sys.exit(main())
