"""Mutant M53: run a program with LMDB's ``sync`` switched off, to prove that the checks notice.

``python -m jepsen_like.durability.without_sync PROGRAM [ARGUMENT...]`` runs a Python script,
or with ``-m MODULE`` a module, in this process. Only LMDB's own syncs are gone; everything else is as
shipped.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from typing import Any

import lmdb


def disable_sync() -> None:
    """From now on ``lmdb.open`` opens every environment with ``sync=False``."""
    original: Any = lmdb.open

    def unsynced(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **{**kwargs, "sync": False})

    vars(lmdb)["open"] = unsynced


def main(argv: Sequence[str]) -> None:
    """Run what ``argv`` names, as ``python`` would."""
    disable_sync()
    if argv and argv[0] == "-m":
        sys.argv = list(argv[1:])
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(argv)
        runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
