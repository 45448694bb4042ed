"""The table of all settings: name, flag, variable, default, parser, meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from guardian.settings.values import (
    one_of,
    parse_addresses,
    parse_admin_password,
    parse_database_url,
    parse_email,
    parse_founders,
    parse_host_port,
    parse_jwt_secret,
    parse_networks,
    parse_node_id,
    parse_peer_address,
    seconds,
    size,
    whole_number,
)


@dataclass(frozen=True, slots=True)
class Setting:
    """One row: what is said about a setting anywhere is said here.

    Args:
        name: attribute of :class:`Settings` and key in the settings file.
        flag: command-line flag, or empty (secrets and rarely used limits have none).
        variable: environment variable.
        default: text given to ``parse``, or None for "not set".
        parse: text to value, raising ValueError.
        help: one sentence.
        unset: what happens when nothing is given and there is no default.
    """

    name: str
    flag: str
    variable: str
    default: str | None
    parse: Callable[[str], Any]
    help: str
    secret: bool = False
    unset: str = ""


def _row(
    name: str,
    default: str | None,
    parse: Callable[[str], Any],
    help_: str,
    *,
    flag: bool = True,
    variable: str = "",
    secret: bool = False,
    unset: str = "",
) -> Setting:
    return Setting(
        name,
        "--" + name.replace("_", "-") if flag else "",
        variable or "GUARDIAN_" + name.upper(),
        default,
        parse,
        help_,
        secret,
        unset,
    )


_BILLION: Final = 1_000_000_000

TABLE: Final[tuple[Setting, ...]] = (
    _row("data_dir", "./guardian-data", Path, "Directory of everything this node keeps."),
    _row("http", "127.0.0.1:8080", parse_host_port, "Address of the HTTP service."),
    _row(
        "http_advertise",
        None,
        parse_peer_address,
        "HTTP address that others are told.",
        unset="the bind address",
    ),
    _row("raft", "127.0.0.1:7000", parse_host_port, "Address for the other nodes."),
    _row(
        "raft_advertise",
        None,
        parse_peer_address,
        "Raft address that others are told.",
        unset="the bind address",
    ),
    _row("node_id", "node1", parse_node_id, "Name of this node in the cluster."),
    _row(
        "bootstrap",
        None,
        parse_founders,
        "Founders of a new cluster: id=host:port[;http=host:port],... For an empty directory.",
        unset="this node alone",
    ),
    _row(
        "join",
        None,
        parse_addresses,
        "Raft addresses of an existing cluster to join: host:port,...",
        unset="-",
    ),
    _row(
        "join_as",
        "voter",
        one_of("voter", "learner"),
        "What this node asks to become: a learner is sent everything and never votes.",
    ),
    _row(
        "admit",
        "all",
        one_of("all", "none"),
        "Which nodes that ask to join this cluster may; none: an administrator has to add them.",
    ),
    _row(
        "raft_tls_certificate",
        None,
        Path,
        "Certificate chain of this node for the other nodes (PEM); it names the node id.",
        unset="no TLS between nodes",
    ),
    _row("raft_tls_key", None, Path, "Key of that certificate (PEM).", unset="-"),
    _row("raft_tls_ca", None, Path, "Authority of all nodes' certificates (PEM).", unset="-"),
    _row(
        "raft_plain",
        "off",
        one_of("off", "on"),
        "Whether nodes may talk without TLS beyond the loopback interface.",
    ),
    _row(
        "database_url",
        None,
        parse_database_url,
        "PostgreSQL to use: postgresql://...",
        variable="DATABASE_URL",
        secret=True,
        unset="embedded PostgreSQL under the data directory",
    ),
    _row(
        "jwt_secret",
        None,
        parse_jwt_secret,
        "Key of the access tokens, 32 bytes or more, the same on all nodes.",
        flag=False,
        secret=True,
        unset="created in the data directory, mode 0600",
    ),
    _row(
        "admin_email",
        "admin@localhost",
        parse_email,
        "The first administrator; ignored when any user exists.",
        flag=False,
    ),
    _row(
        "admin_password",
        None,
        parse_admin_password,
        "Password of the first administrator, 12 bytes or more.",
        flag=False,
        secret=True,
        unset="generated and printed once",
    ),
    _row(
        "registration",
        "closed",
        one_of("open", "closed"),
        "Whether anybody may register, or only admins create users.",
    ),
    _row(
        "metrics",
        None,
        parse_host_port,
        "Separate address for /metrics.",
        unset="on the main port",
    ),
    _row(
        "migrate", "auto", one_of("auto", "off"), "Whether to bring the database schema up to date."
    ),
    _row(
        "access_ttl_s",
        "900",
        whole_number(10, 86_400),
        "Life of an access token, seconds.",
        flag=False,
    ),
    _row(
        "refresh_ttl_s",
        "2592000",
        whole_number(60, 31_536_000),
        "Life of a refresh token, seconds.",
        flag=False,
    ),
    _row(
        "log_level",
        "info",
        one_of("debug", "info", "warning", "error"),
        "Least severity that is logged.",
    ),
    _row("log_format", "json", one_of("json", "text"), "Shape of log lines."),
    _row("heartbeat_ms", "60", whole_number(1, 60_000), "Interval of the leader's heartbeats."),
    _row(
        "election_timeout_ms",
        "300",
        whole_number(2, 600_000),
        "Least silence before an election; each draw is up to twice that.",
    ),
    _row(
        "snapshot_entries",
        "8192",
        whole_number(1, _BILLION),
        "Snapshot after this many log entries.",
    ),
    _row("snapshot_bytes", "64MiB", size(1, 1 << 40), "Snapshot after this much log."),
    _row(
        "trailing_entries",
        "10240",
        whole_number(0, _BILLION),
        "Log entries kept behind a snapshot, for followers that are a little late.",
    ),
    # limits; too many for flags
    _row("body_limit", "1MiB", size(1024, 1 << 30), "Largest request body.", flag=False),
    _row("content_depth", "64", whole_number(1, 200), "Nesting of a document.", flag=False),
    _row(
        "content_members",
        "100000",
        whole_number(1, 10_000_000),
        "Members of a document, all levels together.",
        flag=False,
    ),
    _row("schema_bytes", "1MiB", size(64, 1 << 30), "Largest JSON Schema.", flag=False),
    _row("schema_nodes", "10000", whole_number(1, 10_000_000), "Nodes of a schema.", flag=False),
    _row("schema_depth", "64", whole_number(1, 200), "Nesting of a schema.", flag=False),
    _row("schema_compile_s", "2", seconds(0.1, 60), "Time to compile a schema.", flag=False),
    _row(
        "login_failures_per_account",
        "10",
        whole_number(1, _BILLION),
        "Failed logins of one account in the window.",
        flag=False,
    ),
    _row(
        "login_failures_per_address",
        "50",
        whole_number(1, _BILLION),
        "Failed logins from one address in the window.",
        flag=False,
    ),
    _row("login_window_s", "600", seconds(1, 86_400), "Window of failed logins.", flag=False),
    _row(
        "rate_per_address",
        "5000",
        whole_number(1, _BILLION),
        "Requests per second from one address (IPv6: one /64).",
        flag=False,
    ),
    _row(
        "rate_per_key",
        "5000",
        whole_number(1, _BILLION),
        "Requests per second with one API key.",
        flag=False,
    ),
    _row("request_deadline_s", "10", seconds(0.1, 600), "Time to answer a request.", flag=False),
    _row("body_timeout_s", "10", seconds(0.1, 600), "Time to receive a body.", flag=False),
    _row("head_timeout_s", "10", seconds(0.1, 600), "Time to receive a head.", flag=False),
    _row("keep_alive_s", "60", seconds(0.1, 3600), "Life of an idle connection.", flag=False),
    _row("connections", "10000", whole_number(1, 1_000_000), "Open connections.", flag=False),
    _row(
        "connections_per_address",
        "1024",
        whole_number(1, 1_000_000),
        "Open connections from one address (IPv6: one /64).",
        flag=False,
    ),
    _row(
        "trusted_proxies",
        None,
        parse_networks,
        "Networks whose X-Forwarded-For is believed: 10.0.0.0/8,...",
        flag=False,
        unset="none",
    ),
    _row(
        "database_pool",
        "10",
        whole_number(1, 1000),
        "Connections to PostgreSQL at most.",
        flag=False,
    ),
)
