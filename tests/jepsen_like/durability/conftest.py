"""Small programs for the tracer to watch."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jepsen_like.durability import TracedProcess

StartScript = Callable[..., TracedProcess]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The watched directory; it stands before the program starts, hence durably."""
    path = tmp_path / "data"
    path.mkdir()
    return path


@pytest.fixture
def start_script(tmp_path: Path, data: Path) -> Iterator[StartScript]:
    """Starts a script under the tracer with the data directory as its argument."""
    started: list[TracedProcess] = []

    def start(text: str, *arguments: str, prefix: tuple[str, ...] = (), **more: Any) -> Any:
        script = tmp_path / f"script{len(started)}.py"
        script.write_text(textwrap.dedent(text))
        argv = [sys.executable, *prefix, str(script), str(data), *arguments]
        process = TracedProcess(argv, watch=data, **more)
        started.append(process)
        process.start()
        return process

    yield start
    for process in started:
        process.close()
