"""MARK: what decides whether the state found at start may be used again (D5.1).

The state is written without syncing. As long as the machine runs, the kernel holds what a killed
process wrote; after a crash of the machine any mixture of its pages may be on the disk. So the
state is used again only if it was synced and closed, or if this is still the same boot and the same
file.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from guardian.fsm.records import STATE_FORMAT
from raftcore.storage.files import Files
from raftcore.storage.records import RecordError, seal, unseal

MARK_FILE: Final = "MARK"
DATA_FILE: Final = "data.mdb"
BOOT_ID_FILE: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_id(source: Path = BOOT_ID_FILE) -> str:
    """Names this boot of the machine; empty where the system does not say."""
    try:
        return source.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return ""


@dataclass(frozen=True, slots=True)
class Mark:
    """Who wrote the state, during which boot, into which file, and whether it was closed.

    ``format`` is the version of the state's records: another release's state is rebuilt.
    """

    boot_id: str
    device: int
    inode: int
    cluster_id: str
    incarnation: str
    clean: bool
    format: int = STATE_FORMAT

    @classmethod
    def of(
        cls, directory: Path, *, boot: str, cluster_id: str, incarnation: bytes, clean: bool
    ) -> Mark:
        """The mark that fits the data file in ``directory`` now."""
        stat = (directory / DATA_FILE).stat()
        return cls(boot, stat.st_dev, stat.st_ino, cluster_id, incarnation.hex(), clean)

    def write(self, directory: Path, files: Files) -> None:
        """Durable when this returns."""
        body = {name: getattr(self, name) for name in self.__dataclass_fields__}
        files.write_atomically(directory / MARK_FILE, seal(body))

    @classmethod
    def read(cls, directory: Path) -> Mark | None:
        """None when there is no readable mark."""
        with contextlib.suppress(FileNotFoundError, RecordError, TypeError):
            return cls(**unseal((directory / MARK_FILE).read_bytes()))
        return None


def why_not_reusable(
    directory: Path, *, boot: str, cluster_id: str, incarnation: bytes
) -> str | None:
    """Why the state in ``directory`` must be rebuilt, or None when it may be used."""
    found = Mark.read(directory)
    if found is None:
        return "it has no valid mark"
    try:
        here = Mark.of(
            directory, boot=boot, cluster_id=cluster_id, incarnation=incarnation, clean=False
        )
    except FileNotFoundError:
        return "its data file is missing"
    if found.format != here.format:
        return f"it has format {found.format}"
    if (found.cluster_id, found.incarnation) != (here.cluster_id, here.incarnation):
        return "it belongs to another cluster or incarnation"
    if found.clean:
        return None
    if not boot or found.boot_id != boot:
        return "it was not closed before the machine stopped"
    if (found.device, found.inode) != (here.device, here.inode):
        return "it is a copy of a state that was not closed"
    return None
