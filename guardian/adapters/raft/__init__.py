"""Guardian's way to the replicated log: propose, forward to the leader, read barriers."""
