"""A program under the tracer, as tests use it.

::

    node = TracedProcess(
        ["guardian", "serve", ...],
        watch=data_dir,
        exempt=["state", "state/*", "state.new", "state.new/*", "pg", "pg/*"],
        ordering=RaftOrdering(revision_base=0, require=["client_reply"]),
    )
    with node:
        ...  # the program runs as node.pid
        verdict = node.kill_with_power_loss()
    assert verdict.ok, verdict
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from jepsen_like.durability.ordering import RaftOrdering
from jepsen_like.durability.trace import TraceSpec, Verdict

START_TIMEOUT_S = 30.0
END_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 10.0

_TRACER = (sys.executable, "-m", "jepsen_like.durability", "run-spec")
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class TracerError(RuntimeError):
    """The tracer itself failed, so the run shows nothing. Also: tracing is not permitted here."""


class TracedProcess:
    """One program with a tracer process of its own; several may run at once.

    Args:
        argv: the program.
        watch: its data directory; the parent must exist.
        env: its environment, by default ours.
        cwd: its working directory, by default ours.
        exempt: globs relative to ``watch`` for what a power loss leaves alone.
        ordering: rules for the ordering monitor, None for none.
        events: a file for the monitor's events.
        stdout: as for ``subprocess.Popen``; for the program.
        stderr: as for ``subprocess.Popen``; for the program *and* the tracer's own complaints.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        watch: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        exempt: Sequence[str] = (),
        ordering: RaftOrdering | None = None,
        events: Path | None = None,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
    ) -> None:
        self._spec = TraceSpec(
            argv=tuple(argv),
            watch=str(watch.absolute()),
            env=None if env is None else dict(env),
            cwd=None if cwd is None else str(cwd),
            exempt=tuple(exempt),
            ordering=ordering,
            events=None if events is None else str(events),
        )
        self._stdout, self._stderr = stdout, stderr
        self._tracer: subprocess.Popen[bytes] | None = None
        self._report = -1
        self._buffer = b""
        self._verdict: Verdict | None = None
        self.pid = 0

    @property
    def stdout(self) -> IO[bytes]:
        """The program's output, if ``stdout`` was ``subprocess.PIPE``."""
        assert self._tracer is not None, "not started"
        assert self._tracer.stdout is not None, "stdout is not a pipe"
        return self._tracer.stdout

    def start(self) -> None:
        """Start the program; returns when it is being traced.

        Raises:
            TracerError: it could not be started, or tracing is not permitted.
        """
        assert self._tracer is None, "a traced process is started once"
        spec_read, spec_write = os.pipe()
        self._report, report_write = os.pipe()
        root = os.pathsep.join(filter(None, (str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH"))))
        try:
            self._tracer = subprocess.Popen(
                [*_TRACER, str(spec_read), str(report_write)],
                stdin=subprocess.DEVNULL,
                stdout=self._stdout,
                stderr=self._stderr,
                env={**os.environ, "PYTHONPATH": root},
                pass_fds=(spec_read, report_write),
                start_new_session=True,
            )
        finally:
            os.close(spec_read)
            os.close(report_write)
        with os.fdopen(spec_write, "w", encoding="utf-8") as spec:
            spec.write(self._spec.to_json())
        try:
            self.pid = int(self._next_report(START_TIMEOUT_S)["started"])
        except BaseException:
            self.close()
            raise

    def send_signal(self, number: int) -> None:
        """Send a signal to the program (not to the tracer)."""
        os.kill(self.pid, number)

    def kill(self) -> Verdict:
        """Plain SIGKILL: the page cache survives."""
        self.send_signal(signal.SIGKILL)
        return self.wait()

    def terminate(self) -> Verdict:
        """SIGTERM, and wait for the program to end by itself."""
        self.send_signal(signal.SIGTERM)
        return self.wait()

    def cut_power(self) -> None:
        """Begin a power loss: kill the program and its children, discard what was not synced."""
        assert self._tracer is not None, "not started"
        self._tracer.send_signal(signal.SIGUSR1)

    def kill_with_power_loss(self) -> Verdict:
        """Lose power now; returns when the directory is at its durable image."""
        self.cut_power()
        return self.wait()

    def wait(self, timeout_s: float = END_TIMEOUT_S) -> Verdict:
        """Wait for the program's end; returns what the run showed.

        Raises:
            TracerError: the tracer failed, or the program did not end in time.
        """
        if self._verdict is None:
            report = self._next_report(timeout_s)
            self._verdict = Verdict.from_json(str(report["verdict"]))
        return self._verdict

    def close(self) -> None:
        """End everything; child processes that outlived the program end with the tracer."""
        if self._tracer is None:
            return
        if self._tracer.poll() is None:
            self._tracer.send_signal(signal.SIGUSR2)
        try:
            self._tracer.wait(CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._tracer.kill()
            self._tracer.wait()
        for stream in (self._tracer.stdout, self._tracer.stderr):
            if stream is not None:
                stream.close()
        os.close(self._report)
        self._tracer = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _next_report(self, timeout_s: float) -> dict[str, Any]:
        """The tracer's next line; the tracer is the only writer of that pipe."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._report], [], [], max(0.0, left))
            if not ready:
                raise TracerError(f"{self._spec.argv[0]}: no word from it in {timeout_s:g} s")
            chunk = os.read(self._report, 65536)
            if not chunk:
                raise TracerError(
                    f"{self._spec.argv[0]}: the tracer ended without a verdict; "
                    "its standard error says why"
                )
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        report: dict[str, Any] = json.loads(line)
        if "failed" in report:
            raise TracerError(str(report["failed"]))
        return report


def cut_power(processes: Iterable[TracedProcess]) -> list[Verdict]:
    """All of them lose power at once."""
    processes = list(processes)
    for process in processes:
        process.cut_power()
    return [process.wait() for process in processes]
