"""``python -m raftcore``: the same as the command ``raftcore``."""

import sys

from raftcore.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
