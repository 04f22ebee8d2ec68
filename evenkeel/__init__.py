"""Dropout and normalization on an even keel: measure the variance shift of a trained network and repair it.

`trace` reads a model into a `LayerGraph`, `variance_shift` measures each norm layer, `reestimate_` repairs them;
without data, `predict_shift` and `correct_` do. `lint` says where dropout breaks the guidelines, `fix` moves it.
"""

from evenkeel.errors import (
    ActivationError,
    BatchError,
    EvenkeelError,
    ModelError,
    TraceError,
    UnappliedWarning,
    UnpredictedWarning,
)
from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import Layer, LayerGraph
from evenkeel.graph.tracing import trace
from evenkeel.init.init_report import InitReport, InitRow
from evenkeel.init.initialization import init_
from evenkeel.init.signal_check import SignalReport, SignalRow, check_signals
from evenkeel.layers.ic import IC, ic
from evenkeel.layers.uout import Uout, uout
from evenkeel.linting.explanation import explain
from evenkeel.linting.findings import Finding
from evenkeel.linting.linter import lint
from evenkeel.prediction.correction import Correction, correct_
from evenkeel.prediction.shift_prediction import predict_shift
from evenkeel.rewriting.fixer import fix
from evenkeel.signals.moments import Moments, activation_moments
from evenkeel.statistics.reestimation_report import Reestimation
from evenkeel.statistics.norm_change import NormChange
from evenkeel.statistics.reestimation import reestimate_
from evenkeel.statistics.shift import variance_shift
from evenkeel.statistics.shift_report import ShiftReport, ShiftRow

__all__ = [
    "IC",
    "ActivationError",
    "BatchError",
    "Correction",
    "NormChange",
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
