"""Closed-form propagation of moments through a model whose weights are random."""
