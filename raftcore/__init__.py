"""raftcore: a durable Raft library with a pure core.

>>> from raftcore import CoreConfig, Founder, Node, open_member

``Node`` runs one member. It drives a ``StateMachine`` of yours over a ``LogStorage`` and a
``Transport``; ``open_member`` gives the LMDB log and the TCP transport of a data directory. The
protocol itself is ``raftcore.core.Raft``: events in, effects out, no clock and no I/O.
"""

from raftcore.core.config import CoreConfig
from raftcore.core.types import Configuration, Entry, EntryType, Lease, Member, SnapshotMeta
from raftcore.errors import (
    AlreadyBootstrappedError,
    BootstrapError,
    ChangeInProgressError,
    EntryTooLargeError,
    ExitCode,
    IncarnationError,
    InvalidArgumentError,
    InvalidChangeError,
    ListenError,
    NotAdmittedError,
    NotCaughtUpError,
    NotLeaderError,
    NotReadyError,
    OutcomeUnknownError,
    OverloadedError,
    PlainTransportError,
    QuarantinedError,
    RaftcoreError,
    ReadTimeoutError,
    RefusedError,
    RemovedError,
    StaleVersionError,
    StateMachineError,
    StoppedError,
    StorageError,
    StorageFullError,
    TlsError,
    TransferFailedError,
    TransferringError,
    UnknownPeerError,
)
from raftcore.formation import Founder
from raftcore.metrics import FIGURES, Counters, Figure, HistogramValue, Sample
from raftcore.node import Node
from raftcore.runtime.admission import JoinPolicy
from raftcore.runtime.options import NodeOptions, Runtime
from raftcore.runtime.status import DiskStatus, NodeStatus, Proposed, SnapshotStatus
from raftcore.startup import Join, open_member
from raftcore.statemachine import AppliedPosition, SnapshotSource, StateMachine
from raftcore.storage.base import Identity, LogStorage
from raftcore.storage.directory import DataDirectory
from raftcore.trace import JsonLinesTracer, TraceEvent, Tracer
from raftcore.transport.base import Transport
from raftcore.transport.handshake import Facts
from raftcore.transport.options import TransportOptions
from raftcore.transport.tls import TlsOptions

__version__ = "0.2.0"

__all__ = [
    "FIGURES",
    "AlreadyBootstrappedError",
    "AppliedPosition",
    "BootstrapError",
    "ChangeInProgressError",
    "Configuration",
    "CoreConfig",
    "Counters",
    "DataDirectory",
    "DiskStatus",
    "Entry",
    "EntryTooLargeError",
    "EntryType",
    "ExitCode",
    "Facts",
    "Figure",
    "Founder",
    "HistogramValue",
    "Identity",
    "IncarnationError",
    "InvalidArgumentError",
    "InvalidChangeError",
    "Join",
    "JoinPolicy",
    "JsonLinesTracer",
    "Lease",
    "ListenError",
    "LogStorage",
    "Member",
    "Node",
    "NodeOptions",
    "NodeStatus",
    "NotAdmittedError",
    "NotCaughtUpError",
    "NotLeaderError",
    "NotReadyError",
    "OutcomeUnknownError",
    "OverloadedError",
    "PlainTransportError",
    "Proposed",
    "QuarantinedError",
    "RaftcoreError",
    "ReadTimeoutError",
    "RefusedError",
    "RemovedError",
    "Runtime",
    "Sample",
    "SnapshotMeta",
    "SnapshotSource",
    "SnapshotStatus",
    "StaleVersionError",
    "StateMachine",
    "StateMachineError",
    "StoppedError",
    "StorageError",
    "StorageFullError",
    "TlsError",
    "TlsOptions",
    "TraceEvent",
    "Tracer",
    "TransferFailedError",
    "TransferringError",
    "Transport",
    "TransportOptions",
    "UnknownPeerError",
    "open_member",
]
