"""Which file system a directory lives on, and whether LMDB may live there.

LMDB needs a coherent ``mmap``, working ``flock`` and an ``fsync`` that means it. Network and
user-space file systems promise none of these, so they are refused unless the operator insists.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from raftcore.errors import UnsupportedFilesystemError

_log = logging.getLogger(__name__)

MOUNTINFO = Path("/proc/self/mountinfo")

#: Refused by exact type. ``fuse`` and everything below it (``fuse.sshfs``) is refused by prefix.
REFUSED_TYPES = frozenset(
    {
        "9p",
        "afs",
        "ceph",
        "cifs",
        "coda",
        "fuse",
        "fuseblk",
        "gfs2",
        "glusterfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "smb3",
        "smbfs",
        "vboxsf",
        "virtiofs",
    }
)

_ESCAPE = re.compile(r"\\([0-7]{3})")


def read_mountinfo(source: Path = MOUNTINFO) -> str | None:
    """The mount table, or None where the system has none to read (not Linux)."""
    try:
        return source.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None


def filesystem_type(path: Path, mountinfo: str) -> str | None:
    """The type of the file system that holds ``path`` (absolute, symlinks resolved).

    The longest mount point that contains the path wins; among equals the last, since it covers the
    earlier ones.
    """
    best_length, best_type = -1, None
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        fields = left.split(" ")
        if not separator or len(fields) < 5:
            continue
        mount = Path(_ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[4]))
        depth = len(mount.parts)
        if depth >= best_length and path.is_relative_to(mount):
            best_length, best_type = depth, right.split(" ")[0]
    return best_type


def check_filesystem(path: Path, *, mountinfo: str | None, allow_unsupported: bool) -> None:
    """Refuse a directory on a file system that cannot keep the store's promises.

    Raises:
        UnsupportedFilesystemError: a network or user-space file system, and no override.
    """
    if mountinfo is None:
        _log.warning("no mount table to read: the type of file system under %s is unknown", path)
        return
    kind = filesystem_type(path, mountinfo)
    if kind is None or not (kind in REFUSED_TYPES or kind.startswith("fuse.")):
        return
    if allow_unsupported:
        _log.warning("%s is on %s, which is unsupported; going on as told", path, kind)
        return
    raise UnsupportedFilesystemError(
        f"{path} is on {kind}: locks, mmap and fsync cannot be trusted there"
    )
