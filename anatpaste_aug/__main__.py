"""The command line: ``python -m anatpaste_aug preview``."""

import sys

from anatpaste_aug.preview.command import main

if __name__ == "__main__":
    sys.exit(main())
