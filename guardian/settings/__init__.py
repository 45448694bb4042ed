"""Every setting of a node, in one table.

:data:`TABLE` is the only place where a setting's name, flag, variable, default and meaning stand.
The loader, ``--help``, ``guardian settings`` and the documentation are all made from it.

A flag wins over a variable, a variable over the settings file (TOML), the file over the default.
Every variable may be given as ``NAME_FILE`` instead, naming a file that holds the value; an empty
variable counts as not set.
"""

from guardian.settings.describe import (
    REDACTED,
    SettingView,
    describe,
    example_env,
    example_toml,
    settings_reference,
)
from guardian.settings.load import (
    CONFIG_VARIABLE,
    EXIT_CONFIGURATION,
    Settings,
    SettingsError,
    check_shared,
    load_settings,
    unknown_variables,
)
from guardian.settings.options import settings_options
from guardian.settings.table import TABLE, Setting
from guardian.settings.values import Founder, HostPort, parse_host_port

__all__ = [
    "CONFIG_VARIABLE",
    "EXIT_CONFIGURATION",
    "REDACTED",
    "TABLE",
    "Founder",
    "HostPort",
    "Setting",
    "SettingView",
    "Settings",
    "SettingsError",
    "check_shared",
    "describe",
    "example_env",
    "example_toml",
    "load_settings",
    "parse_host_port",
    "settings_options",
    "settings_reference",
    "unknown_variables",
]
