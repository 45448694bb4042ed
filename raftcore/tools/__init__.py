"""What an operator does with directories of nodes that do not run: look, verify, compare, save."""
