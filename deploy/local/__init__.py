"""Real servers on this machine, from packages alone."""
