"""init_: weights whose variance fits what the graph says comes before and after them."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import torch
from torch import Tensor, nn

from evenkeel.errors import ModelError
from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import Layer, LayerGraph
from evenkeel.graph.tracing import trace
from evenkeel.init.drawing import FILLS, draw_
from evenkeel.init.gains import MODES, choose_variances, words
from evenkeel.init.init_report import InitReport, InitRow
from evenkeel.model.buffers import write_
from evenkeel.model.flags import frozen_in
from evenkeel.model.wrappers import unwrapped
from evenkeel.signals.marginals import Sum
from evenkeel.signals.propagation import MeanSquares, Propagation, given_weights, predict_mean_squares
from evenkeel.signals.signal import Signal
from evenkeel.signals.weights import Weights, weights_of

if TYPE_CHECKING:
    pass

Mode = Literal["forward", "backward", "mean", "hendrycks2016"]

_SETTLING = (Kind.WEIGHT, Kind.NORM)  # what makes a signal known again


def init_(
    model: nn.Module,
    example: Any,
    *,
    mode: Mode = "forward",
    weights: str = "sphere",
    generator: torch.Generator | None = None,
    branch_scale: float | Literal["even"] = 1.0,
) -> InitReport:
    """Draw a model's weights so that signals keep their variance through every activation, dropout and pool.

    Read off the graph is, for each weight layer, the second moment q of what it is fed in train mode: of an activation
    after unit variance E f^2, over keep for dropout, of a max-pool that of the largest, and so on; joins add. With d
    the mean square of the derivative on the way there (E f'^2 / keep), entries get the variance

        forward          1 / (fan_in q)                  the signal keeps its variance; E f^2 / keep
        backward         1 / (fan_out d)                 error signals keep theirs; E f'^2 / keep
        mean             2 / (fan_in q + fan_out d)
        hendrycks2016    1 / (fan_in (E f^2 / keep + keep E f'^2)), as printed, f' that of the activation after

    after Hendrycks & Gimpel (2016, section 2), whose printed backward term is not what autograd does. In layers of
    finite width, samples differ in strength, and an activation that is no multiple of ReLU makes more or less of the
    mixture than of its mean: q and d are means over samples. Biases are set to 0. What is fed by an operation that is
    not understood gets q = 1/2, the paper's default.

    Args:
        model: the model; its norms, its frozen parameters and what is no weight layer's stay as they are.
        example: as for `trace`; its values do not matter.
        mode: what is to keep its variance.
        weights: "sphere" (rows of one length), "orthogonal", "normal" or "uniform", of the same variance. With mode
            hendrycks2016, "uniform" is the paper's generalized Xavier: fan_out in place of fan_in at the second term.
        generator: drawn from; torch's global one if None. The same seed gives the same bits ("orthogonal": on the same
            number of threads).
        branch_scale: factor of the last weights (or norm) of every residual branch, so that sums do not grow with
            depth; "even" is 1 / sqrt(number of branches).

    Returns:
        The report; `undo()` puts back what was there.

    Raises:
        TraceError: the model's forward pass raises.
        ModelError: there are no weights to draw, or they are on the meta device.
        ValueError: mode, weights or branch_scale is none of those above.

    >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10))
    >>> report = init_(net, torch.ones(1, 64), generator=torch.Generator().manual_seed(0))
    >>> [(row.name, row.before, round(row.gain, 4)) for row in report]
    [('0', 'input', 1.0), ('3', 'dropout p=0.5, relu, linear', 1.0)]
    """
    _require(mode in MODES, "mode", mode, MODES)
    _require(weights in tuple(FILLS), "weights", weights, tuple(FILLS))
    scale: Any = branch_scale
    scales_branches = scale == "even" or (type(scale) in (int, float) and 0 < scale < math.inf)
    _require(scales_branches, "branch_scale", scale, ("a positive number", "even"))
    with unwrapped(model) as plainly:
        graph = trace(plainly, example)
        frozen = frozen_in(plainly)
    calls = {layer: weights_of(layer) for layer in graph.of(Kind.WEIGHT)}
    owners = _owners(calls)
    _refuse_empty(plainly, owners)
    scales = _branch_scales(graph, branch_scale)
    with _restored_on_error(_reached(owners, calls, scales)) as before:
        for layer, scale in scales.items():
            if layer.kind is Kind.NORM:
                write_(layer.arguments["weight"], torch.full_like(layer.arguments["weight"], scale))
        for bias in {w.bias for w in calls.values() if w and w.parameter in owners and _is_free(w.bias)}:
            write_(bias, torch.zeros_like(bias))
        xavier = weights == "uniform"
        variances = choose_variances(graph, owners, mode, xavier=xavier, scales=scales, frozen=frozen)
        _draw([calls[layer] for layer in owners.values()], variances, weights, generator)
        return _report(plainly, graph, calls, owners, variances, mode, weights, before, frozen)


def _owners(calls: dict[Layer, Weights | None]) -> dict[nn.Parameter, Layer]:
    """The parameters to draw, each with the one call that decides: of tied ones a product rather than an embedding."""
    owners: dict[nn.Parameter, Layer] = {}
    for layer, weights in calls.items():
        if weights is not None and _is_free(weights.parameter):
            first = owners.setdefault(weights.parameter, layer)
            if first.function.startswith("embedding") and not layer.function.startswith("embedding"):
                owners[weights.parameter] = layer
    return owners


def _is_free(parameter: nn.Parameter | None) -> TypeGuard[nn.Parameter]:
    return parameter is not None and parameter.requires_grad


def _refuse_empty(model: nn.Module, owners: dict[nn.Parameter, Layer]) -> None:
    if not owners:
        raise ModelError(
            f"{type(model).__name__} has no weight layer with weights to draw: those it has are frozen "
            "(requires_grad=False) or computed from other parameters"
        )
    for parameter, layer in owners.items():
        if parameter.is_meta:
            raise ModelError(f"the weights of {layer.name!r} are on the meta device: model.to_empty(device=...) first")


def _branch_scales(graph: LayerGraph, scale: float | str) -> dict[Layer, float]:
    """The last weights, or the norm behind them, of every residual branch, with the factor that they get."""
    if scale == 1.0:
        return {}
    last: list[Layer] = []
    for join in graph.of(Kind.JOIN):
        branches = graph.branch(join)
        if not set[Layer].intersection(*({x, *graph.upstream(x)} for x in join.inputs)):
            continue  # signals of different origin meet
        lengths = [_length(source, branch) for source, branch in zip(join.inputs, branches, strict=True)]
        shortcut = branches[lengths.index(min(lengths))]
        scalable = ([x for x in b if x.kind is Kind.WEIGHT or _has_gamma(x)] for b in branches if b is not shortcut)
        last.extend(branch[-1] for branch in scalable if branch)
    last = list(dict.fromkeys(last))
    factor = 1 / math.sqrt(max(len(last), 1)) if scale == "even" else float(scale)
    return dict.fromkeys(last, factor)


def _length(source: Layer, branch: Sequence[Layer]) -> int:
    """How many weight layers and norms the shortest way from the fork to the end of a branch goes through."""
    lengths: dict[Layer, int] = {}
    for layer in branch:
        before = min((lengths.get(x, 0) for x in layer.inputs), default=0)  # 0 at the fork
        lengths[layer] = before + (layer.kind in _SETTLING)
    return lengths.get(source, 0)


def _has_gamma(layer: Layer) -> bool:
    return layer.kind is Kind.NORM and _is_free(layer.arguments.get("weight"))


def _reached(
    owners: dict[nn.Parameter, Layer], calls: dict[Layer, Weights | None], scales: dict[Layer, float]
) -> list[nn.Parameter]:
    """Every parameter that is going to be written to."""
    biases = [w.bias for w in calls.values() if w and w.parameter in owners and _is_free(w.bias)]
    gammas = [layer.arguments["weight"] for layer in scales if layer.kind is Kind.NORM]
    return list(dict.fromkeys([*owners, *biases, *gammas]))


@contextmanager
def _restored_on_error(parameters: Sequence[nn.Parameter]) -> Generator[dict[nn.Parameter, Tensor]]:
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # fresh memory is slow to get
        before = dict(zip(parameters, pool.map(_copy, parameters), strict=True))
    try:
        yield before
    except BaseException:
        for parameter, values in before.items():
            write_(parameter, values)
        raise


def _copy(parameter: nn.Parameter) -> Tensor:
    return parameter.detach().clone()


def _draw(
    drawn: Sequence[Weights | None],
    variances: dict[nn.Parameter, float],
    kind: str,
    generator: torch.Generator | None,
) -> None:
    """Fill all weights, each from a seed of its own, so that their order does not matter: at once, on all cores.

    But one by one where LAPACK, which is on all cores by itself, makes them orthogonal.
    """
    device = generator.device if generator is not None else "cpu"
    seeds = torch.randint(2**62, (len(drawn),), generator=generator, device=device).tolist()

    def fill(item: tuple[Weights, int]) -> None:
        weights, seed = item
        own = torch.Generator(weights.parameter.device).manual_seed(seed)
        draw_(weights, variances[weights.parameter], kind, own)

    items = [(weights, seed) for weights, seed in zip(drawn, seeds, strict=True) if weights is not None]
    with ThreadPoolExecutor(1 if kind == "orthogonal" else torch.get_num_threads()) as pool:
        list(pool.map(fill, sorted(items, key=lambda item: -item[0].parameter.numel())))


def _report(
    model: nn.Module,
    graph: LayerGraph,
    calls: dict[Layer, Weights | None],
    owners: dict[nn.Parameter, Layer],
    variances: dict[nn.Parameter, float],
    mode: str,
    kind: str,
    before: dict[nn.Parameter, Tensor],
    frozen: Sequence[nn.Module],
) -> InitReport:
    def choose(layer: Layer, weights: Weights, x: Signal, reached: Sum) -> float:
        return variances.get(weights.parameter) or given_weights(layer, weights, x, reached)

    powers, train = predict_mean_squares(graph, frozen=frozen, choose=choose)
    rows = [_row(graph, layer, weights, owners, variances, train, powers[layer]) for layer, weights in calls.items()]
    return InitReport(rows, _notes(model, rows, calls, mode), mode, kind, before)


def _row(
    graph: LayerGraph,
    layer: Layer,
    weights: Weights | None,
    owners: dict[nn.Parameter, Layer],
    variances: dict[nn.Parameter, float],
    train: Propagation,
    predicted: MeanSquares,
) -> InitRow:
    note, fan_in, fan_out, gain = "computed from other parameters: left as it was", math.nan, math.nan, math.nan
    if weights is not None:
        parameter, fan_in, fan_out = weights.parameter, weights.fan_in, weights.fan_out
        square = variances.get(parameter) or float(parameter.detach().double().square().mean())
        gain, note = math.sqrt(square * fan_in), ""
        if parameter not in owners:
            note = "frozen (requires_grad=False): left as it was"
        elif owners[parameter] is not layer:
            note = f"shares its weights with {owners[parameter].name}, which decides"
        elif not train.signals[layer.inputs[0]].known:
            unknown = [x for x in graph.upstream(layer, _SETTLING) if not train.signals[x].known]
            note = f"fed by what is not understood ({unknown[-1].name if unknown else '?'}): factor 1/2"
    return InitRow(
        layer.name,
        *words(graph, layer),
        fan_in,
        fan_out,
        gain,
        predicted,
        weights is not None and owners.get(weights.parameter) is layer,
        note,
    )


def _notes(model: nn.Module, rows: Sequence[InitRow], calls: dict[Layer, Weights | None], mode: str) -> list[str]:
    notes: list[str] = []
    if mode == "hendrycks2016" and len(rows) > 1:
        last = rows[-1]
        notes.append(
            "hendrycks2016, as printed, adds the backward term to the forward one (of ReLU without dropout, this "
            "halves the variance per layer), so the signal shrinks at every layer: "
            f"{last.predicted.train_variance:.2g} of its variance is left at {last.name} in train mode, "
            f"{last.predicted.eval_variance:.2g} in eval mode; mode='forward' keeps it"
        )
    known = {w.parameter for w in calls.values() if w is not None}
    left = [path for path, p in model.named_parameters() if p.dim() > 1 and p.requires_grad and p not in known]
    if left:
        shown = ", ".join(left[:4]) + (f" and {len(left) - 4} more" if len(left) > 4 else "")
        notes.append(f"left as they were, since no weight layer in the graph reads them: {shown}")
    return notes


def _require(condition: bool, name: str, value: object, choices: Sequence[str]) -> None:
    if not condition:
        raise ValueError(f"{name} is {value!r}: it must be {' or '.join(choices)}")
