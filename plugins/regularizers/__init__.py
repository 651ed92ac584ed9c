"""Built-in regularizers, one module each."""
