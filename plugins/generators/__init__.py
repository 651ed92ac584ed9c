"""Built-in generators, one module each."""
