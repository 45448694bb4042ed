"""``python -m benchmarks [SECONDS]``: the first figures of this machine."""

import sys

from benchmarks.figures import main

main(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0)
