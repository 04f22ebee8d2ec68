"""Showing results: tables, files that appear whole or not at all, progress bars."""
