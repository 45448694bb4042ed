"""``guardian demo``: three nodes on this machine, as real processes, to play with."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click

from guardian.adapters.postgres.embedded import EmbeddedPostgres
from guardian.adapters.postgres.errors import PostgresError
from guardian.adapters.security.secret_file import load_or_create_secret
from guardian.cli.demo_client import DemoClient, DemoError
from guardian.cli.local_nodes import ADMIN_EMAIL, LocalNode, layout

HELP = """\
  kill N    kill -9 node N (1, 2 or 3); the others go on
  start N   start it again
  status    who leads, who is there
  help      this list
  quit      stop everything (Ctrl-C does too)"""


@click.command("demo")
@click.option("--data-dir", default="./guardian-demo-data", show_default=True, type=click.Path(),
              help="Where the three nodes and their PostgreSQL keep their data.")  # fmt: skip
@click.option("--http-port", default=8081, show_default=True, type=click.IntRange(1, 65533),
              help="HTTP port of node 1; the others take the next two.")  # fmt: skip
@click.option("--raft-port", default=7001, show_default=True, type=click.IntRange(1, 65533),
              help="Raft port of node 1; the others take the next two.")  # fmt: skip
@click.option("--auto", is_flag=True,
              help="Play it alone: kill the leader, watch, start it again, end.")  # fmt: skip
def command(data_dir: str, http_port: int, raft_port: int, *, auto: bool) -> None:
    """Start a cluster of three on loopback, show who leads, and let you kill nodes.

    The nodes are real `guardian serve` processes; they share one embedded PostgreSQL, which is a
    child of this supervisor. A counter is written all the time, so you see what a failure costs.
    Data stays in --data-dir; node logs are in it too.
    """
    root = Path(data_dir).absolute()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        click.echo("starting PostgreSQL ...")
        with EmbeddedPostgres(root / "pg") as postgres:
            status = asyncio.run(_run(root, postgres, http_port, raft_port, auto=auto))
    except TimeoutError:
        click.echo(f"guardian demo: waited too long; the nodes' logs are in {root}", err=True)
        sys.exit(1)
    except (PostgresError, DemoError, OSError) as error:
        click.echo(f"guardian demo: {error}", err=True)
        sys.exit(1)
    sys.exit(status)


async def _run(
    root: Path, postgres: EmbeddedPostgres, http_port: int, raft_port: int, *, auto: bool
) -> int:
    password = _admin_password(root)
    secret = load_or_create_secret(root).hex()
    nodes = layout(
        root,
        [(http_port + i, raft_port + i) for i in range(3)],
        database_url=postgres.dsn,
        secret=secret,
        password=password,
    )
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    supervising = asyncio.create_task(postgres.supervise())
    demo = Demo(nodes, password, stopping)
    try:
        await demo.start()
        await demo.watched(demo.play() if auto else demo.talk())
    finally:
        supervising.cancel()
        await demo.stop()
    return 0


def _admin_password(root: Path) -> str:
    """The demo's administrator has one password for ever, so that a second run can show it too."""
    path = root / "admin-password"
    if not path.exists():
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(secrets.token_urlsafe(15))
    return path.read_text()


class LineSource:
    """Lines of standard input, as they come. Read from the descriptor: a buffered reader would keep
    what was pasted behind the first line to itself."""

    def __init__(self, lines: asyncio.Queue[str]) -> None:
        self.fd = sys.stdin.fileno()
        self._lines = lines
        self._rest = b""

    def read(self) -> None:
        data = os.read(self.fd, 4096)
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._lines.put_nowait(line.decode(errors="replace") + "\n")
        if not data:
            asyncio.get_running_loop().remove_reader(self.fd)
            self._lines.put_nowait("")


class Demo:
    """The three nodes, the counter that is written all the time, and the conversation."""

    def __init__(self, nodes: list[LocalNode], password: str, stopping: asyncio.Event) -> None:
        self._nodes = nodes
        self._stopping = stopping
        self._client = DemoClient([node.url for node in nodes], password)
        self._password = password
        self._writing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        click.echo("starting three nodes ...")
        for node in self._nodes:
            node.start()
        await self._until_ready()
        await self._client.prepare()
        self._writing = asyncio.create_task(self._client.write_for_ever())
        await self.show()
        click.echo(f"\n{ADMIN_EMAIL}, password {self._password}\n")

    async def stop(self) -> None:
        click.echo("stopping ...")
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        await self._client.close()
        await asyncio.gather(*(asyncio.to_thread(node.stop) for node in self._nodes))
        click.echo("stopped.")

    async def watched(self, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work``, and end it when the writer ends: it never should, and says why."""
        assert self._writing is not None
        task = asyncio.create_task(work)
        await asyncio.wait({task, self._writing}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._writing
        await task

    async def _until_ready(self) -> None:
        """All nodes answer, or one of them ended: then say why."""
        for node in self._nodes:
            async with asyncio.timeout(90):
                while not await self._client.is_ready(node.url):
                    if self._stopping.is_set():
                        raise DemoError("interrupted")
                    if not node.running:
                        raise DemoError(f"{node.name} ended: {node.last_log_line()}")
                    await asyncio.sleep(0.1)

    async def show(self) -> None:
        """One line per node, from its own mouth."""
        views = await self._client.views()
        click.echo(f"\n  {'node':<7}{'address':<24}{'role':<11}{'term':>5}{'commit':>9}")
        for node in self._nodes:
            view = views.get(node.url)
            if not node.running:
                click.echo(f"  {node.name:<7}{node.url:<24}killed")
            elif view is None:
                click.echo(f"  {node.name:<7}{node.url:<24}no answer")
            else:
                role = click.style(f"{view['role']:<11}", bold=view["role"] == "leader")
                click.echo(
                    f"  {node.name:<7}{node.url:<24}{role}{view['term']:>5}"
                    f"{view['commit_index']:>9}"
                )
        click.echo(f"  {self._client.summary()}")

    async def leader(self) -> LocalNode:
        """The node that leads; waits for one."""
        async with asyncio.timeout(30):
            while True:
                for url, view in (await self._client.views()).items():
                    if view["role"] == "leader":
                        return next(node for node in self._nodes if node.url == url)
                await asyncio.sleep(0.05)

    # -- with a person --------------------------------------------------------------------------

    async def talk(self) -> None:
        click.echo(HELP)
        lines: asyncio.Queue[str] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        source = LineSource(lines)
        try:
            loop.add_reader(source.fd, source.read)
        except (OSError, ValueError):  # a plain file, or nothing at all: only signals end it
            await self._stopping.wait()
            return
        try:
            await self._converse(lines)
        finally:
            loop.remove_reader(source.fd)

    async def _converse(self, lines: asyncio.Queue[str]) -> None:
        stopping = asyncio.create_task(self._stopping.wait())
        while not self._stopping.is_set():
            click.echo("demo> ", nl=False)
            line = asyncio.create_task(lines.get())
            await asyncio.wait({line, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not line.done():
                line.cancel()
                click.echo()
                break
            text = line.result()
            if not text:  # end of input: stay until told to stop
                await stopping
                break
            if not await self._obey(text.split()):
                break
        stopping.cancel()

    async def _obey(self, words: list[str]) -> bool:
        """Carry out one line; False to end."""
        verb, argument = (*words, "", "")[:2]
        node = next(
            (n for n in self._nodes if argument in (n.name, n.name.removeprefix("node"))), None
        )
        if verb in ("quit", "exit", "q"):
            return False
        if verb in ("kill", "start") and node is None:
            click.echo(f"which node? {verb} 1, {verb} 2 or {verb} 3")
        elif verb == "kill" and node is not None:
            await self._kill(node)
        elif verb == "start" and node is not None:
            node.start()
            click.echo(f"{node.name} is starting")
        elif verb in ("status", "s", ""):
            await self.show()
        else:
            click.echo(HELP)
        return True

    async def _kill(self, node: LocalNode) -> None:
        led = node is await self.leader() if any(n.running for n in self._nodes) else False
        node.kill()
        click.echo(f"{node.name} was killed" + (", it led" if led else ""))
        running = sum(n.running for n in self._nodes)
        if running < 2:
            click.echo(
                f"{running} of 3 nodes are up: no majority, so nothing is written until one is back"
            )
            return
        await self._client.until_written()
        await self.show()

    # -- without one ----------------------------------------------------------------------------

    async def play(self) -> None:
        """Kill the leader, see the others go on, start it again, see it catch up."""
        first = await self.leader()
        await self._kill(first)
        second = await self.leader()
        if second is first:
            raise DemoError("the killed node still leads")
        first.start()
        await self._until_ready()
        await self._client.until_caught_up(first.url)
        await self.show()
        await self._client.check_nothing_lost()
        click.echo("every acknowledged write is there")
