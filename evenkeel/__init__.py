"""Dropout and normalization on an even keel: measure the variance shift of a trained network and repair it.

`trace` reads a model into a `LayerGraph`, `variance_shift` measures each norm layer, `reestimate_` repairs them.
"""

from evenkeel.errors import ActivationError, BatchError, EvenkeelError, ModelError, TraceError
from evenkeel.graph import Layer, LayerGraph
from evenkeel.initialization import InitReport, InitRow, init_
from evenkeel.kinds import Kind
from evenkeel.moments import Moments, activation_moments
from evenkeel.reestimation import Reestimation, reestimate_
from evenkeel.shift import ShiftReport, ShiftRow, variance_shift
from evenkeel.signal_check import SignalReport, SignalRow, check_signals
from evenkeel.tracing import trace

__all__ = [
    "ActivationError",
    "BatchError",
    "EvenkeelError",
    "InitReport",
    "InitRow",
    "Kind",
    "Layer",
    "LayerGraph",
    "ModelError",
    "Moments",
    "Reestimation",
    "ShiftReport",
    "ShiftRow",
    "SignalReport",
    "SignalRow",
    "TraceError",
    "activation_moments",
    "check_signals",
    "init_",
    "reestimate_",
    "trace",
    "variance_shift",
]
__version__ = "0.1.0"
