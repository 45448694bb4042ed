"""JSON Schema validation in killable worker processes.

``pool`` is the port's implementation and the only part that the service's process runs; ``worker``
is the process at the other end of ``protocol``. In the worker: ``guard`` refuses what must never
reach a compiler, ``engines`` compiles and validates, ``patterns`` matches regular expressions in
linear time, ``faults`` says what is wrong and where, alike for both engines.
"""
