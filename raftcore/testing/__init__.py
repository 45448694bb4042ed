"""For tests of what is built on raftcore: stores, state machines and whole clusters.

- :class:`StorageConformance` and :func:`check_random_history`: the contract of a ``LogStorage``, as
  tests for your own.
- :func:`check_crash_at_every_operation`: the same store, ended at each of its operations.
- :class:`FaultyStorage`: crashes, errors, hangs and delays at any operation of any store.
- :class:`Cluster`: real nodes over :class:`MemoryNetwork` and :class:`MemoryDisk`, in one process.
- :class:`MemoryLedger`, :class:`StoredLedger`: state machines that remember what they applied.

Nothing here imports pytest. ``docs/testing.md`` shows how it is used.
"""

from raftcore.storage.memory import MemoryDisk, MemoryLog
from raftcore.testing.cluster import Cluster, until
from raftcore.testing.crash_checks import (
    CrashReport,
    WitnessedStorage,
    check_crash_at_every_operation,
    storage_workload,
)
from raftcore.testing.faulty_storage import (
    Fault,
    FaultyStorage,
    Plan,
    SimulatedCrash,
    at,
    never,
    on,
    seeded,
)
from raftcore.testing.machines import LedgerDisk, MemoryLedger, StoredLedger
from raftcore.testing.storage_conformance import StorageConformance
from raftcore.testing.storage_model import check_random_history
from raftcore.transport.memory import MemoryNetwork, MemoryTransport

__all__ = [
    "Cluster",
    "CrashReport",
    "Fault",
    "FaultyStorage",
    "LedgerDisk",
    "MemoryDisk",
    "MemoryLedger",
    "MemoryLog",
    "MemoryNetwork",
    "MemoryTransport",
    "Plan",
    "SimulatedCrash",
    "StorageConformance",
    "StoredLedger",
    "WitnessedStorage",
    "at",
    "check_crash_at_every_operation",
    "check_random_history",
    "never",
    "on",
    "seeded",
    "storage_workload",
    "until",
]
