"""Merged networks: the units of layers without stored statistics matched to those of the end points."""
