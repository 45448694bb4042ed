"""Measurements. ``python -m benchmarks`` prints the first figures of a cluster on this machine."""
