import sys

from zamba_compat.cli.main import main

sys.exit(main())
