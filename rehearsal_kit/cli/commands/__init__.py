"""One module a command: its options, and what it does; imported only when it is asked for."""
