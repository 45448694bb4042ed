"""The first figures: three real nodes on this machine, durable, with everything switched on.

Absolute numbers of a small shared machine move by tens of percent: they say what order of magnitude
to expect, not who is faster.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.load import Load, Plan
from guardian.adapters.postgres.embedded import EmbeddedPostgres
from guardian.cli.local_nodes import LocalNode, layout

PASSWORD = "benchmarks-only-password"
SCHEMA = {"type": "object", "properties": {"n": {"type": "string"}}, "required": ["n"]}
CONTENT = json.dumps({"n": "x" * 100})


def _ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Cluster:
    """Three nodes, a session, and what is stored in them."""

    def __init__(self, root: Path, database_url: str) -> None:
        ports = _ports(6)
        self.nodes = layout(
            root,
            list(zip(ports[:3], ports[3:], strict=True)),
            database_url=database_url,
            secret=secrets.token_hex(32),
            password=PASSWORD,
        )
        for node in self.nodes:
            node.environment["GUARDIAN_RATE_PER_ADDRESS"] = "1000000"
            node.environment["GUARDIAN_RATE_PER_KEY"] = "1000000"
            node.environment["GUARDIAN_ACCESS_TTL_S"] = "86400"
        self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15))
        self.headers: dict[str, str] = {}
        self.project = self.schema = self.api_key = ""

    async def ask(self, node: LocalNode, method: str, path: str, body: object = None) -> Any:
        url = f"{node.url}/api/v1{path}"
        async with self.session.request(method, url, json=body, headers=self.headers) as answer:
            answer.raise_for_status()
            return await answer.json()

    async def ready(self, node: LocalNode) -> None:
        while True:
            try:
                async with self.session.get(f"{node.url}/ready") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)

    async def start(self) -> None:
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            await self.ready(node)
        first = self.nodes[0]
        login = {"email": "admin@localhost", "password": PASSWORD}
        token = (await self.ask(first, "POST", "/auth/login", login))["access_token"]
        self.headers = {"Authorization": f"Bearer {token}"}
        project = await self.ask(first, "POST", "/projects", {"name": "bench"})
        self.project, self.api_key = project["id"], project["api_key"]
        schema = await self.ask(first, "POST", "/schemas", {"name": "s", "schema": SCHEMA})
        self.schema = schema["id"]

    async def config(self, key: str) -> str:
        """A new config; the path of its updates."""
        body = {"key": key, "schema_id": self.schema, "content": json.loads(CONTENT)}
        await self.ask(self.nodes[0], "POST", f"/projects/{self.project}/configs", body)
        return f"/api/v1/projects/{self.project}/configs/{key}"

    async def leader(self) -> LocalNode:
        while True:
            for node in self.nodes:
                if node.running:
                    view = await self.ask(node, "GET", "/cluster?consistency=local")
                    if view["role"] == "leader":
                        return node
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        await self.session.close()
        await asyncio.gather(*(asyncio.to_thread(node.stop) for node in self.nodes))


async def _load(plan: Plan) -> Load:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.load",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate(json.dumps(asdict(plan)).encode())
    return Load(**json.loads(out))


def _address(node: LocalNode) -> tuple[str, int]:
    host, _, port = node.url.removeprefix("http://").rpartition(":")
    return host, int(port)


async def _writes(cluster: Cluster, clients: int, seconds: float) -> Load:
    leader = await cluster.leader()
    host, port = _address(leader)
    tag = secrets.token_hex(4)
    paths = [await cluster.config(f"{tag}-{i}") for i in range(clients)]
    return await _load(
        Plan(
            host, port, clients, seconds,
            headers=f"Authorization: {cluster.headers['Authorization']}\r\n",
            writes=tuple((path, CONTENT) for path in paths),
        )
    )  # fmt: skip


async def _reads(cluster: Cluster, connections: int, seconds: float) -> Load:
    host, port = _address(await cluster.leader())
    await cluster.config("read-me")
    path = f"/api/v1/read/{cluster.api_key}/read-me"
    return await _load(Plan(host, port, connections, seconds, path=path))


async def _fail_over(cluster: Cluster, rounds: int) -> list[float]:
    """Seconds from ``kill -9`` of the leader to the next accepted write, asked of the others."""
    path = (await cluster.config("fail-over")).removeprefix("/api/v1")
    version = 1
    found = []
    for turn in range(rounds):
        victim = await cluster.leader()
        others = [node for node in cluster.nodes if node is not victim]
        victim.kill()
        started = time.perf_counter()
        body = {"content": {"n": str(turn)}, "expected_version": version}
        answer = await cluster.ask(others[turn % 2], "PUT", path, body)
        found.append(time.perf_counter() - started)
        version = answer["version"]
        victim.start()
        await cluster.ready(victim)
    return found


def _row(what: str, load: Load) -> str:
    return (
        f"{what:<44}{load.per_second:>9.0f}/s   p50 {load.p50_ms:7.2f} ms   "
        f"p99 {load.p99_ms:7.2f} ms   failures {load.failures}"
    )


async def measure(root: Path, database_url: str, seconds: float) -> None:
    cluster = Cluster(root, database_url)
    try:
        print("starting three nodes ...", flush=True)
        await cluster.start()
        for clients in (1, 64):
            load = await _writes(cluster, clients, seconds)
            print(_row(f"durable updates over HTTP, {clients} in flight", load), flush=True)
        load = await _reads(cluster, 64, seconds)
        print(_row("reads by API key, 64 connections", load), flush=True)
        times = await _fail_over(cluster, 5)
        print(
            f"kill -9 of the leader to the next accepted write: median "
            f"{statistics.median(times) * 1000:.0f} ms "
            f"({min(times) * 1000:.0f} to {max(times) * 1000:.0f}, {len(times)} times)",
            flush=True,
        )
    finally:
        await cluster.stop()


def main(seconds: float = 5.0) -> None:
    """Measure in a temporary directory, with a PostgreSQL of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="guardian-bench-") as directory,
        EmbeddedPostgres(Path(directory) / "pg") as postgres,
    ):
        asyncio.run(measure(Path(directory), postgres.dsn, seconds))
