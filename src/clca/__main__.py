"""`python -m clca`, the same as `clca`; what torchrun and accelerate launch are given."""

import sys

from clca.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
