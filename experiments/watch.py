"""Follow a run of another process: the same as ``jaxdqn watch``."""

import sys

from jaxdqn.cli.watch import main

if __name__ == "__main__":
    sys.exit(main())
