"""Edits carried out on a copy of a model: `fix`."""
