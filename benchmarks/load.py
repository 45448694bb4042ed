"""Closed-loop load over keep-alive connections, from a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Load:
    """What one run of load saw."""

    requests: int
    failures: int
    seconds: float
    p50_ms: float
    p99_ms: float

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


@dataclass(frozen=True)
class Plan:
    """What to ask, how often at once, for how long. ``writes`` are (path, body) per connection."""

    host: str
    port: int
    connections: int
    seconds: float
    path: str = ""
    headers: str = ""
    writes: tuple[tuple[str, str], ...] = ()


def _request(plan: Plan, path: str, body: bytes | None) -> bytes:
    method = "GET" if body is None else "PUT"
    head = f"{method} {path} HTTP/1.1\r\nHost: {plan.host}:{plan.port}\r\n{plan.headers}"
    if body is None:
        return f"{head}\r\n".encode()
    length = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + length).encode() + body


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head[9:12])
    at = head.lower().index(b"content-length:")
    length = int(head[at + 15 : head.index(b"\r\n", at)])
    return status, await reader.readexactly(length) if length else b""


async def _reader(plan: Plan, end: float, times: list[float]) -> int:
    stream, writer = await asyncio.open_connection(plan.host, plan.port)
    request = _request(plan, plan.path, None)
    failures = 0
    while (started := time.perf_counter()) < end:
        writer.write(request)
        status, _ = await _answer(stream)
        times.append(time.perf_counter() - started)
        failures += status != 200
    writer.close()
    return failures


async def _writer(plan: Plan, path: str, content: str, end: float, times: list[float]) -> int:
    """Updates of one config, each expecting the version that the one before gave."""
    stream, writer = await asyncio.open_connection(plan.host, plan.port)
    version, failures = 1, 0
    while (started := time.perf_counter()) < end:
        body = f'{{"content":{content},"expected_version":{version}}}'.encode()
        writer.write(_request(plan, path, body))
        status, answer = await _answer(stream)
        times.append(time.perf_counter() - started)
        if status == 200:
            version = json.loads(answer)["version"]
        else:
            failures += 1
    writer.close()
    return failures


async def run(plan: Plan, warm_up_s: float = 1.0) -> Load:
    """Run ``plan`` after a warm-up that is not counted."""
    times: list[float] = []
    end = time.perf_counter() + warm_up_s + plan.seconds
    if plan.writes:
        work = [_writer(plan, path, content, end, times) for path, content in plan.writes]
    else:
        work = [_reader(plan, end, times) for _ in range(plan.connections)]
    tasks = [asyncio.create_task(one) for one in work]
    await asyncio.sleep(warm_up_s)
    times.clear()
    started = time.perf_counter()
    failures = sum(await asyncio.gather(*tasks))
    seconds = time.perf_counter() - started
    ordered = sorted(times)
    return Load(
        len(ordered),
        failures,
        seconds,
        ordered[len(ordered) // 2] * 1000,
        ordered[int(len(ordered) * 0.99)] * 1000,
    )


def main() -> None:
    """A plan as JSON on standard input, what it saw as JSON on standard output."""
    raw = json.loads(sys.stdin.read())
    raw["writes"] = tuple((path, content) for path, content in raw.get("writes", ()))
    print(json.dumps(asdict(asyncio.run(run(Plan(**raw))))))


if __name__ == "__main__":
    main()
