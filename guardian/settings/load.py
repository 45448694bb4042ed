"""From flags, environment and file to :class:`Settings`."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from guardian.settings.table import TABLE, Setting
from guardian.settings.values import Founder, HostPort, IPNetwork

EXIT_CONFIGURATION: Final = 78  #: EX_CONFIG of sysexits.h
CONFIG_VARIABLE: Final = "GUARDIAN_CONFIG"
#: variables of ours that are no settings of a node: its event loop, the embedded server's programs
_READ_ELSEWHERE: Final = ("GUARDIAN_LOOP", "GUARDIAN_PG_BIN")
MAX_SECRET_FILE_BYTES: Final = 64 * 1024


class SettingsError(Exception):
    """A setting is missing or wrong. The node does not start.

    Args:
        variable: the environment variable that sets it, for people to look up.
        message: what is wrong with it; never holds a secret's value.
    """

    exit_code: Final = EXIT_CONFIGURATION

    def __init__(self, variable: str, message: str) -> None:
        self.variable = variable
        self.message = message
        super().__init__(f"{variable}: {message}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a node; see :data:`TABLE` for what each means."""

    data_dir: Path
    http: HostPort
    http_advertise: HostPort | None
    raft: HostPort
    raft_advertise: HostPort | None
    node_id: str
    bootstrap: tuple[Founder, ...] | None
    join: tuple[HostPort, ...] | None
    join_as: str
    admit: str
    raft_tls_certificate: Path | None
    raft_tls_key: Path | None
    raft_tls_ca: Path | None
    raft_plain: str
    database_url: str | None = field(repr=False)
    jwt_secret: str | None = field(repr=False)
    admin_email: str
    admin_password: str | None = field(repr=False)
    registration: str
    metrics: HostPort | None
    migrate: str
    access_ttl_s: int
    refresh_ttl_s: int
    log_level: str
    log_format: str
    heartbeat_ms: int
    election_timeout_ms: int
    snapshot_entries: int
    snapshot_bytes: int
    trailing_entries: int
    body_limit: int
    content_depth: int
    content_members: int
    schema_bytes: int
    schema_nodes: int
    schema_depth: int
    schema_compile_s: float
    login_failures_per_account: int
    login_failures_per_address: int
    login_window_s: float
    rate_per_address: int
    rate_per_key: int
    request_deadline_s: float
    body_timeout_s: float
    head_timeout_s: float
    keep_alive_s: float
    connections: int
    connections_per_address: int
    trusted_proxies: tuple[IPNetwork, ...] | None
    database_pool: int
    #: where each value came from, by name: ``flag``, a variable's name, ``file`` or ``default``
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def is_clustered(self) -> bool:
        """Whether this node is, or is about to be, one of several."""
        return bool(self.join) or len(self.bootstrap or ()) > 1

    def founders(self) -> tuple[Founder, ...]:
        """The founders of a new cluster. Asked only on an empty directory without ``join``.

        Raises:
            SettingsError: the bootstrap list does not name this node.
        """
        if not self.bootstrap:
            raft = self.raft_advertise or self.raft
            return (Founder(self.node_id, raft, self.http_advertise or self.http),)
        if self.node_id not in {founder.id for founder in self.bootstrap}:
            raise SettingsError("GUARDIAN_BOOTSTRAP", f"does not name this node, {self.node_id!r}")
        return self.bootstrap


def load_settings(
    flags: Mapping[str, str | None] | None = None,
    environ: Mapping[str, str] | None = None,
    config_file: str | None = None,
) -> Settings:
    """Settings from flags, environment, file and defaults.

    Args:
        flags: by setting name; None means not given.
        environ: the environment, by default the process's.
        config_file: the TOML file; by default what GUARDIAN_CONFIG names, if anything.

    Raises:
        SettingsError: naming the variable that is missing or wrong.
    """
    flags = flags or {}
    environ = os.environ if environ is None else environ
    in_file = _read_config(config_file or environ.get(CONFIG_VARIABLE) or None)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for setting in TABLE:
        text, origin = _find(setting, flags, environ, in_file)
        origins[setting.name] = origin
        values[setting.name] = None if text is None else _parsed(setting, text)
    settings = Settings(**values, origins=origins)
    _check_together(settings)
    return settings


def unknown_variables(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """``GUARDIAN_*`` variables that mean nothing here: typing errors to warn about."""
    environ = os.environ if environ is None else environ
    known = {CONFIG_VARIABLE, *_READ_ELSEWHERE} | {row.variable for row in TABLE}
    known |= {f"{name}_FILE" for name in known}
    return tuple(sorted(n for n in environ if n.startswith("GUARDIAN_") and n not in known))


def _find(
    setting: Setting,
    flags: Mapping[str, str | None],
    environ: Mapping[str, str],
    in_file: Mapping[str, str],
) -> tuple[str | None, str]:
    given = flags.get(setting.name)
    if given is not None:
        return given, "flag"
    variable, file_variable = setting.variable, f"{setting.variable}_FILE"
    value, path = environ.get(variable), environ.get(file_variable)
    if value and path:
        raise SettingsError(variable, f"is set together with {file_variable}; one of them goes")
    if value:
        return value, variable
    if path:
        return _read_value(file_variable, path), file_variable
    if setting.name in in_file:
        return in_file[setting.name], "file"
    return setting.default, "default"


def _read_value(variable: str, path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_SECRET_FILE_BYTES + 1)
        text = raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(variable, f"the file can not be read: {error}") from error
    if len(raw) > MAX_SECRET_FILE_BYTES:
        raise SettingsError(variable, f"the file is larger than {MAX_SECRET_FILE_BYTES} bytes")
    return text.rstrip("\r\n")


def _read_config(path: str | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        with Path(path).open("rb") as file:
            document = tomllib.load(file)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(CONFIG_VARIABLE, f"the file can not be read: {error}") from error
    known = {setting.name for setting in TABLE}
    texts: dict[str, str] = {}
    for name, value in document.items():
        if name not in known:
            raise SettingsError(CONFIG_VARIABLE, f"{name!r} in the file is not a setting")
        texts[name] = _toml_text(name, value)
    return texts


def _toml_text(name: str, value: object) -> str:
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ",".join(value)
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise SettingsError(CONFIG_VARIABLE, f"{name!r} in the file must be a string or a number")


def _parsed(setting: Setting, text: str) -> Any:
    try:
        return setting.parse(text)
    except ValueError as error:
        shown = "" if setting.secret else f" ({text[:80]!r})"
        raise SettingsError(setting.variable, f"{error}{shown}") from None


def check_shared(settings: Settings) -> None:
    """What all nodes of a cluster share must be given to each of them.

    Raises:
        SettingsError: naming the variable that is missing.
    """
    reason = "is needed with several nodes: all of them share one PostgreSQL and one secret"
    if settings.database_url is None:
        raise SettingsError("DATABASE_URL", reason)
    if settings.jwt_secret is None:
        raise SettingsError("GUARDIAN_JWT_SECRET", reason)


def _check_together(settings: Settings) -> None:
    """Rules over several settings."""
    if settings.is_clustered:
        check_shared(settings)
    tls = {
        "GUARDIAN_RAFT_TLS_CERTIFICATE": settings.raft_tls_certificate,
        "GUARDIAN_RAFT_TLS_KEY": settings.raft_tls_key,
        "GUARDIAN_RAFT_TLS_CA": settings.raft_tls_ca,
    }
    missing = [variable for variable, path in tls.items() if path is None]
    if missing and len(missing) < len(tls):
        raise SettingsError(missing[0], f"is needed too: TLS takes {', '.join(tls)}")
    if settings.election_timeout_ms < 2 * settings.heartbeat_ms:
        raise SettingsError(
            "GUARDIAN_ELECTION_TIMEOUT_MS", "must be at least twice GUARDIAN_HEARTBEAT_MS"
        )


assert {row.name for row in TABLE} == {f.name for f in fields(Settings)} - {"origins"}
