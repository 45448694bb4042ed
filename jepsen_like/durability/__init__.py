"""Proof of durability on real processes, which ``kill -9`` cannot give: it keeps the page cache.

Two checks on a program that runs unchanged under a tracer (Linux; only Python is needed):

* *ordering*: no vote, acknowledgement or client reply leaves a socket before the durable write that
  covers it (:class:`RaftOrdering`);
* *power loss*: when the program is killed, everything that it had not synced is taken back
  (:meth:`TracedProcess.kill_with_power_loss`).

Both fail on a node that does not sync.
"""

from jepsen_like.durability.ordering import RaftOrdering
from jepsen_like.durability.process import TracedProcess, TracerError, cut_power
from jepsen_like.durability.trace import Verdict

__all__ = ["RaftOrdering", "TracedProcess", "TracerError", "Verdict", "cut_power"]
