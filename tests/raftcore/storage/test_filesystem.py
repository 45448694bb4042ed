"""File systems that cannot keep the store's promises are refused, by the mount table."""

from __future__ import annotations

from pathlib import Path

import pytest

from raftcore.errors import ExitCode, UnsupportedFilesystemError
from raftcore.storage.directory import DataDirectory
from raftcore.storage.filesystem import check_filesystem, filesystem_type, read_mountinfo

TABLE = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:5 / /mnt/net rw - nfs4 server:/export rw
31 22 0:6 / /mnt/net/local rw shared:2 master:3 - xfs /dev/sdb1 rw
32 22 0:7 / /mnt/with\\040space rw - fuse.sshfs host:/ rw
33 22 8:2 / /mnt/twice rw - ext4 /dev/sdc1 rw
34 22 0:9 / /mnt/twice rw - cifs //server/share rw
nonsense
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/var/lib/node", "ext4"),
        ("/mnt/net/node", "nfs4"),
        ("/mnt/network", "ext4"),
        ("/mnt/net/local/node", "xfs"),
        ("/mnt/with space/node", "fuse.sshfs"),
        ("/mnt/twice/node", "cifs"),
    ],
)
def test_the_deepest_and_latest_mount_decides(path: str, kind: str) -> None:
    assert filesystem_type(Path(path), TABLE) == kind


def test_an_unknown_path_has_no_type() -> None:
    assert filesystem_type(Path("/x"), "") is None


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse", "fuse.sshfs"])
def test_network_and_user_space_file_systems_are_refused(kind: str) -> None:
    table = f"22 1 8:1 / / rw - {kind} source rw\n"
    with pytest.raises(UnsupportedFilesystemError) as caught:
        check_filesystem(Path("/data"), mountinfo=table, allow_unsupported=False)
    assert caught.value.exit_code is ExitCode.UNSUPPORTED_FS
    check_filesystem(Path("/data"), mountinfo=table, allow_unsupported=True)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay"])
def test_local_file_systems_are_accepted(kind: str) -> None:
    table = f"22 1 8:1 / / rw - {kind} source rw\n"
    check_filesystem(Path("/data"), mountinfo=table, allow_unsupported=False)


def test_without_a_mount_table_the_type_is_unknown_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_mountinfo(tmp_path / "absent") is None
    check_filesystem(Path("/data"), mountinfo=None, allow_unsupported=False)
    assert "unknown" in caplog.text


def test_a_refused_file_system_is_found_before_anything_is_locked(tmp_path: Path) -> None:
    table = "22 1 8:1 / / rw - nfs source rw\n"
    with pytest.raises(UnsupportedFilesystemError):
        DataDirectory.open(tmp_path / "node", "n1", mountinfo=table)
    assert not (tmp_path / "node" / "LOCK").exists()
    DataDirectory.open(tmp_path / "node", "n1", mountinfo=table, allow_unsupported_fs=True).close()
