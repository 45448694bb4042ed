"""Errors that users of the library see, each with a stable ``code``.

Three families: *refusals* (nothing happened and nothing will), *outcome unknown* (it may still
happen), and *startup or storage failures* (the node must not run; each has a named exit code). Two
errors stand beside them: a transfer that failed and a new voter that did not catch up, where
something was tried and is known to have ended otherwise.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Process exit codes, after sysexits where one fits. Documented in ``docs/operations.md``."""

    OK = 0
    INVARIANT = 70  #: EX_SOFTWARE: an invariant of the protocol does not hold
    LOCKED = 73  #: another process uses the data directory
    STORAGE_IO = 74  #: EX_IOERR: first storage error, final for this process
    NO_SPACE = 75  #: the disk is full
    LOG_CORRUPT = 76  #: checksum, chain or structure of the log is wrong
    UNSUPPORTED_FS = 77  #: network or otherwise unsuitable file system
    CONFIG = 78  #: EX_CONFIG: identity, bootstrap or settings do not fit


class RaftcoreError(Exception):
    """Base of the library's errors."""

    code = "raftcore_error"


class RefusedError(RaftcoreError):
    """Nothing happened and nothing will: safe to try again elsewhere or later."""

    code = "refused"


class InvalidArgumentError(RefusedError):
    """The caller gave what this call does not take: a value of another type, or out of bounds."""

    code = "invalid_argument"


class NotLeaderError(RefusedError):
    """This node does not lead. ``leader_id`` is a hint, or None when no leader is known."""

    code = "not_leader"

    def __init__(self, leader_id: str | None, detail: str = "") -> None:
        self.leader_id = leader_id
        hint = f"; the leader is {leader_id}" if leader_id else "; no leader is known"
        super().__init__((detail or "this node is not the leader") + hint)


class OverloadedError(RefusedError):
    """A bound was reached (queue, uncommitted bytes, pending reads)."""

    code = "overloaded"


class StorageFullError(RefusedError):
    """This node's disk is nearly full: it takes no new entries as long as that is so."""

    code = "storage_full"


class EntryTooLargeError(RefusedError):
    """The proposal is larger than one entry may be."""

    code = "entry_too_large"


class StoppedError(RefusedError):
    """The node is not running (not started, stopping or stopped)."""

    code = "stopped"


class UnknownPeerError(RefusedError):
    """No member of that name, or none that can be reached."""

    code = "unknown_peer"


class ReadTimeoutError(RefusedError):
    """The position of a read was not confirmed, or not reached, in time. Nothing was read."""

    code = "read_timeout"


class TransferringError(RefusedError):
    """This node hands its leadership over just now: ask ``leader_id`` again in a moment."""

    code = "transferring"

    def __init__(self, leader_id: str | None, detail: str = "") -> None:
        self.leader_id = leader_id
        super().__init__(detail or "leadership is being handed over")


class TransferFailedError(RaftcoreError):
    """Leadership did not go to the target, and will not by this request. No entry is affected."""

    code = "transfer_failed"


class QuarantinedError(RefusedError):
    """This node lost something that it had said was durable: it serves nothing yet (D3)."""

    code = "quarantined"


class ChangeInProgressError(RefusedError):
    """Another change of the members, or a transfer of leadership, is under way."""

    code = "change_in_progress"


class StaleVersionError(RefusedError):
    """The members have changed since they were looked at. ``version`` is that of those now."""

    code = "stale_version"

    def __init__(self, detail: str, version: int) -> None:
        self.version = version
        super().__init__(detail)


class NotReadyError(RefusedError):
    """The leader is too new: nothing of its own term is committed yet (rule 37). Ask again."""

    code = "not_ready"


class InvalidChangeError(RefusedError):
    """The members asked for can not be."""

    code = "invalid_change"


class NotAdmittedError(RefusedError):
    """A node asked to join, and nobody has said yet that it may."""

    code = "not_admitted"


class IncarnationError(RefusedError):
    """The name belongs to a member with another incarnation: a wiped or copied directory."""

    code = "incarnation"


class NotCaughtUpError(RaftcoreError):
    """A new voter did not catch up: it is a member now, but as a learner. Not a refusal: the
    configuration has changed. ``version`` is that of the one in force."""

    code = "not_caught_up"

    def __init__(self, detail: str, version: int) -> None:
        self.version = version
        super().__init__(detail)


class OutcomeUnknownError(RaftcoreError):
    """What was asked for may or may not take effect. Never to be read as "failed" (rule 51)."""

    code = "outcome_unknown"


class SessionExpiredError(OutcomeUnknownError):
    """The session ended while it was not known whether the command had been executed."""

    code = "session_expired"


class StorageError(RaftcoreError):
    """The store can not be used. The first one is final for the process (rule 46)."""

    code = "E_STORAGE_IO"
    exit_code: ExitCode = ExitCode.STORAGE_IO


class NoSpaceError(StorageError):
    code = "E_NO_SPACE"
    exit_code = ExitCode.NO_SPACE


class LockedError(StorageError):
    code = "E_LOCKED"
    exit_code = ExitCode.LOCKED


class LogCorruptError(StorageError):
    code = "E_LOG_CORRUPT"
    exit_code = ExitCode.LOG_CORRUPT


class TruncatedFileError(LogCorruptError):
    code = "E_TRUNCATED"


class GapError(LogCorruptError):
    """The log does not continue where the newest snapshot ends."""

    code = "E_GAP"


class UnsupportedFilesystemError(StorageError):
    code = "E_UNSUPPORTED_FS"
    exit_code = ExitCode.UNSUPPORTED_FS


class IdentityError(StorageError):
    """The directory belongs to another node or cluster, or its identity record is damaged."""

    code = "E_IDENTITY"
    exit_code = ExitCode.CONFIG


class FormatTooNewError(StorageError):
    code = "E_FORMAT_TOO_NEW"
    exit_code = ExitCode.CONFIG


class ForkedError(StorageError):
    """Used in a child process after fork()."""

    code = "E_FORKED"


class BootstrapError(RaftcoreError):
    """This start may not create or join the cluster; ``code`` says why."""

    code = "E_BOOTSTRAP"
    exit_code = ExitCode.CONFIG


class AlreadyBootstrappedError(BootstrapError):
    """The listed peers run a cluster in which this node id has another incarnation (rule 43)."""

    code = "already_bootstrapped"


class RemovedError(RefusedError, BootstrapError):
    """This node's incarnation was removed from the cluster and never comes back (rule 43): what
    needs the cluster is refused, and a start that would join it fails."""

    code = "removed"


class TlsError(RaftcoreError):
    """Certificates, keys or CAs can not be used."""

    code = "E_TLS"
    exit_code = ExitCode.CONFIG


class ListenError(RaftcoreError, OSError):
    """Peers can not be listened to: the address is taken, or not one of this machine."""

    code = "E_LISTEN"
    exit_code = ExitCode.CONFIG


class StateMachineError(RaftcoreError):
    """The state machine broke its contract: the node stops."""

    code = "E_STATE_MACHINE"
    exit_code = ExitCode.INVARIANT


class PlainTransportError(TlsError):
    """Peers would be listened to without TLS where others can connect."""

    code = "E_PLAIN_TRANSPORT"
