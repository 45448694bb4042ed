"""Mutants M53 and M32: run a program whose syncs do nothing, to prove that the checks notice.

``python -m jepsen_like.durability.without_sync PROGRAM [ARGUMENT...]`` runs a Python script, or
with ``-m MODULE`` a module, in this process, with LMDB's ``sync`` off (M53). After a leading
``--files`` LMDB is left alone and ``os.fsync`` does nothing instead (M32). All else is as shipped.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from typing import Any

import lmdb


def disable_lmdb_sync() -> None:
    """From now on ``lmdb.open`` opens every environment with ``sync=False``."""
    original: Any = lmdb.open

    def unsynced(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **{**kwargs, "sync": False})

    vars(lmdb)["open"] = unsynced


def disable_file_sync() -> None:
    """From now on ``os.fsync`` and ``os.fdatasync`` return at once."""

    def nothing(_: int) -> None:
        return None

    vars(os).update(fsync=nothing, fdatasync=nothing)


def main(argv: Sequence[str]) -> None:
    """Run what ``argv`` names, as ``python`` would."""
    if argv and argv[0] == "--files":
        argv = argv[1:]
        disable_file_sync()
    else:
        disable_lmdb_sync()
    if argv and argv[0] == "-m":
        sys.argv = list(argv[1:])
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(argv)
        runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
