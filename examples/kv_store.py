"""A replicated key-value store over HTTP, on raftcore and aiohttp.

Run it: three processes on this machine are started, written to, one of them (the leader) is killed
and started again, and every node is read. Or start the nodes by hand, one per terminal::

    F=n1=127.0.0.1:9001,n2=127.0.0.1:9002,n3=127.0.0.1:9003
    python examples/kv_store.py --node n1 --founders $F --http 8001 --data ./kv-data
    curl -X PUT -d 'a value' localhost:8001/kv/greeting; curl localhost:8001/kv/greeting

A GET is linearizable on every node. A write takes effect once: the node that takes it repeats it,
over changes of leader, under one number of its session. A client that wants that over its own
retries too opens a session (POST /sessions) and sends its ``Session`` and ``Sequence`` as headers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgpack
from aiohttp import web

from raftcore import (
    AppliedPosition,
    CoreConfig,
    DataDirectory,
    Entry,
    EntryType,
    Founder,
    Node,
    NotLeaderError,
    OutcomeUnknownError,
    Proposed,
    RefusedError,
    open_member,
)
from raftcore.sessions import (
    NO_SESSION,
    Session,
    SessionOpened,
    SessionRefusal,
    SessionRefused,
    SessionStateMachine,
    register_command,
    session_command,
)

# -- the store: about a hundred lines ------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """A consistent view of the store."""

    position: AppliedPosition
    items: dict[str, tuple[int, bytes]]

    def records(self) -> Iterator[bytes]:
        for key in sorted(self.items):
            yield msgpack.packb([key, *self.items[key]])

    def close(self) -> None: ...


class KeyValueStore:
    """The state machine, in memory: after a restart the node replays snapshot and log.

    A command is ``[key, value]``, None deletes. Its result is the key's new version, or None.
    """

    def __init__(self) -> None:
        self.items: dict[str, tuple[int, bytes]] = {}
        self._position = AppliedPosition()

    def last_applied(self) -> AppliedPosition:
        return self._position

    def apply(self, entries: Sequence[Entry], position: AppliedPosition) -> list[int | None]:
        results = [
            self._change(*msgpack.unpackb(entry.data)) if entry.type is EntryType.COMMAND else None
            for entry in entries
        ]
        self._position = position
        return results

    def _change(self, key: str, value: bytes | None) -> int | None:
        version, _ = self.items.pop(key, (0, b""))
        if value is None:
            return version or None
        self.items[key] = (version + 1, value)
        return version + 1

    def open_snapshot(self) -> View:
        return View(self._position, dict(self.items))

    def install_snapshot(self, records: Iterable[bytes], position: AppliedPosition) -> None:
        unpacked = (msgpack.unpackb(record) for record in records)
        self.items = {key: (version, value) for key, version, value in unpacked}
        self._position = position

    def discard(self) -> None:
        self.items, self._position = {}, AppliedPosition()

    def close(self) -> None: ...


class Leader:
    """Proposes to whoever leads, from any node; what a ``Session`` proposes through."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def propose(
        self, data: bytes, *, timeout_s: float = 5.0, client_id: bytes = b"", sequence: int = 0
    ) -> Proposed:
        if self._node.is_leader:
            return await self._node.propose(
                data, timeout_s=timeout_s, client_id=client_id, sequence=sequence
            )
        if (leader := self._node.leader_id) is None:
            raise NotLeaderError(None)
        request = msgpack.packb([data, client_id, sequence])
        outcome = await self._node.request(leader, request, timeout_s=timeout_s)
        kind, value = msgpack.unpackb(outcome)
        if kind == "refused":
            raise RefusedError(value)
        if kind == "unknown":
            raise OutcomeUnknownError(value)
        read: dict[str, Callable[[Any], Any]] = {
            "opened": lambda fields: SessionOpened(*fields),
            "session": lambda reason: SessionRefused(SessionRefusal(reason)),
            "done": lambda result: result,
        }
        return Proposed(read[kind](value), 0, 0)

    async def answer(self, payload: bytes) -> bytes:
        """On the leader: what another node asked to have proposed."""
        data, client_id, sequence = msgpack.unpackb(payload)
        try:
            done = await self._node.propose(data, client_id=client_id, sequence=sequence)
        except RefusedError as error:
            return msgpack.packb(["refused", str(error)])
        except OutcomeUnknownError as error:
            return msgpack.packb(["unknown", str(error)])
        if isinstance(result := done.result, SessionOpened):
            return msgpack.packb(["opened", [result.session_id, result.window, result.timeout_ms]])
        if isinstance(result, SessionRefused):
            return msgpack.packb(["session", result.reason])
        return msgpack.packb(["done", result])


class Http:
    """PUT, GET and DELETE /kv/{key}; POST /sessions; GET /status."""

    def __init__(self, node: Node, store: KeyValueStore, leader: Leader) -> None:
        self._node = node
        self._store = store
        self._leader = leader
        self._session = Session(leader)

    def application(self) -> web.Application:
        app = web.Application(middlewares=[said_as_json])
        app.router.add_put("/kv/{key}", self.write)
        app.router.add_delete("/kv/{key}", self.write)
        app.router.add_get("/kv/{key}", self.read)
        app.router.add_post("/sessions", self.open_session)
        app.router.add_get("/status", self.status)
        return app

    async def write(self, request: web.Request) -> web.Response:
        value = await request.read() if request.method == "PUT" else None
        command = msgpack.packb([request.match_info["key"], value])
        version = await self._execute(command, request.headers)
        if isinstance(version, SessionRefused):
            return web.json_response({"error": version.reason}, status=409)
        return web.json_response({"version": version}, status=200 if version else 404)

    async def _execute(self, command: bytes, headers: Any) -> Any:
        if "Session" not in headers:
            return await self._session.propose(command)
        try:
            client_id, sequence = bytes.fromhex(headers["Session"]), int(headers["Sequence"])
        except (KeyError, ValueError):
            raise web.HTTPBadRequest(reason="Session and Sequence go together") from None
        data = session_command(command, sequence)  # one at a time: all before it are known
        return (await self._leader.propose(data, client_id=client_id, sequence=sequence)).result

    async def read(self, request: web.Request) -> web.Response:
        await self._node.read_barrier()
        found = self._store.items.get(request.match_info["key"])
        if found is None:
            return web.json_response({"error": "no such key"}, status=404)
        return web.Response(body=found[1], headers={"Version": str(found[0])})

    async def open_session(self, _: web.Request) -> web.Response:
        opened = (await self._leader.propose(register_command(), client_id=NO_SESSION)).result
        return web.json_response({"session": opened.session_id.hex()}, status=201)

    async def status(self, _: web.Request) -> web.Response:
        return web.json_response({"leads": self._node.is_leader, "leader": self._node.leader_id})


@web.middleware
async def said_as_json(request: web.Request, handler: Any) -> web.StreamResponse:
    """503: nothing happened. 504: it may have; repeat it with the same Sequence, or read."""
    try:
        answer: web.StreamResponse = await handler(request)
    except RefusedError as error:
        return web.json_response({"error": str(error)}, status=503)
    except OutcomeUnknownError as error:
        return web.json_response({"error": str(error)}, status=504)
    return answer


async def serve(node_id: str, founders: list[Founder], http: int, data: Path) -> None:
    """One node, until SIGTERM or SIGINT, or until its storage fails."""
    logging.basicConfig(level=logging.ERROR, format=f"{node_id}: %(message)s")
    address = next(f.address for f in founders if f.node_id == node_id)
    host, _, port = address.rpartition(":")
    directory = DataDirectory.open(data / node_id, node_id)
    member = await open_member(directory, founders=founders, listen=(host, int(port)))
    store = KeyValueStore()

    async def answer(_: str, payload: bytes) -> bytes:
        return await leader.answer(payload)

    node = Node(
        config=CoreConfig(node_id),
        storage=member.storage,
        transport=member.transport,
        state_machine=SessionStateMachine(store),
        on_request=answer,
    )
    leader = Leader(node)
    loop, stopping = asyncio.get_running_loop(), []
    loop.add_signal_handler(signal.SIGTERM, lambda: stopping.append(loop.create_task(node.stop())))
    async with node:
        runner = web.AppRunner(Http(node, store, leader).application())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", http).start()
        print(f"{node_id}: http://127.0.0.1:{http}", flush=True)
        try:
            await node.wait_stopped()
        finally:
            await runner.cleanup()
    directory.close()


# -- a demonstration -----------------------------------------------------------------------------


class Process:
    """One node, started as a user would start it."""

    def __init__(self, node_id: str, founders: str, http: int, data: Path) -> None:
        self.node_id = node_id
        self.url = f"http://127.0.0.1:{http}"
        self._command = [
            sys.executable, __file__, "--node", node_id, "--founders", founders,
            "--http", str(http), "--data", str(data),
        ]  # fmt: skip
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(*self._command)

    async def end(self, how: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(how)
            await self._process.wait()


class Client:
    """Asks one node after the other until one answers; writes in a session of its own."""

    def __init__(self, http: aiohttp.ClientSession, nodes: list[Process]) -> None:
        self._http = http
        self._nodes = nodes
        self._session = ""
        self._sequence = 0

    async def ask(
        self, method: str, path: str, body: bytes | None = None, *, node: int = 0, **more: Any
    ) -> tuple[int, bytes]:
        """503 and 504 are repeated, which is safe for reads, and for writes with a sequence."""
        deadline_s = time.monotonic() + 15
        while True:
            url = self._nodes[node % len(self._nodes)].url + path
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with self._http.request(method, url, data=body, **more) as answer:
                    if answer.status < 503:
                        return answer.status, await answer.read()
            if time.monotonic() > deadline_s:
                sys.exit(f"{method} {path}: nobody answers")
            await asyncio.sleep(0.05)
            node += 1

    async def open_session(self) -> None:
        _, body = await self.ask("POST", "/sessions")
        self._session = json.loads(body)["session"]

    async def write(self, method: str, key: str, value: bytes | None, node: int) -> int | None:
        self._sequence += 1
        return await self.repeat(method, key, value, node)

    async def repeat(self, method: str, key: str, value: bytes | None, node: int) -> int | None:
        """The last write once more, as a client does that got no answer."""
        headers = {"Session": self._session, "Sequence": str(self._sequence)}
        status, body = await self.ask(method, f"/kv/{key}", value, node=node, headers=headers)
        expect(status in (200, 404), f"{method} {key}: {status} {body!r}")
        version: int | None = json.loads(body)["version"]
        return version

    async def leader(self) -> Process:
        while True:
            _, body = await self.ask("GET", "/status")
            for node in self._nodes:
                if node.node_id == json.loads(body)["leader"]:
                    return node
            await asyncio.sleep(0.05)


def expect(condition: bool, what: str) -> None:
    if not condition:
        sys.exit(f"surprise: {what}")


async def demonstrate(client: Client, nodes: list[Process]) -> None:
    await asyncio.gather(*(node.start() for node in nodes))
    leader = await client.leader()
    print(f"three nodes; {leader.node_id} leads")

    await client.open_session()
    for n in range(30):
        version = await client.write("PUT", "counted", b"%d" % n, node=n)
        expect(version == n + 1, f"write {n} made version {version}")
    again = await client.repeat("PUT", "counted", b"29", node=1)
    expect(again == 30, f"a repeat made version {again}")
    print(f"30 writes by three nodes made version {version}; the last one, repeated, still {again}")

    await leader.end(signal.SIGKILL)
    for n in range(30, 60):
        version = await client.write("PUT", "counted", b"%d" % n, node=n)
    expect(version == 60, f"60 writes made version {version}")
    print(f"{leader.node_id} was killed; 30 more writes, each repeated until answered: {version}")

    await leader.start()
    for number, node in enumerate(nodes):
        found = await client.ask("GET", "/kv/counted", node=number)
        expect(found == (200, b"59"), f"{node.node_id} answers {found}")
    print(f"{leader.node_id} is back; a read on any node gives what was written last")

    await client.write("DELETE", "counted", None, node=2)
    status, _ = await client.ask("GET", "/kv/counted", node=1)
    expect(status == 404, f"a deleted key answers {status}")
    print("deleted on one node, gone on another")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


async def run(data: Path) -> None:
    names, ports = ["n1", "n2", "n3"], free_ports(6)
    founders = ",".join(f"{n}=127.0.0.1:{p}" for n, p in zip(names, ports[:3], strict=True))
    nodes = [Process(n, founders, p, data) for n, p in zip(names, ports[3:], strict=True)]
    timeout = aiohttp.ClientTimeout(total=5)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as http:
            await demonstrate(Client(http, nodes), nodes)
    finally:
        await asyncio.gather(*(node.end(signal.SIGTERM) for node in nodes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--node", help="run this node; without it: three, and a demonstration")
    parser.add_argument("--founders", default="", help="id=host:port of each node, by comma")
    parser.add_argument("--http", type=int, default=8001, help="port for clients")
    parser.add_argument("--data", type=Path, default=Path("kv-data"), help="directory of the logs")
    given = parser.parse_args()
    if given.node:
        pairs = [pair.split("=", 1) for pair in given.founders.split(",")]
        founders = [Founder(node_id, address) for node_id, address in pairs]
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve(given.node, founders, given.http, given.data))
        return
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(run(Path(directory)))
    print(f"all as expected, in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
