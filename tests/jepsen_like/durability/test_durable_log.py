"""The copy of the log that only receives what is durable."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jepsen_like.durability.durable_log import DurableLog
from jepsen_like.durability.images import Images
from raftcore.core.types import Configuration, HardState, Member
from raftcore.storage.base import Write
from raftcore.storage.directory import DataDirectory
from raftcore.storage.lmdb_log import open_log


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """The directory of a node in term 4, closed."""
    directory = DataDirectory.open(tmp_path / "data", "n1", allow_unsupported_fs=True)
    member = Member("n1", "127.0.0.1:1", directory.founding_incarnation())
    directory.bootstrap(Configuration("c", (member,)))
    log = open_log(directory, map_size_bytes=1 << 26)
    log.persist([Write(HardState(4, "n1"), None, ())])
    log.close()
    directory.close()
    return tmp_path / "data"


@pytest.fixture
def images(node: Path, tmp_path: Path) -> Iterator[Images]:
    (tmp_path / "keep").mkdir()
    images = Images(node, tmp_path / "keep")
    yield images
    images.close()


@pytest.fixture
def log(images: Images, tmp_path: Path) -> Iterator[DurableLog]:
    (tmp_path / "copy").mkdir()
    log = DurableLog(images, "log", tmp_path / "copy")
    yield log
    log.close()


def change(images: Images, path: Path, start: int, data: bytes, durable: bool) -> None:
    image = images.open(str(path))
    assert image is not None
    begun = images.begin_change(image, start, start + len(data))
    os.pwrite(image.descriptor, data, start)
    images.end_change(image, begun, len(data), durable)


def test_what_stood_there_at_the_start_is_durable(log: DurableLog) -> None:
    state = log.state()
    assert (state.missing, state.term, state.vote, state.last_index) == ("", 4, "n1", 1)
    assert (log.term_at(1), log.term_at(2)) == (1, None)


def test_a_meta_page_ahead_of_its_pages_is_caught(
    images: Images, log: DurableLog, node: Path
) -> None:
    data = node / "log" / "data.mdb"
    meta = data.read_bytes()[:4096]
    change(images, data, 5 * 4096, b"page", durable=False)
    change(images, data, 0, meta, durable=True)
    assert len(log.unordered) == 1
    assert "not durable" in log.state().missing
    image = images.open(str(data))
    assert image is not None
    images.end_sync(image, images.begin_sync(image), succeeded=True)


def test_an_image_that_lmdb_would_not_open_holds_nothing(
    images: Images, log: DurableLog, node: Path
) -> None:
    data = node / "log" / "data.mdb"
    change(images, data, 0, bytes(8192), durable=True)
    assert "does not read" in log.state().missing
    assert log.term_at(1) is None


def test_a_log_whose_name_is_not_durable_holds_nothing(
    images: Images, log: DurableLog, node: Path
) -> None:
    images.names.created(str(node / "log"))
    assert "the name of log/data.mdb is not durable" in log.state().missing
    found = (node).stat()
    images.names.synced((found.st_dev, found.st_ino), images.names.sequence)
    assert log.state().missing == ""


def test_an_empty_directory_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "keep").mkdir()
    images = Images(tmp_path / "data", tmp_path / "keep")
    log = DurableLog(images, "log", tmp_path / "keep")
    assert "nothing" in log.state().missing
    log.close()
