"""Context: what lint's rules read of a model: its graph in both modes and predictions, each made once, on demand."""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from evenkeel.errors import EvenkeelError, TraceError, raised
from evenkeel.graph.branches import Branch, branches_of, gating
from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import Layer, LayerGraph
from evenkeel.graph.queries import stays_on
from evenkeel.graph.tracing import graph_of, prepared, record_call, runner
from evenkeel.linting.dropout_reach import DropoutReach, reaches_of
from evenkeel.linting.eval_randomness import random_layers
from evenkeel.linting.findings import Finding
from evenkeel.model.nested import map_tensors, tensors
from evenkeel.model.norms import Norm, has_running_statistics, norms_of
from evenkeel.model.restoring import restored
from evenkeel.prediction.anchors import distrust, is_repaired
from evenkeel.prediction.replica_recorder import SamplingPlan
from evenkeel.prediction.shift_prediction import (
    Prediction,
    PredictionInputs,
    inherited_shifts,
    predict,
    prediction_inputs,
)
from evenkeel.signals.propagation import MeanSquares, predict_mean_squares


class Context:
    """A model and an example, read and predicted at most once.

    Args:
        model: the model, without wrappers.
        example: as for `trace`, or what `trace` made of it.

    Attributes:
        unpredicted: what a rule needed and could not be predicted, with the reason.

    >>> import torch
    >>> context = Context(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4)), torch.ones(2, 4))
    >>> print(context.graph, len(context.dropouts))
    i W D N o 1
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        self.model = model
        self.example = example.example if isinstance(example, LayerGraph) else example
        self._given = example
        self.unpredicted: list[str] = []

    @cached_property
    def graph(self) -> LayerGraph:
        """The layers in train mode."""
        return graph_of(self.model, self._given)

    @cached_property
    def eval_graph(self) -> LayerGraph:
        """The layers in eval mode."""
        return record_call(self.model, self.example, training=False)

    @cached_property
    def inputs(self) -> Any:
        """The example, its floating tensors filled with random values."""
        generator = torch.Generator().manual_seed(0)
        return map_tensors(
            lambda t: torch.randn(t.shape, generator=generator).to(t) if t.is_floating_point() else t,
            prepared(runner(self.model, self.example)[1], self.model),
        )

    @cached_property
    def outputs(self) -> list[Tensor]:
        """What the model returns in eval mode for the example's tensors, floating ones filled with random values.

        Raises:
            TraceError: the forward pass raised.
        """
        run, _ = runner(self.model, self.example)
        with restored(self.model), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model.eval()
            try:
                return tensors(run(map_tensors(torch.clone, self.inputs)))
            except Exception as error:
                raise TraceError(f"in eval mode, on random inputs, the forward pass {raised(error)}") from error

    @cached_property
    def branches(self) -> tuple[Branch, ...]:
        """The residual branches."""
        return branches_of(self.graph)

    @cached_property
    def dropouts(self) -> tuple[Layer, ...]:
        """The layers that drop in train mode, each element or channel by itself."""
        return tuple(layer for layer in self.graph if layer.drops and not layer.drops_samples)

    @cached_property
    def reaches(self) -> tuple[DropoutReach, ...]:
        """The dropouts whose noise reaches norms, those inside attention and recurrent layers included."""
        hidden = {layer for layer in self.graph.of(Kind.OPAQUE) if layer.p}
        return reaches_of(self.graph, [layer for layer in self.graph if layer in hidden or layer in self.dropouts])

    @cached_property
    def random_in_eval(self) -> frozenset[str]:
        """The layers of the eval graph, by name, that stay on there, act on the output, and really differ by chance."""
        on = [layer for layer in self.eval_graph if layer.kind is not Kind.NOISE and stays_on(layer)]
        reaching = [x.name for x in on if any(y.kind is Kind.OUTPUT for y in self.eval_graph.downstream(x))]
        if not reaching:
            return frozenset()
        run, _ = runner(self.model, self.example)
        return random_layers(self.model, run, self.inputs, reaching)

    @cached_property
    def gating(self) -> frozenset[Layer]:
        """The layers that only compute gates."""
        return gating(self.graph)

    @cached_property
    def prediction(self) -> Prediction | None:
        """What norms read in train and in eval mode; None if there are none, or for the reason in `unpredicted`."""
        if not self.norms:
            return None
        try:
            return predict(self._prediction_inputs, SamplingPlan())
        except EvenkeelError as error:
            self.unpredicted.append(str(error))
            return None

    @cached_property
    def _prediction_inputs(self) -> PredictionInputs:
        return prediction_inputs(self.model, self.graph, self.norms)

    @cached_property
    def _inherited(self) -> dict[str, float]:
        if self.prediction is None:
            return {}
        return inherited_shifts(self._prediction_inputs, SamplingPlan(), self.prediction)

    @cached_property
    def norms(self) -> dict[str, Norm]:
        """The norms with running statistics, by path."""
        return norms_of(self.model) if any(map(has_running_statistics, self.model.modules())) else {}

    def at_norm(self, path: str, message: str, advice: str) -> Finding:
        """A finding at a norm, by its path; at its first call, if it is called."""
        calls = (layer for layer in self.graph.of(Kind.NORM) if layer.module is self.norms[path])
        layer = next(calls, Layer(path, Kind.NORM, path))
        return Finding.at(layer, message, advice)

    @cached_property
    def distrusted(self) -> dict[str, str]:
        """Norms whose statistics are not those of training, by path, each with the reason."""
        return distrust(self.graph, self.norms)

    def is_repaired(self, norm: str | None) -> bool:
        """Whether a norm, by its path, stores what a repair wrote, so that eval mode feeds it what it stores."""
        return norm in self.norms and is_repaired(self.norms[norm])

    @cached_property
    def mean_squares(self) -> dict[Layer, MeanSquares]:
        """Mean squares at every weight layer, in train and in eval mode, for weights as they are drawn."""
        try:
            return predict_mean_squares(self.graph)[0]
        except EvenkeelError as error:
            self.unpredicted.append(str(error))
            return {}

    def shift(self, norm: str) -> float | None:
        """The variance that a norm reads in eval mode over that in train mode; None if that would be a guess."""
        prediction = self.prediction
        if prediction is None or norm not in prediction.channels:
            return None
        return None if norm in prediction.unsure and norm not in self.distrusted else prediction.ratio(norm)

    @property
    def shifts(self) -> dict[str, float]:
        """The shifts of all norms, by path, if a rule has asked for one of them."""
        paths = self.prediction.channels if "prediction" in vars(self) and self.prediction else ()
        found = {path: self.shift(path) for path in paths}
        return {path: shift for path, shift in found.items() if shift is not None}

    def inherited(self, norm: str) -> float | None:
        """The factor of a norm's shift that comes through norms upstream; None if the shift would be a guess."""
        return None if self.shift(norm) is None else self._inherited[norm]
