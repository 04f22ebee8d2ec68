"""check_signals: the variance of signals and of gradients at every weight layer, predicted beside measured."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from evenkeel.errors import EvenkeelError, ModelError, brief
from evenkeel.graph.kinds import Kind, function_name
from evenkeel.graph.layer_graph import Layer, LayerGraph
from evenkeel.graph.outline import outline
from evenkeel.graph.tracing import graph_of, runner
from evenkeel.model.batches import Forward, call, device_of, each, forward_pass, samples
from evenkeel.model.flags import frozen_in
from evenkeel.model.nested import map_tensors, tensors
from evenkeel.model.norms import has_running_statistics
from evenkeel.model.opacity import opaque_parts
from evenkeel.model.restoring import restored
from evenkeel.model.wrappers import unwrapped
from evenkeel.output.figures import save_figure
from evenkeel.output.page import Chart, Mark, Page, Tone, tone_of
from evenkeel.output.ratios import ratio_text
from evenkeel.output.tables import Cells, Report
from evenkeel.signals.propagation import MeanSquares, predict_mean_squares
from evenkeel.signals.weights import weights_of

_MEASURED = ("train var", "eval var", "train grad var", "eval grad var")
_COLUMNS = ("layer", *(heading for measured in _MEASURED for heading in (measured, "predicted")))
_UNUSED = (
    "inputs were standard normal, of the example's shapes; its values were not used: pass them as batches, "
    "check_signals(model, example, [example]), to measure on them"
)
_ABOUT = (
    "Means over units, positions and samples, on a logarithmic scale: dots are measured, bars are predicted. A signal "
    "that grows or fades from layer to layer makes training hard."
)
_MODES = ("train", "eval")
_TITLES = {"variance": "signals: variance of z", "grad_variance": "gradients: variance of dL/dz"}


@dataclass(frozen=True)
class SignalRow:
    """The signals at one weight layer.

    Attributes:
        name: the layer's name in the graph.
        predicted: mean squares by `propagate`, for weights of the variance that they have.
        measured: mean squares over the batches.
    """

    name: str
    predicted: MeanSquares
    measured: MeanSquares


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _both(row: SignalRow) -> tuple[MeanSquares, MeanSquares]:
    return row.measured, row.predicted


class SignalReport(Report[SignalRow]):
    """Predicted and measured signals of every weight layer, in execution order; `str()` is the table.

    Attributes:
        rows: one a weight layer.
        samples: how many samples were measured.
    """

    _width = 140
    _title = "signals"

    def __init__(self, rows: Iterable[SignalRow], samples: int, notes: Iterable[str] = ()) -> None:
        super().__init__(rows, notes=notes)
        self.samples = samples

    def _figures(self) -> dict[str, Any]:
        return {"samples": self.samples}

    def page(self) -> Page:
        """What `save_html` shows, as plain data."""
        charts = [self._chart(quantity, title) for quantity, title in _TITLES.items()]
        verdict, tone = self._verdict()
        facts = {"weight layers": f"{len(self)}", "samples": f"{self.samples}"}
        page = replace(super().page(), verdict=verdict, tone=tone, facts=facts)
        return replace(page, charts=charts, notes=self._cells().caption)

    def _chart(self, quantity: str, title: str) -> Chart:
        marks = [
            Mark(row.name, tuple(_known(getattr(made, f"{mode}_{quantity}")) for mode in _MODES for made in _both(row)))
            for row in self
        ]
        series = tuple(f"{mode}, {made}" for mode in _MODES for made in ("measured", "predicted"))
        return Chart(f"{title[0].upper()}{title[1:]}", _ABOUT, series, tuple(marks), free=True)

    def _verdict(self) -> tuple[str, Tone]:
        """How far what is measured is from what is predicted, in words, and how good that is."""
        ratios = {row.name: row.measured.train_variance / (row.predicted.train_variance or math.nan) for row in self}
        known = {name: ratio for name, ratio in ratios.items() if 0 < ratio < math.inf}
        if not known:
            return "No signal was measured that is predicted, too.", "plain"
        name, ratio = max(known.items(), key=lambda item: abs(math.log(item[1])))
        said = f"In train mode, {name} passes on {ratio_text(ratio)} the variance predicted: no layer is farther off."
        return said, tone_of(ratio)

    def plot(self, path: str | Path) -> None:
        """Draw both variances against the layers, and write the picture.

        Args:
            path: of the file; its suffix says the format, such as .svg or .png.

        Raises:
            EvenkeelError: matplotlib is not installed, the format is unknown, or the file cannot be written.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise EvenkeelError('a plot needs matplotlib: pip install "evenkeel[plots]"') from error

        figure = Figure(figsize=(11, 4), layout="constrained")
        places = range(1, len(self) + 1)
        for axes, (quantity, title) in zip(figure.subplots(1, 2), _TITLES.items(), strict=True):
            for mode, colour in (("train", "C0"), ("eval", "C1")):
                of = f"{mode}_{quantity}"
                axes.plot(places, [getattr(r.measured, of) for r in self], "o", color=colour, label=f"{mode}, measured")
                axes.plot(places, [getattr(r.predicted, of) for r in self], "-", color=colour, label="predicted")
            axes.set(title=title, xlabel="weight layer", yscale="log")
            axes.axhline(1, color="0.8", zorder=0)
            axes.legend()
        save_figure(figure, path)

    def __repr__(self) -> str:
        return f"SignalReport({len(self)} weight layers, {self.samples} samples)"

    def _cells(self) -> Cells:
        rows = [
            (
                row.name,
                *(f"{v:.3g}" for pair in zip(astuple(row.measured), astuple(row.predicted), strict=True) for v in pair),
            )
            for row in self.rows
        ]
        caption = [f"means over {self.samples} samples; predicted without data", *self.notes]
        return Cells(_COLUMNS, rows, caption, words=("layer",))


def check_signals(
    model: nn.Module,
    example: Any,
    batches: Iterable[Any] | None = None,
    *,
    forward: Forward | None = None,
    max_batches: int | None = None,
    draws: int = 4,
) -> SignalReport:
    """Measure the variance of signals and gradients at every weight layer, beside what propagation predicts.

    Signals are the outputs z of weight layers: E z^2 over units, positions and samples. Gradients are dL/dz by
    autograd, for independent gradients of variance 1 at the model's outputs. Both are measured in train mode, with
    dropout on and norms using batch statistics, and in eval mode. The prediction is a mean over random weights of the
    same variance, as after `init_`, and over standard normal inputs: other inputs, trained weights, and operations that
    are not understood show as a difference. The model is restored.

    Args:
        model: the model.
        example: as for `trace`, or the graph that `trace` made. Without batches, the inputs are standard normal
            tensors of its shapes (integer tensors as they are), which a note says if it holds values of its own: it
            needs enough samples for batch statistics.
        batches: real inputs to use instead; see `variance_shift`.
        forward: how to run a batch that is no tensor, tuple, list or mapping.
        max_batches: how many batches to use; all if None.
        draws: how many times normal inputs are drawn, without batches.

    Returns:
        The report: `print` it, or `plot` it.

    Raises:
        TraceError: the model's forward pass raises.
        ModelError: the model has no weight layer, weights on the meta device, or its backward pass raises.
        BatchError: the batches raised, ran short or were empty.

    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 256))
    >>> report = check_signals(net, torch.ones(512, 256))
    >>> [(row.name, round(row.measured.train_variance, 1), round(row.predicted.train_variance, 1)) for row in report]
    [('0', 0.3, 0.3), ('3', 0.1, 0.1)]
    """
    with unwrapped(model) as plainly, restored(plainly, parameters=False):
        graph = graph_of(plainly, example)
        if not graph.of(Kind.WEIGHT):
            raise ModelError(f"{type(plainly).__name__} has no weight layer: there is no signal to check")
        if meta := [name for name, weights in plainly.named_parameters() if weights.is_meta]:
            raise ModelError(f"{meta[0]!r} is on the meta device and holds no values: load the weights first")
        predicted, _ = predict_mean_squares(graph)
        meter = _Meter(graph, plainly)
        if batches is None:
            run, inputs = runner(plainly, graph.example)
            for _ in range(draws):
                meter.read(_normal(inputs, plainly), lambda _, drawn: run(drawn))
        else:
            for batch in each(batches, plainly, max_batches):
                meter.read(batch, forward or call)
    rows = [SignalRow(layer.name, squares, meter.mean_squares(layer)) for layer, squares in predicted.items()]
    notes = [f"{path} is {what}: its weight layers are not seen" for path, what in opaque_parts(plainly).items()]
    notes += [_UNUSED] if batches is None and _has_values(graph.example) else []
    return SignalReport(rows, meter.samples, notes).drawn_with(partial(outline, graph))


def _has_values(example: Any) -> bool:
    """Whether an example's floating tensors hold values that may be meant, not the same one throughout."""
    given = (t for t in tensors(example) if t.is_floating_point() and not t.is_meta and t.numel())
    dense = (t if t.layout is torch.strided else t.to_dense() for t in given)
    return any(bool((t != t.flatten()[0]).any()) for t in dense)


class _Meter:
    """Sums of squares of every weight layer's output, and of the gradients there, in train and in eval mode."""

    def __init__(self, graph: LayerGraph, model: nn.Module) -> None:
        self.model = model
        self.frozen = frozen_in(model)
        self.norms: list[Any] = [module for module in model.modules() if has_running_statistics(module)]
        self.batches = 0
        self.samples = 0
        self.sums: dict[tuple[Layer, str], float] = defaultdict(float)
        self.counts: Counter[tuple[Layer, str]] = Counter()
        self.calls: dict[tuple[int, str], list[Layer]] = defaultdict(list)  # in order, by parameter and function
        for layer in graph.of(Kind.WEIGHT):
            weights = weights_of(layer)
            if weights is not None:
                self.calls[id(weights.parameter), layer.function].append(layer)

    @torch.inference_mode(False)
    def read(self, batch: Any, run: Forward) -> None:
        """Run the model on a batch in both modes, forward and backward."""
        self.batches += 1
        self.samples += samples(batch)
        for mode in ("train", "eval"):
            self.model.train(mode == "train")
            for module in self.frozen:
                module.training = False
            for norm in self.norms:
                norm.momentum = 0.0  # or statistics of the train pass would be used in the eval pass
            batch = map_tensors(lambda t: t.detach().clone().requires_grad_(t.is_floating_point()), batch)
            tap = _Tap(self.calls)
            with torch.enable_grad(), tap:
                outputs = [t for t in tensors(forward_pass(self.model, batch, self.batches, run)) if t.requires_grad]
            gradients = self._gradients(outputs, tap.outputs)
            for layer, z, gradient in zip(tap.layers, tap.outputs, gradients, strict=True):
                self._add(layer, f"{mode}_variance", z)
                self._add(layer, f"{mode}_grad_variance", gradient)

    def _gradients(self, outputs: list[Tensor], wanted: list[Tensor]) -> Sequence[Tensor]:
        """What comes back of independent gradients of variance 1 at the outputs."""
        if not (outputs and wanted):
            return [torch.zeros_like(t) for t in wanted]
        noise = [torch.randn_like(t) for t in outputs]
        try:
            return torch.autograd.grad(outputs, wanted, noise, allow_unused=True, materialize_grads=True)
        except RuntimeError as error:  # such as a tensor needed for the gradient, but overwritten in place
            raise ModelError(f"the backward pass of {type(self.model).__name__} raised {brief(error)}") from error

    def mean_squares(self, layer: Layer) -> MeanSquares:
        """The mean squares at a layer; nan if it was never called, or its weights are computed from others."""
        names = (field.name for field in fields(MeanSquares))
        return MeanSquares(
            *(self.sums[layer, n] / self.counts[layer, n] if self.counts[layer, n] else math.nan for n in names)
        )

    def _add(self, layer: Layer, name: str, values: Tensor) -> None:
        self.sums[layer, name] += float(values.detach().double().square().sum())
        self.counts[layer, name] += values.numel()


class _Tap(TorchFunctionMode):
    """Keeps the outputs of weight layers; the model goes on with a copy, so that no activation overwrites them."""

    def __init__(self, calls: dict[tuple[int, str], list[Layer]]) -> None:
        super().__init__()
        self.waiting = {key: iter(layers) for key, layers in calls.items()}
        self.layers: list[Layer] = []
        self.outputs: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = function_name(func)
        operands = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        keys = ((id(value if value._base is None else value._base), name) for value in operands)
        key = next((key for key in keys if key in self.waiting), None)
        layer = None if key is None else next(self.waiting[key], None)
        if layer is None or not result.requires_grad:
            return result
        self.layers.append(layer)
        self.outputs.append(result)
        return result.clone()


def _normal(example: Any, model: nn.Module) -> Any:
    """The example with standard normal values in its floating tensors, in the model's dtype and on its device."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    device = device_of(model)

    def drawn(tensor: Tensor) -> Tensor:
        floating = tensor.is_floating_point()
        return torch.randn(tensor.shape, device=device, dtype=dtype) if floating else tensor.to(device)

    return map_tensors(drawn, example)
