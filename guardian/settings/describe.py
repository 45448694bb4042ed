"""The settings for people: ``guardian settings`` and the reference in the documentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from guardian.settings.load import Settings
from guardian.settings.table import TABLE, Setting

REDACTED: Final = "***"


@dataclass(frozen=True, slots=True)
class SettingView:
    """A row of ``guardian settings``."""

    name: str
    variable: str
    value: str
    origin: str


def describe(settings: Settings) -> list[SettingView]:
    """Every setting with its value and origin; secrets are redacted."""
    return [
        SettingView(
            row.name,
            row.variable,
            _shown(row, getattr(settings, row.name)),
            settings.origins.get(row.name, "default"),
        )
        for row in TABLE
    ]


def _shown(row: Setting, value: object) -> str:
    if value is None:
        return f"({row.unset})" if row.unset else ""
    if row.secret:
        return REDACTED
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    return str(value)


def settings_reference() -> str:
    """The table of all settings as Markdown, for the documentation."""
    lines = ["| flag | variable | default | meaning |", "|---|---|---|---|"]
    for row in TABLE:
        flag = f"`{row.flag}`" if row.flag else ""
        default = f"`{row.default}`" if row.default is not None else row.unset
        lines.append(f"| {flag} | `{row.variable}` | {default} | {row.help} |")
    return "\n".join(lines) + "\n"


def example_toml() -> str:
    """A settings file in which every setting stands, commented out, at its default."""
    return "".join(
        f"# {row.help}\n# {row.name} = {_toml(row)}\n\n" for row in TABLE if not row.secret
    )


def example_env() -> str:
    """A ``.env`` file in which every variable stands, commented out, at its default."""
    return "".join(
        f"# {row.help}{_otherwise(row)}\n# {row.variable}={row.default or ''}\n\n" for row in TABLE
    )


def _toml(row: Setting) -> str:
    default = row.default or ""
    return default if default.isdigit() else f'"{default}"'


def _otherwise(row: Setting) -> str:
    return f" Otherwise: {row.unset}." if row.unset not in {"", "-"} else ""
