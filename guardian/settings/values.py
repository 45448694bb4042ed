"""Values of settings, and how each is read from text.

Parsers raise ValueError with a sentence for people; the loader adds the variable's name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from guardian.domain.keys import (
    MAX_PASSWORD_BYTES,
    MIN_PASSWORD_BYTES,
    is_email,
    normal_password,
)

MIN_SECRET_BYTES: Final = 32

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class HostPort:
    """A TCP address. ``host`` is without brackets, ``port`` 0 lets the kernel choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Founder:
    """One entry of the bootstrap list. ``http`` is learnt from the member itself if not given."""

    id: str
    raft: HostPort
    http: HostPort | None = None

    def __str__(self) -> str:
        return f"{self.id}={self.raft}" + (f";http={self.http}" if self.http else "")


_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
_NODE_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_SIZE = re.compile(r"([0-9]{1,15})\s*(|B|KB|MB|GB|KiB|MiB|GiB)")
_SIZE_UNITS: Final = {
    "": 1,
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
}


def parse_host_port(text: str) -> HostPort:
    """``host:port``, with an IPv6 host in brackets."""
    if text.startswith("["):
        host, closing, rest = text[1:].partition("]")
        if not closing or not rest.startswith(":"):
            raise ValueError("expected [address]:port")
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError("the brackets do not hold an IPv6 address") from None
        port_text = rest[1:]
    else:
        host, colon, port_text = text.rpartition(":")
        if not colon:
            raise ValueError("expected host:port")
        if ":" in host:
            raise ValueError("an IPv6 address stands in brackets: [::1]:8080")
        if not _HOST.fullmatch(host):
            raise ValueError("the host is not a name or an address")
    if not (port_text.isascii() and port_text.isdigit()) or int(port_text) > 65_535:
        raise ValueError("the port is not a number from 0 to 65535")
    return HostPort(host, int(port_text))


def parse_peer_address(text: str) -> HostPort:
    """A ``host:port`` that others connect to: the port is a real one."""
    address = parse_host_port(text)
    if address.port == 0:
        raise ValueError("port 0 can not be connected to")
    return address


def parse_node_id(text: str) -> str:
    if not _NODE_ID.fullmatch(text):
        raise ValueError("1 to 64 letters, digits, '.', '_' or '-', beginning and ending plainly")
    return text


def parse_founders(text: str) -> tuple[Founder, ...]:
    """``id=host:port[;http=host:port],...``"""
    founders = tuple(_parse_founder(part.strip()) for part in text.split(",") if part.strip())
    for what, values in (
        ("id", [founder.id for founder in founders]),
        ("address", [str(founder.raft) for founder in founders]),
    ):
        if len(set(values)) != len(values):
            raise ValueError(f"an {what} occurs twice")
    return founders


def _parse_founder(text: str) -> Founder:
    head, *attributes = text.split(";")
    node_id, equals, address = head.partition("=")
    if not equals:
        raise ValueError("expected id=host:port[;http=host:port],...")
    http: HostPort | None = None
    for attribute in attributes:
        name, equals, value = attribute.partition("=")
        if name.strip() != "http" or not equals or http is not None:
            raise ValueError("after ';' only one http=host:port is known")
        http = parse_peer_address(value.strip())
    return Founder(parse_node_id(node_id.strip()), parse_peer_address(address.strip()), http)


def parse_addresses(text: str) -> tuple[HostPort, ...]:
    return tuple(parse_peer_address(part.strip()) for part in text.split(",") if part.strip())


def parse_networks(text: str) -> tuple[IPNetwork, ...]:
    return tuple(
        ipaddress.ip_network(part.strip(), strict=False) for part in text.split(",") if part.strip()
    )


def parse_size(text: str) -> int:
    """Bytes: ``67108864``, ``64MiB``, ``10 MB``."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError("expected a number of bytes, or one with KiB, MiB, GiB, KB, MB or GB")
    return int(match[1]) * _SIZE_UNITS[match[2]]


def whole_number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        stripped = text.strip()
        if not re.fullmatch(r"[0-9]{1,15}", stripped) or not low <= int(stripped) <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
        return int(stripped)

    return parse


def size(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = parse_size(text)
        if not low <= value <= high:
            raise ValueError(f"expected {low} to {high} bytes")
        return value

    return parse


def seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text.strip()):
            raise ValueError("expected seconds, as 10 or 2.5")
        value = float(text)
        if not low <= value <= high:
            raise ValueError(f"expected {low:g} to {high:g} seconds")
        return value

    return parse


def one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        word = text.strip().lower()
        if word not in words:
            raise ValueError("expected one of " + ", ".join(words))
        return word

    return parse


def parse_jwt_secret(text: str) -> str:
    if len(text.encode()) < MIN_SECRET_BYTES:
        raise ValueError(f"{MIN_SECRET_BYTES} bytes or more are needed")
    return text


def parse_admin_password(text: str) -> str:
    if normal_password(text) is None:
        raise ValueError(f"{MIN_PASSWORD_BYTES} to {MAX_PASSWORD_BYTES} bytes of UTF-8 are needed")
    return text


def parse_database_url(text: str) -> str:
    if not text.startswith(("postgresql://", "postgres://")):
        raise ValueError("expected postgresql://...")
    return text


def parse_email(text: str) -> str:
    if not is_email(text):
        raise ValueError("expected an e-mail address")
    return text
