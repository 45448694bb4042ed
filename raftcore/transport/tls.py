"""Mutual TLS between nodes: certificates, who they are for, and how they are renewed.

Both sides show a certificate that the cluster's CA signed. It must carry the node's id: as a
``DNS`` name or a ``URI`` among its subject alternative names, or as its common name if it has no
such names. Addresses are not compared: a node may move, and what Raft has to know is *who* it talks
to (rule 52).

A renewed certificate is used for new connections; standing ones keep theirs, as they keep the trust
that they were made with.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from raftcore.errors import PlainTransportError, TlsError
from raftcore.transport.handshake import HandshakeRefusedError, RefusalCode

log = logging.getLogger("raftcore.transport")

_Stamps = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """Where a node's certificate is.

    Args:
        certificate: PEM file with the node's certificate and what leads from it to the CA.
        key: PEM file with its private key, without a passphrase.
        ca: PEM file with the CA's certificates. All that they signed is taken for a node of this
            cluster, so it should be a CA of the cluster's own.
        reload_interval_s: how often the files are looked at for a change.
    """

    certificate: str | os.PathLike[str]
    key: str | os.PathLike[str]
    ca: str | os.PathLike[str]
    reload_interval_s: float = 30.0

    def __post_init__(self) -> None:
        if self.reload_interval_s <= 0:
            raise ValueError(f"reload_interval_s must be above 0, not {self.reload_interval_s}")


@dataclass(frozen=True, slots=True)
class _Contexts:
    server: ssl.SSLContext
    client: ssl.SSLContext
    stamps: _Stamps


class TlsContexts:
    """The TLS settings in use, exchanged as a whole when the files change.

    Raises (on construction):
        TlsError: a file can not be read or used, or the key is not that of the certificate.
    """

    def __init__(self, options: TlsOptions) -> None:
        self.options = options
        self._current = _load(options)
        self._seen = self._current.stamps

    @property
    def server(self) -> ssl.SSLContext:
        """For connections that are accepted from now on."""
        return self._current.server

    @property
    def client(self) -> ssl.SSLContext:
        """For connections that are dialled from now on."""
        return self._current.client

    def reload(self) -> None:
        """Read the files again; new connections use what they say. Blocks on the disk.

        Raises:
            TlsError: they can not be used; what was in use stays in use.
        """
        self._current = _load(self.options)
        self._seen = self._current.stamps

    def reload_if_changed(self) -> bool:
        """:meth:`reload`, if a file is another than at the last look; whether it was tried.

        What can not be used is tried again only when it changes again.
        """
        try:
            stamps = _stamps(self.options)
        except OSError as error:
            raise TlsError(f"looking for new certificates: {error}") from error
        if stamps == self._seen:
            return False
        self._seen = stamps
        self.reload()
        return True


def _stamps(options: TlsOptions) -> _Stamps:
    stats = [os.stat(path) for path in (options.certificate, options.key, options.ca)]
    return tuple((s.st_mtime_ns, s.st_size, s.st_ino) for s in stats)


def _load(options: TlsOptions) -> _Contexts:
    try:
        # Before the contents: what is replaced in between is then loaded once too often.
        stamps = _stamps(options)
        server = _context(options, ssl.PROTOCOL_TLS_SERVER)
        client = _context(options, ssl.PROTOCOL_TLS_CLIENT)
    except OSError as error:  # ssl.SSLError is one
        files = ", ".join(str(Path(f)) for f in (options.certificate, options.key, options.ca))
        raise TlsError(f"can not use {files}: {error}") from error
    return _Contexts(server, client, stamps)


def _context(options: TlsOptions, protocol: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # certificates are for node ids, see check_certificate
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(options.ca)
    # An empty password, so that an encrypted key is an error and not a question on the terminal.
    context.load_cert_chain(options.certificate, options.key, password="")
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        # Tickets would let a connection resume under a certificate that has been exchanged since.
        context.num_tickets = 0
    return context


def certificate_names(certificate: Mapping[str, Any]) -> frozenset[str]:
    """The node ids that a verified certificate (as ``getpeercert()`` gives it) is for."""
    alternatives = certificate.get("subjectAltName", ())
    names = {text for kind, text in alternatives if kind in ("DNS", "URI")}
    if names:
        return frozenset(names)
    subject = certificate.get("subject", ())
    return frozenset(text for part in subject for kind, text in part if kind == "commonName")


def check_certificate(transport: asyncio.BaseTransport, node_id: str) -> None:
    """Whether the other side's certificate, if the connection has TLS, is for ``node_id``.

    Raises:
        HandshakeRefusedError: it is for somebody else.
    """
    if transport.get_extra_info("sslcontext") is None:
        return
    names = certificate_names(cast("Mapping[str, Any]", transport.get_extra_info("peercert") or {}))
    if node_id not in names:
        known = ", ".join(sorted(names)) or "nobody"
        raise HandshakeRefusedError(
            RefusalCode.CERTIFICATE, f"the certificate is for {known}, not for {node_id}"
        )


def check_own_certificate(options: TlsOptions, node_id: str) -> None:
    """Whether the other members would take us for ``node_id``, found by asking ourselves.

    Raises:
        TlsError: the certificate is for somebody else, or can not be used for both sides of a
            connection.
    """
    contexts = TlsContexts(options)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = contexts.server.wrap_bio(up, down, server_side=True)
    client = contexts.client.wrap_bio(down, up)
    try:
        _shake_hands(client, server)
    except ssl.SSLError as error:
        raise TlsError(
            f"the other members would refuse {options.certificate}: {error.reason or error}"
        ) from error
    names = certificate_names(cast("Mapping[str, Any]", client.getpeercert() or {}))
    if node_id not in names:
        known = ", ".join(sorted(names)) or "nobody"
        raise TlsError(f"{options.certificate} is for {known}, and this node is {node_id}")


def _shake_hands(client: ssl.SSLObject, server: ssl.SSLObject) -> None:
    waiting = [client, server]
    while waiting:
        side = waiting.pop(0)
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(side)


def check_plain_allowed(host: str) -> None:
    """Whether a node may listen on ``host`` without TLS: only where nobody else can connect.

    Raises:
        PlainTransportError: others can.
    """
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback:
        raise PlainTransportError(
            f"peers would be listened to on {host or 'all addresses'} without TLS: whoever can "
            "connect there could vote and write. Give certificates, or allow it explicitly"
        )
