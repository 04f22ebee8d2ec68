"""Dropout and normalization on an even keel: measure the variance shift of a trained network and repair it.

`trace` reads a model into a `LayerGraph`, `variance_shift` measures each norm layer, `reestimate_` repairs them;
without data, `predict_shift` and `correct_` do. `lint` says where dropout breaks the guidelines, `fix` moves it.
"""

from evenkeel.correction import Correction, CorrectionRow, correct_
from evenkeel.errors import (
    ActivationError,
    BatchError,
    EvenkeelError,
    ModelError,
    TraceError,
    UnappliedWarning,
    UnpredictedWarning,
)
from evenkeel.explanation import explain
from evenkeel.findings import Finding
from evenkeel.fixer import fix
from evenkeel.graph import Layer, LayerGraph
from evenkeel.independent_component import IC, ic
from evenkeel.initialization import InitReport, InitRow, init_
from evenkeel.kinds import Kind
from evenkeel.linter import lint
from evenkeel.moments import Moments, activation_moments
from evenkeel.prediction import predict_shift
from evenkeel.reestimation import Reestimation, reestimate_
from evenkeel.shift import ShiftReport, ShiftRow, variance_shift
from evenkeel.signal_check import SignalReport, SignalRow, check_signals
from evenkeel.tracing import trace
from evenkeel.uniform_dropout import Uout, uout

__all__ = [
    "IC",
    "ActivationError",
    "BatchError",
    "Correction",
    "CorrectionRow",
    "EvenkeelError",
    "Finding",
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
    "UnappliedWarning",
    "UnpredictedWarning",
    "Uout",
    "activation_moments",
    "check_signals",
    "correct_",
    "explain",
    "fix",
    "ic",
    "init_",
    "lint",
    "predict_shift",
    "reestimate_",
    "trace",
    "uout",
    "variance_shift",
]
__version__ = "0.1.0"
