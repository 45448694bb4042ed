"""Nodes on this machine: real ``guardian serve`` processes with a log file each."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

STOP_TIMEOUT_S = 12.0
ADMIN_EMAIL = "admin@localhost"
_PR_SET_PDEATHSIG = 1

#: Variables that can only be right for one node, or that stand against what the layout sets. All
#: others are passed through to every node.
_NOT_PASSED = frozenset(
    name + suffix
    for suffix in ("", "_FILE")
    for name in (
        "DATABASE_URL",
        "GUARDIAN_ADMIN_EMAIL",
        "GUARDIAN_ADMIN_PASSWORD",
        "GUARDIAN_BOOTSTRAP",
        "GUARDIAN_DATA_DIR",
        "GUARDIAN_HTTP",
        "GUARDIAN_HTTP_ADVERTISE",
        "GUARDIAN_JOIN",
        "GUARDIAN_JOIN_AS",
        "GUARDIAN_JWT_SECRET",
        "GUARDIAN_METRICS",
        "GUARDIAN_NODE_ID",
        "GUARDIAN_RAFT",
        "GUARDIAN_RAFT_ADVERTISE",
        "GUARDIAN_RAFT_TLS_CA",
        "GUARDIAN_RAFT_TLS_CERTIFICATE",
        "GUARDIAN_RAFT_TLS_KEY",
    )
)


def _end_with_parent() -> None:
    """In the child: SIGTERM when the supervisor dies, however it dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass
class LocalNode:
    """One node: how it is started, and its process."""

    name: str
    url: str
    arguments: list[str]
    environment: dict[str, str]
    log_path: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process, unless it runs. It is in a session of its own, so that Ctrl-C is the
        supervisor's to handle."""
        if self.running:
            return
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", "guardian.cli.main", "serve", *self.arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - one prctl, before any thread
            )

    def kill(self) -> None:
        """``kill -9``."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that takes too long."""
        if self._process is None or not self.running:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def last_log_line(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()
        return lines[-1] if lines else "it said nothing"


def layout(
    root: Path,
    ports: Sequence[tuple[int, int]],
    *,
    database_url: str,
    secret: str,
    password: str,
    extra: Sequence[str] = (),
) -> list[LocalNode]:
    """Nodes under ``root``, one for each (HTTP port, Raft port); ``extra`` are further flags."""
    http = [f"127.0.0.1:{port}" for port, _ in ports]
    raft = [f"127.0.0.1:{port}" for _, port in ports]
    founders = ",".join(f"node{i + 1}={raft[i]};http={http[i]}" for i in range(len(ports)))
    environment = {k: v for k, v in os.environ.items() if k not in _NOT_PASSED} | {
        "DATABASE_URL": database_url,
        "GUARDIAN_JWT_SECRET": secret,
        "GUARDIAN_ADMIN_EMAIL": ADMIN_EMAIL,
        "GUARDIAN_ADMIN_PASSWORD": password,
        "GUARDIAN_BOOTSTRAP": founders,
    }
    nodes = []
    for i in range(len(ports)):
        name = f"node{i + 1}"
        arguments = [
            "--node-id", name, "--data-dir", str(root / name),
            "--http", http[i], "--raft", raft[i], *extra,
        ]  # fmt: skip
        nodes.append(
            LocalNode(name, f"http://{http[i]}", arguments, environment, root / f"{name}.log")
        )
    return nodes
