"""Statistics of data that stay apart: parts measured on each, merged to what all data give."""
