"""Modules of the papers: `Uout` (li2018) and `IC` (chen2019)."""
