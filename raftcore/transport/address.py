"""Addresses: ``host:port``, with IPv6 hosts in brackets."""

from __future__ import annotations


def parse_address(address: str) -> tuple[str, int]:
    """The host and port of ``host:port`` or ``[v6]:port``.

    Raises:
        ValueError: not an address, a port outside 1..65535, or a host that no resolver is asked
            about: with an empty or too long label, or with characters that cannot be seen.
    """
    host, colon, port_text = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{address!r}: an IPv6 host needs brackets")
    if not colon or not host or not (port_text.isascii() and port_text.isdigit()):
        raise ValueError(f"{address!r} is not host:port")
    port = int(port_text) if len(port_text) <= 5 else 0
    if not 0 < port <= 65535:
        raise ValueError(f"{address!r}: the port must be in 1..65535")
    if not host.isprintable() or any(character.isspace() for character in host):
        raise ValueError(f"{address!r}: a host has only visible characters")
    try:
        host.encode("idna")  # what the resolver is asked for
    except UnicodeError as error:
        raise ValueError(f"{address!r}: no resolver takes that host: {error}") from error
    return host, port
