"""Personal facial Action Unit models: a clip of one person in, their model out."""

__version__ = "0.1.0"
