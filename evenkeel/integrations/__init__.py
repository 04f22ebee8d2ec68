"""Callbacks and drop-in replacements for other libraries: Lightning, Hugging Face, torch's `update_bn`."""
