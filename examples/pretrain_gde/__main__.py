"""``python -m examples.pretrain_gde``."""

import sys

from examples.pretrain_gde.cli import main

if __name__ == "__main__":
    sys.exit(main())
