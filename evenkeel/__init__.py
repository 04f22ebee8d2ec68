"""Dropout and normalization on an even keel: measure the variance shift of a trained network and repair it.

`trace` reads a model into a `LayerGraph`, `variance_shift` measures each norm layer, `reestimate_` repairs them.
"""

from evenkeel.errors import ActivationError, BatchError, EvenkeelError, ModelError, TraceError
from evenkeel.graph import Layer, LayerGraph
from evenkeel.kinds import Kind
from evenkeel.moments import Moments, activation_moments
from evenkeel.reestimation import Reestimation, reestimate_
from evenkeel.shift import ShiftReport, ShiftRow, variance_shift
from evenkeel.tracing import trace

__all__ = [
    "ActivationError",
    "BatchError",
    "EvenkeelError",
    "Kind",
    "Layer",
    "LayerGraph",
    "ModelError",
    "Moments",
    "Reestimation",
    "ShiftReport",
    "ShiftRow",
    "TraceError",
    "activation_moments",
    "reestimate_",
    "trace",
    "variance_shift",
]
__version__ = "0.1.0"
