"""python tools/chat.py ARGS: the same as zamba-compat chat ARGS."""

import sys

from zamba_compat.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["chat", *sys.argv[1:]]))
