"""The protocol, and nothing but the protocol: events in, effects out. No clock, no I/O."""
