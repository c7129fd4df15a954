"""Train: ``python -m experiments.run``, the same as ``jaxdqn run``."""

import sys

from jaxdqn.cli.run import main

if __name__ == "__main__":
    sys.exit(main())
