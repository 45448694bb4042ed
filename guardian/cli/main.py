"""``guardian``: the commands. Each is imported only when it is used, so ``--help`` is quick."""

from __future__ import annotations

import importlib
from typing import Final

import click

_COMMANDS: Final = {
    "serve": "guardian.cli.serve",
    "demo": "guardian.cli.demo",
    "db": "guardian.cli.db",
    "settings": "guardian.cli.show_settings",
}


class LazyGroup(click.Group):
    """A group whose commands live in modules of the same name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = importlib.import_module(module).command
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="guardian-config", prog_name="guardian")
def main() -> None:
    """Guardian: a strongly consistent configuration service.

    \b
    guardian serve      one node, with everything in it
    guardian demo       three nodes on this machine; kill one and watch
    guardian db         the database: migrate, rollback, status, rebuild-projection
    guardian settings   every setting, its value and where it came from

    Exit codes: 0 done, 1 failed, 2 wrong usage, 70 an invariant does not hold, 73 the data
    directory is in use, 74 storage error, 75 disk full, 76 damaged log, 77 unsuitable file
    system, 78 wrong configuration, identity or bootstrap, 130 interrupted.
    """


if __name__ == "__main__":
    main()
