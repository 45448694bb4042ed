"""The demo's client: writes a counter all the time and remembers what was acknowledged."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any

import aiohttp

from guardian.cli.local_nodes import ADMIN_EMAIL

KEY = "demo/counter"
SCHEMA = {
    "type": "object",
    "properties": {"count": {"type": "integer", "minimum": 0}},
    "required": ["count"],
}
PAUSE_S = 0.02
REQUEST_S = 5.0


class DemoError(Exception):
    """The demo can not go on; the message says why."""


class DemoClient:
    """Talks to whichever node answers."""

    def __init__(self, urls: list[str], password: str) -> None:
        self._urls = urls
        self._password = password
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=REQUEST_S), raise_for_status=False
        )
        self._token = ""
        #: keys of one run of the demo mean nothing to the next
        self._run = secrets.token_hex(4)
        self._project = ""
        self._version = 0
        self._count = 0
        self._writes = 0
        self._longest_gap_s = 0.0
        self._written = asyncio.Event()

    async def close(self) -> None:
        await self._session.close()

    async def is_ready(self, url: str) -> bool:
        try:
            async with self._session.get(f"{url}/ready") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def prepare(self) -> None:
        """Log in; the counter of an earlier run, or a project, a schema and a counter to write."""
        await self._log_in()
        projects = (await self._ask("GET", "/projects?limit=1000"))["items"]
        mine = [project for project in projects if project["name"] == "demo"]
        if mine:
            self._project = mine[0]["id"]
            config = await self._ask("GET", self._path)
        else:
            self._project = (await self._ask("POST", "/projects", {"name": "demo"}))["id"]
            schema = await self._ask("POST", "/schemas", {"name": "counter", "schema": SCHEMA})
            config = await self._ask(
                "POST",
                f"/projects/{self._project}/configs",
                {"key": KEY, "schema_id": schema["id"], "content": {"count": 0}},
            )
        self._version, self._count = config["version"], config["content"]["count"]

    @property
    def _path(self) -> str:
        return f"/projects/{self._project}/configs/{KEY.replace('/', '%2F')}"

    async def _log_in(self) -> None:
        body = {"email": ADMIN_EMAIL, "password": self._password}
        self._token = (await self._ask("POST", "/auth/login", body))["access_token"]

    async def _ask(self, method: str, path: str, body: object = None) -> Any:
        """One request to the first node that answers; only for what may be repeated."""
        failure = "no node answers"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for url in self._urls:
                try:
                    status, answer = await self._send(url, method, path, body)
                except (aiohttp.ClientError, TimeoutError):
                    continue
                if status < 300:
                    return answer
                failure = f"{method} {path}: {answer.get('code')} {answer.get('detail')}"
                if status < 500:
                    raise DemoError(failure)
            await asyncio.sleep(0.1)
        raise DemoError(failure)

    async def _send(
        self, url: str, method: str, path: str, body: object, **headers: str
    ) -> tuple[int, Any]:
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        async with self._session.request(
            method, f"{url}/api/v1{path}", json=body, headers=headers
        ) as answer:
            return answer.status, await answer.json(content_type=None)

    # -- the counter ----------------------------------------------------------------------------

    async def write_for_ever(self) -> None:
        """Count up, each write expecting the version of the one before, through any node."""
        turn = 0
        last = time.monotonic()
        while True:
            turn += 1
            if await self._write_once(self._urls[turn % len(self._urls)]):
                now = time.monotonic()
                self._longest_gap_s = max(self._longest_gap_s, now - last)
                last = now
                self._writes += 1
                self._written.set()
            await asyncio.sleep(PAUSE_S)

    async def _write_once(self, url: str) -> bool:
        """One write. A lost answer is asked for again under the same Idempotency-Key."""
        body = {"content": {"count": self._count + 1}, "expected_version": self._version}
        key = f"demo-{self._run}-{self._version}"
        try:
            status, answer = await self._send(
                url, "PUT", self._path, body, **{"Idempotency-Key": key}
            )
        except (aiohttp.ClientError, TimeoutError):
            return False
        if status == 401:
            await self._log_in()
        if status == 409 and answer.get("code") == "idempotency_in_progress":
            return False  # the first try is still under way on that node
        if status == 409:
            raise DemoError(f"a write was lost or doubled: {answer}")
        if 400 <= status < 500 and status != 401:
            raise DemoError(f"a write was refused: {answer.get('code')} {answer.get('detail')}")
        if status != 200:
            return False
        self._count += 1
        self._version = answer["version"]
        return True

    async def until_written(self) -> None:
        """Until one more write is acknowledged."""
        self._written.clear()
        async with asyncio.timeout(30):
            await self._written.wait()

    def summary(self) -> str:
        return (
            f"{self._writes} writes acknowledged; longest time without one: "
            f"{self._longest_gap_s * 1000:.0f} ms"
        )

    async def check_nothing_lost(self) -> None:
        """The counter, read linearizably, is at least what was acknowledged."""
        acknowledged = self._count
        config = await self._ask("GET", self._path)
        if config["content"]["count"] < acknowledged:
            raise DemoError(f"{acknowledged} was acknowledged, {config['content']} is stored")

    # -- looking --------------------------------------------------------------------------------

    async def views(self) -> dict[str, Any]:
        """``GET /cluster`` of every node that answers, by URL."""

        async def view(url: str) -> tuple[str, Any]:
            try:
                status, answer = await self._send(url, "GET", "/cluster", None)
            except (aiohttp.ClientError, TimeoutError):
                return url, None
            return url, answer if status == 200 else None

        answers = await asyncio.gather(*(view(url) for url in self._urls))
        return {url: answer for url, answer in answers if answer is not None}

    async def until_caught_up(self, url: str) -> None:
        """Until that node has applied what is committed elsewhere now."""
        views = await self.views()
        target = max(view["commit_index"] for view in views.values())
        async with asyncio.timeout(30):
            while True:
                view = (await self.views()).get(url)
                if view is not None and view["applied_index"] >= target:
                    return
                await asyncio.sleep(0.05)
