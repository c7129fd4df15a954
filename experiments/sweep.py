"""Former name of ``experiments.study``, kept for one release."""

import sys

from jaxdqn.cli.study.__main__ import main

if __name__ == "__main__":
    print("experiments.sweep: renamed; use jaxdqn study", file=sys.stderr)
    sys.exit(main())
