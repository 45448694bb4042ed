"""One traced run: start the program, watch it until it ends, take back what was not synced.

This is the tracer's process; it has one thread, since ptrace belongs to a thread.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from jepsen_like.durability.durable_log import DurableLog
from jepsen_like.durability.images import Images, Loss
from jepsen_like.durability.ordering import OrderingMonitor, RaftOrdering
from jepsen_like.durability.ptrace import Exit, Tracer
from jepsen_like.durability.syscalls import Watch


@dataclass(frozen=True, slots=True)
class TraceSpec:
    """What to run and how to watch it.

    Args:
        argv: the program.
        watch: its data directory; it need not exist yet, its parent must.
        env: its environment, by default that of the tracer.
        cwd: its working directory, by default that of the tracer.
        exempt: globs relative to ``watch`` that a power loss leaves alone (disposable state).
        ordering: the rules of the ordering monitor, None for no monitor.
        images: a directory on the file system of ``watch`` for saved files, by default beside it.
        events: a file for one JSON line per promise and commit, None for none.
        discard_on_kill: any death by SIGKILL is a power loss, not only a requested one.
    """

    argv: tuple[str, ...]
    watch: str
    env: Mapping[str, str] | None = None
    cwd: str | None = None
    exempt: tuple[str, ...] = ()
    ordering: RaftOrdering | None = None
    images: str | None = None
    events: str | None = None
    discard_on_kill: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TraceSpec:
        body = json.loads(text)
        ordering = body.pop("ordering")
        for name in ("argv", "exempt"):
            body[name] = tuple(body[name])
        return cls(**body, ordering=None if ordering is None else RaftOrdering(**ordering))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run showed.

    Attributes:
        exit_code: of the program, None if a signal ended it.
        exit_signal: that signal.
        checked: judged promises by kind (empty without a monitor).
        violations: promises that ran ahead of the disk, commits out of order, and whatever kept the
            run from being watched; the first hundred.
        missing: what had to be seen and was not.
        commits: durable commits of the log.
        power_lost: the directory was put back to its durable image.
        lost_bytes: un-synced bytes by file.
        lost_names: un-synced directory changes.
    """

    exit_code: int | None
    exit_signal: int | None
    checked: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    commits: int = 0
    power_lost: bool = False
    lost_bytes: dict[str, int] = field(default_factory=dict)
    lost_names: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Something was checked and nothing was wrong."""
        return not self.violations and not self.missing

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Verdict:
        return cls(**json.loads(text))


class EventFile:
    """JSON lines, each with the monotonic time in nanoseconds."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed below

    def write(self, event: Mapping[str, object]) -> None:
        self._file.write(json.dumps({"t": time.monotonic_ns(), **event}) + "\n")

    def close(self) -> None:
        self._file.close()


class TraceRun:
    """Carries out a :class:`TraceSpec`."""

    def __init__(self, spec: TraceSpec, report: TextIO) -> None:
        self._spec = spec
        self._report = report
        self._power_loss = False
        self._stack = ExitStack()
        watch = Path(spec.watch).absolute()
        parent = Path(spec.images) if spec.images else watch.parent
        work = Path(
            self._stack.enter_context(
                tempfile.TemporaryDirectory(prefix=f".{watch.name}-images-", dir=parent)
            )
        )
        for name in ("removed", "log"):
            (work / name).mkdir()
        self._images = Images(watch, work / "removed", spec.exempt)
        self._log: DurableLog | None = None
        self._monitor: OrderingMonitor | None = None
        self._prepare(work / "log")
        watch_calls = Watch(self._images, self._monitor)
        self._tracer = Tracer(watch_calls, receiving=self._monitor is not None)

    def _prepare(self, copy: Path) -> None:
        events = None
        if self._spec.events is not None:
            events = EventFile(self._spec.events)
            self._stack.callback(events.close)
        rules = self._spec.ordering
        if rules is not None:
            self._log = DurableLog(self._images, rules.log, copy)
            self._stack.callback(self._log.close)
            record = None if events is None else events.write
            self._monitor = OrderingMonitor(rules, self._log, record)
        if events is not None:
            file = events
            self._images.observe(
                lambda image, ranges: file.write(
                    {"event": "durable", "file": image.path, "ranges": ranges}
                )
            )

    def run(self) -> Verdict:
        """Run the program to its end.

        Raises:
            PtraceUnavailableError: tracing is not permitted here.
        """
        with self._stack:
            env = dict(os.environ if self._spec.env is None else self._spec.env)
            pid = self._tracer.spawn(self._spec.argv, env, self._spec.cwd)
            signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both of us
            signal.signal(signal.SIGUSR1, self._lose_power)
            signal.signal(signal.SIGUSR2, lambda *_: self._tracer.kill_everything())
            self._say({"started": pid})
            ended = self._tracer.run()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            verdict = self._verdict(ended)
        self._say({"verdict": verdict.to_json()})
        self._tracer.run_orphans()
        return verdict

    def _lose_power(self, _: int, __: FrameType | None) -> None:
        self._power_loss = True
        self._tracer.kill_everything()

    def _verdict(self, ended: Exit) -> Verdict:
        killed = ended.signal == signal.SIGKILL
        loss = None
        if killed and (self._power_loss or self._spec.discard_on_kill):
            self._tracer.kill_everything()
            loss = self._images.lose_power()
        violations, missing, checked, commits = list(self._images.faults), [], {}, 0
        if self._monitor is not None:
            self._monitor.finish()
            violations += self._monitor.violations
            checked = dict(self._monitor.checked)
            missing = self._monitor.missing()
        if self._log is not None:
            violations += self._log.unordered
            commits = self._log.commits
        lost = loss or Loss()
        return Verdict(
            exit_code=ended.code,
            exit_signal=ended.signal,
            checked=checked,
            violations=violations,
            missing=missing,
            commits=commits,
            power_lost=loss is not None,
            lost_bytes=lost.bytes_in_doubt,
            lost_names=list(lost.names),
        )

    def _say(self, message: Mapping[str, Any]) -> None:
        self._report.write(json.dumps(message) + "\n")
        self._report.flush()
