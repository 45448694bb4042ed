"""A node's place in its cluster: from settings to founders, a wish to join, addresses and
certificates, and what speaks against a start.
"""

from __future__ import annotations

import logging

from guardian.adapters.raft.members import HTTP_ATTRIBUTE
from guardian.settings import Settings, SettingsError, check_shared
from raftcore import Founder
from raftcore.core.types import Configuration
from raftcore.errors import PlainTransportError
from raftcore.startup import Join, check_may_found
from raftcore.storage.directory import DataDirectory
from raftcore.transport.tls import TlsOptions, check_plain_allowed

logger = logging.getLogger(__name__)


def check_may_start(settings: Settings, directory: DataDirectory) -> None:
    """Whether this start may listen for the others, and make a member of an empty directory; asked
    before PostgreSQL is started or anything else is made.

    Raises:
        SettingsError: strangers could connect, or others could not find this node.
        BootstrapError: see :func:`raftcore.startup.check_may_found`.
    """
    if tls_of(settings) is None and settings.raft_plain != "on":
        try:
            check_plain_allowed(settings.raft.host)
        except PlainTransportError as error:
            raise SettingsError("GUARDIAN_RAFT_PLAIN", f"is off, and {error}") from error
    if directory.identity is None:
        if settings.join:
            if settings.raft.port == 0 and settings.raft_advertise is None:
                raise SettingsError("GUARDIAN_RAFT", "port 0 needs GUARDIAN_RAFT_ADVERTISE")
            return
        if any(founder.raft.port == 0 for founder in settings.founders()):
            raise SettingsError("GUARDIAN_RAFT", "port 0 needs GUARDIAN_RAFT_ADVERTISE")
        check_may_found(directory, founders_of(settings))


def check_fits_cluster(settings: Settings, configuration: Configuration) -> None:
    """Whether the settings fit the cluster in the directory; what is ignored is logged.

    Raises:
        SettingsError: the cluster has several members, and what they share is not given.
    """
    if len(configuration.members) > 1:
        check_shared(settings)
    if settings.bootstrap is not None:
        founders = {f.id: str(f.raft) for f in settings.bootstrap}
        members = {m.node_id: m.address for m in configuration.members}
        if founders != members:
            logger.warning(
                "GUARDIAN_BOOTSTRAP names %s, the cluster in the directory has %s; the list is "
                "ignored", founders, members,
            )  # fmt: skip


def tls_of(settings: Settings) -> TlsOptions | None:
    """Where the certificates for the other nodes are, if there is TLS between nodes."""
    certificate, key, ca = (
        settings.raft_tls_certificate, settings.raft_tls_key, settings.raft_tls_ca,
    )  # fmt: skip
    if certificate is None or key is None or ca is None:
        return None
    return TlsOptions(certificate, key, ca)


def addresses(settings: Settings) -> tuple[str, str]:
    """Raft and HTTP address, as others are told."""
    return (
        str(settings.raft_advertise or settings.raft),
        str(settings.http_advertise or settings.http),
    )


def join_of(settings: Settings) -> Join | None:
    """The wish to become a member, if there is one; it counts until it is fulfilled."""
    if not settings.join:
        return None
    address, http = addresses(settings)
    return Join(
        targets=[str(target) for target in settings.join],
        address=address,
        voter=settings.join_as == "voter",
        attributes=((HTTP_ATTRIBUTE, http),),
    )


def founders_of(settings: Settings) -> tuple[Founder, ...]:
    return tuple(
        Founder(
            founder.id,
            str(founder.raft),
            ((HTTP_ATTRIBUTE, str(founder.http)),) if founder.http else (),
        )
        for founder in settings.founders()
    )
