"""Weight initialization from the graph: `init_` and `check_signals`."""
