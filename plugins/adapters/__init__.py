"""Built-in adapters, one module each."""
