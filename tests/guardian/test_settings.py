"""Settings: precedence, files, refusals that name the variable, and the one table behind it all."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from guardian.settings import (
    TABLE,
    Founder,
    HostPort,
    Settings,
    SettingsError,
    describe,
    example_env,
    example_toml,
    load_settings,
    parse_host_port,
    settings_options,
    settings_reference,
    unknown_variables,
)

SECRET = "s" * 32
CLUSTER = {"DATABASE_URL": "postgresql://db/guardian", "GUARDIAN_JWT_SECRET": SECRET}

# The promises of the process's interface: flag, variable, default.
CONTRACT = [
    ("--data-dir", "GUARDIAN_DATA_DIR", "./guardian-data"),
    ("--http", "GUARDIAN_HTTP", "127.0.0.1:8080"),
    ("--http-advertise", "GUARDIAN_HTTP_ADVERTISE", None),
    ("--raft", "GUARDIAN_RAFT", "127.0.0.1:7000"),
    ("--raft-advertise", "GUARDIAN_RAFT_ADVERTISE", None),
    ("--node-id", "GUARDIAN_NODE_ID", "node1"),
    ("--bootstrap", "GUARDIAN_BOOTSTRAP", None),
    ("--join", "GUARDIAN_JOIN", None),
    ("--database-url", "DATABASE_URL", None),
    ("", "GUARDIAN_JWT_SECRET", None),
    ("", "GUARDIAN_ADMIN_EMAIL", "admin@localhost"),
    ("", "GUARDIAN_ADMIN_PASSWORD", None),
    ("--registration", "GUARDIAN_REGISTRATION", "closed"),
    ("--metrics", "GUARDIAN_METRICS", None),
    ("--migrate", "GUARDIAN_MIGRATE", "auto"),
    ("", "GUARDIAN_ACCESS_TTL_S", "900"),
    ("--log-level", "GUARDIAN_LOG_LEVEL", "info"),
    ("--log-format", "GUARDIAN_LOG_FORMAT", "json"),
    ("--heartbeat-ms", "GUARDIAN_HEARTBEAT_MS", "60"),
    ("--election-timeout-ms", "GUARDIAN_ELECTION_TIMEOUT_MS", "300"),
    ("--snapshot-entries", "GUARDIAN_SNAPSHOT_ENTRIES", "8192"),
    ("--snapshot-bytes", "GUARDIAN_SNAPSHOT_BYTES", "64MiB"),
    ("--trailing-entries", "GUARDIAN_TRAILING_ENTRIES", "10240"),
]


@pytest.mark.parametrize(("flag", "variable", "default"), CONTRACT)
def test_the_contract_stands_in_the_table(flag: str, variable: str, default: str | None) -> None:
    (row,) = [row for row in TABLE if row.variable == variable]
    assert (row.flag, row.default) == (flag, default)


def test_table_and_settings_name_the_same_things() -> None:
    assert [row.name for row in TABLE] == [
        field.name for field in fields(Settings) if field.name != "origins"
    ]


def test_defaults_are_acceptable() -> None:
    settings = load_settings(environ={})
    assert settings.data_dir == Path("./guardian-data")
    assert settings.http == HostPort("127.0.0.1", 8080)
    assert settings.snapshot_bytes == 64 * 1024 * 1024
    assert settings.body_limit == 1024 * 1024
    assert settings.founders() == (
        Founder("node1", HostPort("127.0.0.1", 7000), HostPort("127.0.0.1", 8080)),
    )
    assert set(settings.origins.values()) == {"default"}


def test_flag_wins_over_variable_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "guardian.toml"
    file.write_text('node_id = "of-file"\nhttp = "127.0.0.1:1"\nraft = "127.0.0.1:2"\n')
    environ = {
        "GUARDIAN_CONFIG": str(file),
        "GUARDIAN_NODE_ID": "of-variable",
        "GUARDIAN_HTTP": "127.0.0.1:11",
    }
    settings = load_settings({"node_id": "of-flag", "http": None}, environ)
    assert settings.node_id == "of-flag"
    assert settings.http.port == 11
    assert settings.raft.port == 2
    assert settings.log_level == "info"
    assert {name: settings.origins[name] for name in ("node_id", "http", "raft", "migrate")} == {
        "node_id": "flag",
        "http": "GUARDIAN_HTTP",
        "raft": "file",
        "migrate": "default",
    }


def test_any_variable_can_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    settings = load_settings(environ={"GUARDIAN_JWT_SECRET_FILE": str(file)})
    assert settings.jwt_secret == SECRET
    assert settings.origins["jwt_secret"] == "GUARDIAN_JWT_SECRET_FILE"


def test_an_empty_variable_counts_as_not_set() -> None:
    settings = load_settings(environ={"GUARDIAN_JWT_SECRET": "", "GUARDIAN_HTTP": ""})
    assert settings.jwt_secret is None
    assert settings.http.port == 8080


def test_a_port_of_zero_is_allowed_for_listening_only() -> None:
    assert load_settings(environ={"GUARDIAN_HTTP": "127.0.0.1:0"}).http.port == 0
    with pytest.raises(SettingsError, match=r"GUARDIAN_HTTP_ADVERTISE: port 0"):
        load_settings(environ={"GUARDIAN_HTTP_ADVERTISE": "127.0.0.1:0"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:80", HostPort("127.0.0.1", 80)),
        ("[::1]:8080", HostPort("::1", 8080)),
        ("node-1.example.org:1", HostPort("node-1.example.org", 1)),
        ("0.0.0.0:0", HostPort("0.0.0.0", 0)),
    ],
)
def test_addresses_are_read_and_written_alike(text: str, expected: HostPort) -> None:
    assert parse_host_port(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    ["", "8080", ":8080", "::1:8080", "[::1]", "[x]:1", "a:70000", "a:-1", "a:1x", "a b:1", "a:"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_host_port(text)


def test_bootstrap_lists_founders_with_their_http_addresses() -> None:
    text = "n1=10.0.0.1:7000;http=10.0.0.1:8080, n2=[fd00::2]:7000 ,n3=c.example:7000"
    settings = load_settings(environ={"GUARDIAN_BOOTSTRAP": text, **CLUSTER})
    assert settings.bootstrap == (
        Founder("n1", HostPort("10.0.0.1", 7000), HostPort("10.0.0.1", 8080)),
        Founder("n2", HostPort("fd00::2", 7000)),
        Founder("n3", HostPort("c.example", 7000)),
    )
    with pytest.raises(SettingsError, match=r"GUARDIAN_BOOTSTRAP: does not name this node"):
        settings.founders()


REFUSED = [
    ("GUARDIAN_JWT_SECRET", "short"),
    ("GUARDIAN_JWT_SECRET", "s" * 31),
    ("GUARDIAN_ADMIN_PASSWORD", "elevenbytes"),
    ("GUARDIAN_ADMIN_EMAIL", "nobody"),
    ("GUARDIAN_NODE_ID", "-x"),
    ("GUARDIAN_NODE_ID", "a/b"),
    ("GUARDIAN_REGISTRATION", "maybe"),
    ("GUARDIAN_MIGRATE", "yes"),
    ("GUARDIAN_LOG_LEVEL", "loud"),
    ("GUARDIAN_LOG_FORMAT", "xml"),
    ("GUARDIAN_HTTP", "nowhere"),
    ("GUARDIAN_JOIN", "a:0"),
    ("GUARDIAN_BOOTSTRAP", "n1"),
    ("GUARDIAN_BOOTSTRAP", "n1=a:1,n1=b:1"),
    ("GUARDIAN_BOOTSTRAP", "n1=a:1,n2=a:1"),
    ("GUARDIAN_BOOTSTRAP", "n1=a:1;https=a:2"),
    ("GUARDIAN_BOOTSTRAP", "n1=a:1;http=a:2;http=a:3"),
    ("DATABASE_URL", "mysql://x"),
    ("GUARDIAN_ACCESS_TTL_S", "0"),
    ("GUARDIAN_ACCESS_TTL_S", "1e3"),
    ("GUARDIAN_ACCESS_TTL_S", "٣٠"),
    ("GUARDIAN_HEARTBEAT_MS", "-1"),
    ("GUARDIAN_SNAPSHOT_BYTES", "64 parsecs"),
    ("GUARDIAN_BODY_LIMIT", "1"),
    ("GUARDIAN_REQUEST_DEADLINE_S", "nan"),
    ("GUARDIAN_TRUSTED_PROXIES", "10.0.0.0/99"),
    ("GUARDIAN_ELECTION_TIMEOUT_MS", "119"),
]


@pytest.mark.parametrize(("variable", "text"), REFUSED)
def test_a_wrong_value_is_refused_by_its_variable(variable: str, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(environ={variable: text})
    assert caught.value.variable == variable
    assert str(caught.value).startswith(f"{variable}: ")
    assert caught.value.exit_code == 78


@pytest.mark.parametrize(
    "alone", [{"GUARDIAN_BOOTSTRAP": "node1=a:1,node2=b:1"}, {"GUARDIAN_JOIN": "a:1"}]
)
@pytest.mark.parametrize("missing", ["DATABASE_URL", "GUARDIAN_JWT_SECRET"])
def test_several_nodes_need_one_database_and_one_secret(
    alone: dict[str, str], missing: str
) -> None:
    environ = {**alone, **CLUSTER}
    assert load_settings(environ=environ).is_clustered
    del environ[missing]
    with pytest.raises(SettingsError) as caught:
        load_settings(environ=environ)
    assert caught.value.variable == missing


def test_a_bootstrap_list_of_one_needs_nothing_more() -> None:
    settings = load_settings(environ={"GUARDIAN_BOOTSTRAP": "node1=a:1"})
    assert not settings.is_clustered
    assert [str(founder) for founder in settings.founders()] == ["node1=a:1"]


def test_a_variable_and_its_file_contradict_each_other(tmp_path: Path) -> None:
    environ = {"DATABASE_URL": "postgresql://x", "DATABASE_URL_FILE": str(tmp_path / "x")}
    with pytest.raises(SettingsError, match="DATABASE_URL_FILE"):
        load_settings(environ=environ)


def test_an_unreadable_file_is_refused_by_its_variable(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^GUARDIAN_JWT_SECRET_FILE: "):
        load_settings(environ={"GUARDIAN_JWT_SECRET_FILE": str(tmp_path / "absent")})


@pytest.mark.parametrize(
    "text", ["nodeid = 'x'", "node_id = true", "node_id = {a = 1}", "node_id =", "\x00"]
)
def test_a_wrong_settings_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "guardian.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"^GUARDIAN_CONFIG: "):
        load_settings(environ={}, config_file=str(file))


def test_lists_and_numbers_can_stand_in_the_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "guardian.toml"
    file.write_text('heartbeat_ms = 50\ntrusted_proxies = ["10.0.0.0/8", "::1"]\n')
    assert tomllib.loads(file.read_text())["heartbeat_ms"] == 50
    settings = load_settings(environ={}, config_file=str(file))
    assert settings.heartbeat_ms == 50
    assert [str(network) for network in settings.trusted_proxies or ()] == ["10.0.0.0/8", "::1/128"]


def test_a_wrong_secret_is_never_quoted() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(environ={"GUARDIAN_JWT_SECRET": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_secrets_show_neither_in_views_nor_in_repr() -> None:
    environ = {**CLUSTER, "GUARDIAN_ADMIN_PASSWORD": "a long password"}
    settings = load_settings(environ=environ)
    shown = repr(settings) + "".join(view.value for view in describe(settings))
    for secret in environ.values():
        assert secret not in shown
    views = {view.name: view for view in describe(settings)}
    assert views["jwt_secret"].value == "***"
    assert views["jwt_secret"].origin == "GUARDIAN_JWT_SECRET"
    assert len(views) == len(TABLE)


def test_typing_errors_in_variable_names_are_found() -> None:
    environ = {"GUARDIAN_HTPP": "x", "GUARDIAN_HTTP_FILE": "y", "GUARDIAN_CONFIG": "z", "HOME": "/"}
    assert unknown_variables(environ) == ("GUARDIAN_HTPP",)


def test_the_reference_lists_every_variable() -> None:
    reference = settings_reference()
    assert all(f"`{row.variable}`" in reference for row in TABLE)


def test_the_example_file_says_the_defaults(tmp_path: Path) -> None:
    lines = example_toml().splitlines()
    active = [line[2:] for line in lines if " = " in line and not line.endswith('= ""')]
    file = tmp_path / "guardian.toml"
    file.write_text("\n".join(active))
    assert len(active) > 20
    assert load_settings(environ={}, config_file=str(file)) == load_settings(environ={})


def test_the_example_environment_says_the_defaults() -> None:
    lines = [line[2:] for line in example_env().splitlines() if re.match(r"# [A-Z_]+=", line)]
    assert [line.partition("=")[0] for line in lines] == [row.variable for row in TABLE]
    environ = dict(line.split("=", 1) for line in lines)
    assert load_settings(environ=environ) == load_settings(environ={})


def show_command() -> click.Command:
    @click.command()
    @settings_options
    def show(settings: Settings) -> None:
        click.echo(f"{settings.node_id} {settings.http}")

    return show


def test_a_command_takes_the_table_as_options() -> None:
    command = show_command()
    result = CliRunner().invoke(
        command, ["--node-id", "n9"], env={"GUARDIAN_HTTP": "127.0.0.1:9", "GUARDIAN_NODE_ID": "n"}
    )
    assert (result.exit_code, result.output) == (0, "n9 127.0.0.1:9\n")
    usage = CliRunner().invoke(command, ["--help"]).output
    for row in TABLE:
        assert (row.flag in usage) if row.flag else (row.variable not in usage)


def test_a_wrong_option_ends_with_78_and_names_the_variable() -> None:
    result = CliRunner().invoke(show_command(), ["--http", "x"], env={})
    assert result.exit_code == 78
    assert "GUARDIAN_HTTP: " in result.output
