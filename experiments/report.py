"""Write one page about runs: the same as ``jaxdqn report``."""

import sys

from jaxdqn.cli.report import main

if __name__ == "__main__":
    sys.exit(main())
