"""``python -m personalize``: the command line."""

from .cli import run

run()
