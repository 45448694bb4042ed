"""``raftcore``: the command line for directories of nodes that do not run."""
