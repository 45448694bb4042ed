"""Reads every value of a log environment through the memory map; run as a child process.

A file cut short kills its reader with SIGBUS. That must be a child, which has nothing to lose: the
parent sees how it ended and never maps the file. Runs by path, so it imports nothing of ours.
"""

from __future__ import annotations

import sys

import lmdb


def walk(path: str) -> int:
    """Touch every page that the tables in ``path`` reach; returns the number of values."""
    environment = lmdb.open(path, readonly=True, lock=False, create=False, max_dbs=4, lib_version=0)
    try:
        count = 0
        with environment.begin(buffers=True) as txn:
            for name in (b"meta", b"entries"):
                table = environment.open_db(name, txn=txn, create=False)
                for _, value in txn.cursor(table):
                    bytes(value)
                    count += 1
        return count
    finally:
        environment.close()


if __name__ == "__main__":
    try:
        walk(sys.argv[1])
    except lmdb.Error as error:
        sys.exit(f"{type(error).__name__}: {error}")
