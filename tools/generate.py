"""python tools/generate.py ARGS: the same as zamba-compat generate ARGS."""

import sys

from zamba_compat.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
