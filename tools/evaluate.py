"""python tools/evaluate.py ARGS: the same as zamba-compat evaluate ARGS."""

import sys

from zamba_compat.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
