"""The papers whose experiments evenkeel runs; a paper is one file here."""
