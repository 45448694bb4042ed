"""What surrounds a core at run time: the driver, its workers, and what a node does beside it."""
