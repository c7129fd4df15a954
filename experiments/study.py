"""Train presets on environments over seeds: the same as ``jaxdqn study``."""

import sys

from jaxdqn.cli.study.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
