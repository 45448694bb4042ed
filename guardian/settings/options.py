"""The settings as options of a click command."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from guardian.settings.load import (
    CONFIG_VARIABLE,
    EXIT_CONFIGURATION,
    SettingsError,
    load_settings,
)
from guardian.settings.table import TABLE

CONFIG_FLAG: Final = "--config"

R = TypeVar("R")


class SettingsRefused(click.ClickException):
    """A setting is missing or wrong."""

    exit_code = EXIT_CONFIGURATION


def settings_options(command: Callable[..., R]) -> Callable[..., R]:
    """Give a click command all flags of :data:`TABLE` and ``--config``.

    The command is called with ``settings=Settings`` in place of the flags; a wrong setting ends the
    process with exit code 78 and a line naming the variable.
    """

    @functools.wraps(command)
    def run(*args: Any, **given: Any) -> R:
        flags = {row.name: given.pop(row.name) for row in TABLE if row.flag}
        try:
            settings = load_settings(flags, config_file=given.pop("config"))
        except SettingsError as error:
            raise SettingsRefused(str(error)) from error
        return command(*args, settings=settings, **given)

    decorated: Callable[..., R] = run
    for row in reversed([row for row in TABLE if row.flag]):
        default = row.default if row.default is not None else row.unset
        text = f"{row.help} [{row.variable}; default: {default}]"
        decorated = click.option(row.flag, row.name, default=None, metavar="VALUE", help=text)(
            decorated
        )
    text = f"Settings file (TOML). [{CONFIG_VARIABLE}]"
    return click.option(CONFIG_FLAG, "config", default=None, metavar="FILE", help=text)(decorated)
