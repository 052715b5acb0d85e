"""python tools/batch.py ARGS: the same as zamba-compat batch ARGS."""

import sys

from zamba_compat.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["batch", *sys.argv[1:]]))
