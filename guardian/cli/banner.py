"""What a person sees when a node starts: the address, the first password, three lines to try."""

from __future__ import annotations

from guardian.app import Guardian
from guardian.settings import Settings


def show_first_admin(settings: Settings, email: str, password: str) -> None:
    """Said once, when the first administrator is created; a password that was given is not
    repeated."""
    if settings.admin_password is not None:
        print(f"guardian: created the administrator {email}", flush=True)
        return
    print(
        f"guardian: created the administrator {email}\n"
        f"guardian: its password, shown only now: {password}",
        flush=True,
    )


def show_ready(settings: Settings, guardian: Guardian, password: str | None) -> None:
    """Where the node listens and what to type next; in text mode only.

    ``password`` is the administrator's if it was generated at this very start.
    """
    if settings.log_format != "text":
        return
    url = f"http://{guardian.http.address}"
    if password is None:
        hint = "Try it (PASSWORD is the one that was printed at the first start):"
        given = "'$PASSWORD'"
    else:
        hint = "Try it:"
        given = password
    print(
        f"""
Guardian {settings.node_id} is ready at {url}   (API: {url}/docs, health: {url}/ready)

{hint}

  TOKEN=$(curl -s {url}/api/v1/auth/login -H 'Content-Type: application/json' -d '{{"email":"{settings.admin_email}","password":"{given}"}}' | python3 -c 'import json,sys; print(json.load(sys.stdin)["access_token"])')
  curl -s {url}/api/v1/projects -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' -d '{{"name":"shop"}}'
  curl -s {url}/api/v1/cluster -H "Authorization: Bearer $TOKEN"

Ctrl-C stops it; what it stored stays in {settings.data_dir}.
""",  # noqa: E501 - lines to copy must stay whole
        flush=True,
    )
