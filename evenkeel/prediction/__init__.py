"""Norm statistics predicted without data: `predict_shift` and `correct_`."""
