"""Export the policy of a run: the same as ``jaxdqn export``."""

import sys

from jaxdqn.cli.export import main

if __name__ == "__main__":
    sys.exit(main())
