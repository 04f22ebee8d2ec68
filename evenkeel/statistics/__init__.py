"""Norm statistics measured on data: `variance_shift` and `reestimate_`."""
