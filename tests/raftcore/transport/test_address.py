"""host:port."""

from __future__ import annotations

import pytest

from raftcore.transport.address import parse_address


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("127.0.0.1:7000", ("127.0.0.1", 7000)),
        ("node1.example:65535", ("node1.example", 65535)),
        ("[::1]:7000", ("::1", 7000)),
        ("[fe80::1%eth0]:7000", ("fe80::1%eth0", 7000)),
        ("node1.example.:7000", ("node1.example.", 7000)),
        ("knöten.example:7000", ("knöten.example", 7000)),
        ("x" * 63 + ":7000", ("x" * 63, 7000)),
    ],
)
def test_addresses_are_parsed(text: str, parsed: tuple[str, int]) -> None:
    assert parse_address(text) == parsed


@pytest.mark.parametrize(
    "text",
    ["", "host", "host:", ":7000", "host:0", "host:65536", "host:٧", "host:-1", "::1:7000",
     "[]:7000", "host:" + "9" * 10_000],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"port|brackets"):
        parse_address(text)


@pytest.mark.parametrize(
    "host",
    ["a..b", ".", ".a", "x" * 64, "a\0b", "a\nb", "a b", "\u200b", "\ud800", "[a\0b]", "[a..b]"],
)
def test_a_host_that_no_resolver_takes_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match=r"visible|resolver"):
        parse_address(f"{host}:7000")
