"""Built-in trackers, one module each."""
