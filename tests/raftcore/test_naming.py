"""What a node may be called, and where that is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raftcore import BootstrapError, CoreConfig, DataDirectory, Founder, Member
from raftcore.errors import IdentityError
from raftcore.formation import form_cluster
from raftcore.joining import find_cluster
from raftcore.naming import check_node_id

UNFIT: list[Any] = [
    "",
    " ",
    "a b",
    "a\tb",
    "a\n",
    "a\x00",
    "\u2028",
    "\udc00",
    "é" * 128,
    None,
    5,
    b"a",
]


@pytest.mark.parametrize("node_id", ["a", "node-1", "Node_1.example", "é漢", "n" * 255])
def test_what_can_be_printed_without_gaps_is_a_node_id(node_id: str) -> None:
    assert check_node_id(node_id) == node_id


@pytest.mark.parametrize("node_id", UNFIT)
def test_anything_else_is_not(node_id: Any) -> None:
    with pytest.raises(ValueError, match="node id"):
        check_node_id(node_id)


@pytest.mark.parametrize("node_id", UNFIT)
def test_no_directory_is_made_for_such_a_node(tmp_path: Path, node_id: Any) -> None:
    with pytest.raises(IdentityError, match="node id"):
        DataDirectory.open(tmp_path / "data", node_id, allow_unsupported_fs=True)
    assert not (tmp_path / "data").exists()


def test_a_directory_that_has_such_a_name_already_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("raftcore.storage.directory.check_node_id", lambda node_id: node_id)
        directory = DataDirectory.open(tmp_path / "data", "node 1", allow_unsupported_fs=True)
        incarnation = directory.founding_incarnation()
        directory.close()
    again = DataDirectory.open(tmp_path / "data", "node 1", allow_unsupported_fs=True)
    assert again.founding_incarnation() == incarnation
    again.close()


@pytest.mark.parametrize("node_id", UNFIT)
async def test_no_cluster_is_founded_with_such_a_node(node_id: Any) -> None:
    founders = [Founder("a", "127.0.0.1:1"), Founder(node_id, "127.0.0.1:2")]
    with pytest.raises(BootstrapError, match="node id"):
        await form_cluster(
            node_id="a", incarnation=b"a" * 16, founders=founders, listen=("127.0.0.1", 0)
        )


@pytest.mark.parametrize("node_id", UNFIT)
async def test_such_a_node_does_not_ask_to_join(node_id: Any) -> None:
    me = Member(node_id, "127.0.0.1:1", b"a" * 16)
    with pytest.raises(BootstrapError, match="node id"):
        await find_cluster(me, ["127.0.0.1:2"])


@pytest.mark.parametrize("node_id", ["", None, 5])
def test_settings_need_a_node_id(node_id: Any) -> None:
    with pytest.raises(ValueError, match="node_id"):
        CoreConfig(node_id)
