"""``guardian settings``: every setting, its value and its origin; secrets are not shown."""

from __future__ import annotations

import sys

import click
from rich.console import Console
from rich.table import Table

from guardian.settings import Settings, describe, settings_options

PIPED_WIDTH = 240


@click.command("settings")
@settings_options
def command(settings: Settings) -> None:
    """Show every setting with its value and where it came from. Secrets are redacted."""
    table = Table("setting", "value", "from", "variable", box=None, pad_edge=False)
    for view in describe(settings):
        table.add_row(view.name, view.value, view.origin, view.variable)
    # Nothing is cut when it is piped somewhere.
    Console(width=None if sys.stdout.isatty() else PIPED_WIDTH).print(table)
