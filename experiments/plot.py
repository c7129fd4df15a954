"""Draw learning curves: ``python -m experiments.plot``, the same as ``jaxdqn plot``."""

import sys

from jaxdqn.cli.plot import main

if __name__ == "__main__":
    sys.exit(main())
