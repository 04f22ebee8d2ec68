"""The program `evenkeel`; nothing here imports torch before a command needs it."""

from evenkeel.cli.program import app, main

__all__ = ["app", "main"]
