"""Built-in buffers, one module each."""
