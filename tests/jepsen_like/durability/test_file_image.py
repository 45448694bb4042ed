"""FileImage against a model that copies whole files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepsen_like.durability import file_image
from jepsen_like.durability.file_image import FileImage, ImageTooLargeError

SIZE = 40


@contextmanager
def image_of(content: bytes) -> Iterator[FileImage]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        image = FileImage("file", os.open(file.name, os.O_RDWR))
        try:
            yield image
        finally:
            image.close()


def write(image: FileImage, start: int, data: bytes, durable: bool = False) -> None:
    change = image.begin_change(start, start + len(data))
    os.pwrite(image.descriptor, data, start)
    image.end_change(change, len(data), durable)


def truncate(image: FileImage, size: int) -> None:
    current = image.current_size_bytes
    change = image.begin_change(min(current, size), max(current, size))
    os.ftruncate(image.descriptor, size)
    image.end_change(change, 0, False)


def content(image: FileImage) -> bytes:
    return os.pread(image.descriptor, 1000, 0)


def patched(old: bytes, start: int, data: bytes) -> bytes:
    return old.ljust(start, b"\0")[:start] + data + old[start + len(data) :]


def test_what_was_not_synced_is_lost() -> None:
    with image_of(b"0123456789") as image:
        write(image, 2, b"ab")
        assert image.end_sync(image.begin_sync(), succeeded=True) == [(2, 4)]
        write(image, 3, b"XYZ")
        write(image, 9, b"tail")
        assert image.read_durable(0, 100) == b"01ab456789"
        image.lose()
        assert content(image) == b"01ab456789"


def test_a_failed_sync_makes_nothing_durable() -> None:
    with image_of(b"old") as image:
        write(image, 0, b"new")
        assert image.end_sync(image.begin_sync(), succeeded=False) == []
        image.lose()
        assert content(image) == b"old"


def test_a_sync_covers_only_what_was_written_before_it_began() -> None:
    with image_of(b"....") as image:
        write(image, 0, b"aa")
        number = image.begin_sync()
        write(image, 1, b"bb")
        image.end_sync(number, succeeded=True)
        assert image.read_durable(0, 4) == b"aa.."
        image.lose()
        assert content(image) == b"aa.."


def test_a_write_that_has_not_returned_is_not_covered_by_a_sync() -> None:
    with image_of(b"....") as image:
        change = image.begin_change(2, 6)
        os.pwrite(image.descriptor, b"bbbb", 2)
        write(image, 0, b"a")
        number = image.begin_sync()
        image.end_change(change, 4, False)
        image.end_sync(number, succeeded=True)
        image.lose()
        assert content(image) == b"a..."


def test_a_durable_write_survives_on_its_own() -> None:
    with image_of(b"....") as image:
        write(image, 0, b"aa")
        write(image, 4, b"past the end")
        write(image, 6, b"SYNC", durable=True)
        assert image.read_durable(0, 100) == b"....\0\0SYNC"
        assert image.pending()
        image.lose()
        assert content(image) == b"....\0\0SYNC"


def test_a_cut_off_tail_comes_back() -> None:
    with image_of(b"0123456789") as image:
        truncate(image, 3)
        write(image, 5, b"zz")
        assert image.durable_size_bytes == 10
        image.lose()
        assert content(image) == b"0123456789"


def test_nothing_pending_is_clean() -> None:
    with image_of(b"") as image:
        write(image, 0, b"meta", durable=True)
        assert image.clean


def test_too_much_to_keep_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_image, "MAX_KEPT_BYTES", 3)
    with image_of(b"12345678") as image, pytest.raises(ImageTooLargeError):
        image.begin_change(0, 8)


offsets = st.integers(0, SIZE)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), offsets, st.integers(1, 12)),
        st.tuples(st.just("durable"), offsets, st.integers(1, 12)),
        st.tuples(st.just("truncate"), offsets, st.just(0)),
        st.tuples(st.just("begin_sync"), st.just(0), st.just(0)),
        st.tuples(st.just("end_sync"), st.integers(0, 3), st.booleans().map(int)),
    ),
    max_size=25,
)


@settings(deadline=None)
@given(st.integers(0, SIZE), steps)
def test_any_history_leaves_what_the_model_says(
    size: int, history: list[tuple[str, int, int]]
) -> None:
    current = durable = bytes(range(65, 65 + size))
    syncs: list[tuple[int, bytes]] = []
    with image_of(current) as image:
        for number, (step, at, extent) in enumerate(history):
            data = bytes([number]) * extent
            if step in ("write", "durable"):
                write(image, at, data, durable=step == "durable")
                current = patched(current, at, data)
                if step == "durable":
                    durable = patched(durable, at, data)
                    syncs = [(n, patched(covered, at, data)) for n, covered in syncs]
            elif step == "truncate":
                truncate(image, at)
                current = current[:at].ljust(at, b"\0")
            elif step == "begin_sync":
                syncs.append((image.begin_sync(), current))
            elif syncs:
                sync, covered = syncs.pop(at % len(syncs))
                image.end_sync(sync, succeeded=bool(extent))
                if extent:
                    durable = covered
                    # Older syncs can add nothing to what a newer one covers.
                    syncs = [(n, max_of(n, sync, c, covered)) for n, c in syncs]
            assert content(image) == current
            assert image.read_durable(0, 1000) == durable
        image.lose()
        assert content(image) == durable


def max_of(number: int, done: int, covered: bytes, durable: bytes) -> bytes:
    return durable if number <= done else covered


def test_the_file_is_left_alone_until_power_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    image = FileImage("file", os.open(path, os.O_RDWR))
    write(image, 0, b"new")
    image.read_durable(0, 3)
    image.close()
    assert path.read_bytes() == b"new"
