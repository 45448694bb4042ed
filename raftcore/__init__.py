"""raftcore: a durable Raft library with a pure core.

>>> from raftcore import CoreConfig, Founder, Node, open_member

``Node`` runs one member. It drives a ``StateMachine`` of yours over a ``LogStorage`` and a
``Transport``; ``open_member`` gives the LMDB log and the TCP transport of a data directory. The
protocol itself is ``raftcore.core.Raft``: events in, effects out, no clock and no I/O.
"""

from raftcore.core.config import CoreConfig
from raftcore.core.types import Configuration, Entry, EntryType, Member, SnapshotMeta
from raftcore.errors import (
    AlreadyBootstrappedError,
    BootstrapError,
    EntryTooLargeError,
    ExitCode,
    NotLeaderError,
    OutcomeUnknownError,
    OverloadedError,
    RaftcoreError,
    RefusedError,
    StoppedError,
    StorageError,
    StorageFullError,
    UnknownPeerError,
)
from raftcore.formation import Founder
from raftcore.node import Node
from raftcore.runtime import NodeOptions, Runtime
from raftcore.startup import open_member
from raftcore.statemachine import AppliedPosition, SnapshotSource, StateMachine
from raftcore.status import Counters, NodeStatus, Proposed
from raftcore.storage.base import Identity, LogStorage
from raftcore.storage.directory import DataDirectory
from raftcore.transport.base import Transport

__version__ = "0.1.0"

__all__ = [
    "AlreadyBootstrappedError",
    "AppliedPosition",
    "BootstrapError",
    "Configuration",
    "CoreConfig",
    "Counters",
    "DataDirectory",
    "Entry",
    "EntryTooLargeError",
    "EntryType",
    "ExitCode",
    "Founder",
    "Identity",
    "LogStorage",
    "Member",
    "Node",
    "NodeOptions",
    "NodeStatus",
    "NotLeaderError",
    "OutcomeUnknownError",
    "OverloadedError",
    "Proposed",
    "RaftcoreError",
    "RefusedError",
    "Runtime",
    "SnapshotMeta",
    "SnapshotSource",
    "StateMachine",
    "StoppedError",
    "StorageError",
    "StorageFullError",
    "Transport",
    "UnknownPeerError",
    "open_member",
]
