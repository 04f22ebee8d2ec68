"""Variance shift measured: how far what reaches each norm is from what it stores, and what it is made of."""
