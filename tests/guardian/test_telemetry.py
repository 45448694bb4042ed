"""Logs hold one line per event, its request's id, and no secret; metrics stand alone."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from guardian.telemetry import (
    MAX_TEXT,
    Metrics,
    ServerNoiseFilter,
    configure_logging,
    redact,
    request_id,
)

API_KEY = "cfg_" + "a1B2" * 9
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"


@pytest.fixture
def logs() -> Iterator[io.StringIO]:
    """What is logged, in a stream; the root logger is put back afterwards."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    yield stream
    root.handlers[:], root.level = before
    logging.getLogger("aiohttp.server").filters.clear()
    logging.getLogger("aiohttp.access").disabled = False


def test_json_lines_carry_extras_and_the_request_id(logs: io.StringIO) -> None:
    configure_logging("info", "json", logs)
    token = request_id.set("abc")
    logging.getLogger("x").info("hello %s", "there", extra={"status": 200})
    request_id.reset(token)
    logging.getLogger("x").info("outside")
    inside, outside = (json.loads(line) for line in logs.getvalue().splitlines())
    assert inside["message"] == "hello there"
    assert (inside["level"], inside["logger"]) == ("info", "x")
    assert (inside["request_id"], inside["status"]) == ("abc", 200)
    assert inside["time"].endswith("Z")
    assert "request_id" not in outside


def test_a_traceback_is_part_of_its_line(logs: io.StringIO) -> None:
    configure_logging("info", "json", logs)
    try:
        int(API_KEY)
    except ValueError:
        logging.getLogger("x").exception("failed")
    (line,) = logs.getvalue().splitlines()
    traceback = json.loads(line)["traceback"]
    assert "ValueError: invalid literal" in traceback
    assert "cfg_***" in traceback
    assert API_KEY not in line


def test_text_lines_can_not_be_forged(logs: io.StringIO) -> None:
    configure_logging("info", "text", logs)
    logging.getLogger("x").info("user %s", "a\r\n2026-01-01 ERROR forged\x1b[31m")
    (line,) = logs.getvalue().splitlines()
    assert "\\r\\n2026" in line
    assert "\x1b" not in line


def test_the_level_is_obeyed(logs: io.StringIO) -> None:
    configure_logging("warning", "text", logs)
    logging.getLogger("x").info("quiet")
    logging.getLogger("x").warning("loud")
    assert "quiet" not in logs.getvalue()
    assert "loud" in logs.getvalue()


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"/api/v1/read/{API_KEY}/x", API_KEY),
        (f"token {JWT} refused", JWT),
        ("Authorization: Bearer abc.def", "abc.def"),
        ("postgresql://me:pa55@db/x", "pa55"),
        ('{"password": "hunter2"}', "hunter2"),
        ("refresh_token=zzz-1", "zzz-1"),
    ],
)
def test_what_looks_like_a_secret_is_redacted(text: str, secret: str) -> None:
    assert secret not in redact(text)
    assert "***" in redact(text)


def test_long_messages_are_cut() -> None:
    assert len(redact("x" * 1_000_000)) <= MAX_TEXT + 3


def test_a_flood_of_parser_errors_is_cut_and_quotes_nothing() -> None:
    noise = ServerNoiseFilter(per_second=3)

    class BadHttpMessage(Exception):  # noqa: N818 - the name aiohttp gives it
        pass

    error = BadHttpMessage("attacker bytes")
    passed = []
    for _ in range(10):
        exc_info = (BadHttpMessage, error, None)
        record = logging.LogRecord("s", logging.ERROR, "", 0, "Error %s", ("x",), exc_info)
        record.created = 1000.5
        if noise.filter(record):
            passed.append(record)
    assert len(passed) == 3
    assert noise.suppressed == 7
    assert all(record.exc_info is None for record in passed)
    assert passed[0].getMessage() == "unparsable request: BadHttpMessage"


def test_metrics_are_rendered_from_a_registry_of_their_own() -> None:
    one, other = Metrics(), Metrics()
    one.requests.labels("GET", "/x", "200").inc()
    one.info("guardian_build_info", "What runs.", {"version": "1"})
    assert b'guardian_http_requests_total{method="GET",route="/x",status="200"} 1.0' in one.render()
    assert b'guardian_build_info{version="1"} 1.0' in one.render()
    assert b'route="/x"' not in other.render()
    assert b"process_cpu_seconds_total" in other.render()
