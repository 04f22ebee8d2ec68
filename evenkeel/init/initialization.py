"""init_: weights whose variance fits what the graph says comes before and after them."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn

from evenkeel.errors import EvenkeelError, ModelError
from evenkeel.graph.branches import branches_of
from evenkeel.graph.kinds import EMBEDDINGS, Kind
from evenkeel.graph.layer_graph import Layer, LayerGraph
from evenkeel.graph.tracing import graph_of
from evenkeel.init.drawing import FILLS, Distribution, draw_
from evenkeel.init.forecast import Forecast
from evenkeel.init.gains import MODES, Mode, choose_variances, words
from evenkeel.init.init_report import InitReport, InitRow
from evenkeel.model.buffers import write_
from evenkeel.model.sharding import groups_of
from evenkeel.model.threads import single_threaded
from evenkeel.model.wrappers import unwrapped
from evenkeel.signals.propagation import MeanSquares, Propagation
from evenkeel.signals.weights import Weights, weights_of
from evenkeel.statistics.distributed import Ranks

_SEEDS = range(-(2**63), 2**64)  # what torch.Generator takes


def init_(
    model: nn.Module,
    example: Any,
    *,
    mode: Mode = "forward",
    weights: Distribution = "sphere",
    seed: int | None = None,
    branch_scale: float | Literal["even"] = 1.0,
) -> InitReport:
    """Draw a model's weights so that signals keep their variance through every activation, dropout and pool.

    For each weight layer, the graph gives the second moment q of its input in train mode: behind an activation of
    unit variance E f^2, divided by keep for dropout; behind a max-pool that of the largest value; behind a join the
    sum. With d the mean square of the derivative on the way there (E f'^2 / keep), weights get the variance

        forward          1 / (fan_in q)                  signals keep their variance; E f^2 / keep
        backward         1 / (fan_out d)                 gradients keep theirs; E f'^2 / keep
        mean             2 / (fan_in q + fan_out d)
        hendrycks2016    1 / (fan_in (E f^2 / keep + keep E f'^2)), as printed, f' that of the activation after

    after Hendrycks & Gimpel (2016, section 2), whose printed backward term is not what autograd does. In layers of
    finite width, samples differ in strength, and an activation that is no multiple of ReLU makes more or less of the
    mixture than of its mean: q and d are means over samples. Biases are set to 0. Behind an operation that is not
    understood, q is 1/2, the paper's default.

    Args:
        model: the model. Its norms, its frozen parameters and those that no weight layer uses stay as they are.
        example: as for `trace`, or the graph that `trace` made; its values do not matter.
        mode: what is to keep its variance.
        weights: the distribution: "sphere" (rows of one length), "orthogonal", "normal" or "uniform", all of the same
            variance. With mode hendrycks2016, "uniform" is the paper's generalized Xavier: fan_out in place of fan_in
            in the second term.
        seed: the same seed gives the same bits ("orthogonal": on the same number of threads). None draws from torch's
            global generator.
        branch_scale: factor of the last weights, or the norm behind them, of every residual branch that ends in a sum,
            so that sums do not grow with depth; "even" is 1 / sqrt(number of branches). Concatenations, as in dense
            blocks, do not add up: their branches are not scaled.

    Returns:
        The report; `undo()` puts back the weights from before. Where processes replicate or shard the model, each must
        call this, and undo; they draw the same weights.

    Raises:
        TraceError: the model's forward pass raises.
        ModelError: there are no weights to draw, or they are on the meta device.
        EvenkeelError: mode, weights, seed or branch_scale is none of those above.

    >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10))
    >>> report = init_(net, torch.ones(1, 64), seed=0)
    >>> [(row.name, row.before, round(row.gain, 4)) for row in report]
    [('0', 'input', 1.0), ('3', 'dropout p=0.5, relu, linear', 1.0)]
    """
    _require_arguments(mode, weights, seed, branch_scale)
    with unwrapped(model) as plainly:
        if seed is None and (groups := groups_of(model)):  # all processes are to draw the same
            seed = _first_of(groups, int(torch.randint(2**31, ())))
        graph = graph_of(plainly, example)
        calls = {layer: weights_of(layer) for layer in graph.of(Kind.WEIGHT)}
        owners = _owners(calls)
        _require_weights(plainly, owners)
        biases = {w.bias for w in calls.values() if w and w.parameter in owners and _is_free(w.bias)}
        scales = _branch_scales(graph, branch_scale)
        gammas = {layer.arguments["weight"]: scale for layer, scale in scales.items() if layer.kind is Kind.NORM}
        with _restored_on_error() as before:
            for parameter, value in {**gammas, **dict.fromkeys(biases, 0.0)}.items():
                before[parameter] = _copy(parameter)
                write_(parameter, torch.full_like(parameter, value))
            variances, chosen_for = choose_variances(graph, owners, mode, xavier=weights == "uniform", scales=scales)
            _draw([w for layer in owners.values() if (w := calls[layer])], variances, weights, seed, before)
            rows = cache(partial(_rows, Forecast.of(graph, calls, variances), calls))
            return InitReport(
                rows,
                untouched=_undrawn(calls, owners) | _unread(plainly, calls),
                unsure={layer.name: found for layer in owners.values() if (found := _guess(graph, layer, chosen_for))},
                notes=_shrinking(rows()) if mode == "hendrycks2016" else (),
                mode=mode,
                weights=weights,
                model=model,
                before=before,
            )


def _first_of(groups: Sequence[Any], seed: int) -> int:
    """The seed of the first process."""
    for group in groups:
        seed = int(Ranks(group).first(torch.tensor([seed])))
    return seed


def _require_arguments(mode: Any, weights: Any, seed: Any, branch_scale: Any) -> None:
    is_scale = branch_scale == "even" or (type(branch_scale) in (int, float) and 0 < branch_scale < math.inf)
    for name, value, holds, choices in (
        ("mode", mode, mode in MODES, MODES),
        ("weights", weights, weights in tuple(FILLS), tuple(FILLS)),
        ("seed", seed, seed is None or (type(seed) is int and seed in _SEEDS), ("None", "a whole number of 64 bits")),
        ("branch_scale", branch_scale, is_scale, ("a positive number", "even")),
    ):
        if not holds:
            raise EvenkeelError(f"{name} is {value!r}: it must be {' or '.join(choices)}")


def _owners(calls: Mapping[Layer, Weights | None]) -> dict[nn.Parameter, Layer]:
    """The parameters to draw, each with the one call that decides: of tied ones a product rather than an embedding."""
    owners: dict[nn.Parameter, Layer] = {}
    for layer, weights in calls.items():
        if weights is not None and _is_free(weights.parameter):
            first = owners.setdefault(weights.parameter, layer)
            if first.function in EMBEDDINGS and layer.function not in EMBEDDINGS:
                owners[weights.parameter] = layer
    return owners


def _is_free(parameter: nn.Parameter | None) -> TypeGuard[nn.Parameter]:
    return parameter is not None and parameter.requires_grad


def _require_weights(model: nn.Module, owners: Mapping[nn.Parameter, Layer]) -> None:
    if not owners:
        raise ModelError(
            f"{type(model).__name__} has no weight layer with weights to draw: those it has are frozen "
            "(requires_grad=False) or computed from other parameters"
        )
    for parameter, layer in owners.items():
        if parameter.is_meta:
            raise ModelError(f"the weights of {layer.name!r} are on the meta device: model.to_empty(device=...) first")


def _branch_scales(graph: LayerGraph, scale: float | str) -> dict[Layer, float]:
    """The last weights, or the norm behind them, of every residual branch that ends in a sum, each with its factor."""
    if scale == 1.0:
        return {}
    branches = (branch.layers for branch in branches_of(graph) if branch.join.kind is Kind.JOIN)
    scalable = ([x for x in layers if x.kind is Kind.WEIGHT or _has_gamma(x)] for layers in branches)
    last = dict.fromkeys(layers[-1] for layers in scalable)
    return dict.fromkeys(last, 1 / math.sqrt(max(len(last), 1)) if scale == "even" else float(scale))


def _has_gamma(layer: Layer) -> bool:
    return layer.kind is Kind.NORM and _is_free(layer.arguments.get("weight"))


@contextmanager
def _restored_on_error() -> Generator[dict[nn.Parameter, Tensor]]:
    """Yield where to keep copies of parameters before they are changed; on any error, put them back."""
    before: dict[nn.Parameter, Tensor] = {}
    try:
        yield before
    except BaseException:
        for parameter, values in before.items():
            write_(parameter, values)
        raise


def _copy(parameter: nn.Parameter) -> Tensor:
    return parameter.detach().clone()


def _draw(
    drawn: Sequence[Weights],
    variances: Mapping[nn.Parameter, float],
    distribution: Distribution,
    seed: int | None,
    before: dict[nn.Parameter, Tensor],
) -> None:
    """Fill all weights at once, each from a seed of its own, so that the number of threads does not matter.

    Each is copied to `before` by the thread that then fills it, as fresh memory is slow to get. Orthogonal ones are
    filled one by one: LAPACK uses all cores by itself.
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    seeds: list[int] = torch.randint(2**62, (len(drawn),), generator=generator).tolist()

    def fill(item: tuple[Weights, int]) -> None:
        weights, own_seed = item
        before[weights.parameter] = _copy(weights.parameter)
        own = torch.Generator(weights.parameter.device).manual_seed(own_seed)
        draw_(weights, variances[weights.parameter], distribution, own)

    largest_first = sorted(zip(drawn, seeds, strict=True), key=lambda item: -item[0].parameter.numel())
    if distribution == "orthogonal":
        list(map(fill, largest_first))
        return
    count = torch.get_num_threads()
    with single_threaded(), ThreadPoolExecutor(count) as pool:  # whose threads do not divide their work further
        list(pool.map(fill, largest_first))


def _rows(forecast: Forecast, calls: Mapping[Layer, Weights | None]) -> list[InitRow]:
    predicted = forecast.mean_squares()
    return [_row(forecast, forecast.graph[n.name], weights, predicted[n.name]) for n, weights in calls.items()]


def _row(forecast: Forecast, layer: Layer, weights: Weights | None, predicted: MeanSquares) -> InitRow:
    fan_in = fan_out = gain = math.nan
    if weights is not None:
        fan_in, fan_out = weights.fan_in, weights.fan_out
        gain = math.sqrt(forecast.squares[layer.name] * fan_in)
    return InitRow(layer.name, *words(forecast.graph, layer), fan_in, fan_out, gain, predicted)


def _guess(graph: LayerGraph, layer: Layer, chosen_for: Propagation) -> str | None:
    """What a layer's gain is guessed from; None if its input is understood."""
    if chosen_for.signals[layer.inputs[0]].known:
        return None
    unknown = [x for x in graph.upstream(layer, (Kind.WEIGHT, Kind.NORM)) if not chosen_for.signals[x].known]
    return f"its input is not understood ({unknown[-1].name if unknown else '?'}): factor 1/2"


def _undrawn(calls: Mapping[Layer, Weights | None], owners: Mapping[nn.Parameter, Layer]) -> dict[str, str]:
    """Why weight layers were not drawn, by name."""
    reasons: dict[str, str] = {}
    for layer, weights in calls.items():
        if weights is None:
            reasons[layer.name] = "its weights are computed from other parameters"
        elif weights.parameter not in owners:
            reasons[layer.name] = "frozen (requires_grad=False)"
        elif owners[weights.parameter] is not layer:
            reasons[layer.name] = f"shares its weights with {owners[weights.parameter].name}, which decides"
    return reasons


def _unread(model: nn.Module, calls: Mapping[Layer, Weights | None]) -> dict[str, str]:
    """Why other parameters with more than one dimension were not drawn, by path."""
    read = {w.parameter for w in calls.values() if w is not None}
    left = (path for path, p in model.named_parameters() if p.dim() > 1 and p.requires_grad and p not in read)
    return dict.fromkeys(left, "no weight layer in the graph reads it")


def _shrinking(rows: Sequence[InitRow]) -> list[str]:
    if len(rows) == 1:
        return []
    last = rows[-1]
    return [
        "hendrycks2016, as printed, adds the backward term to the forward one (of ReLU without dropout, this halves "
        "the variance per layer), so the signal shrinks at every layer: "
        f"{last.predicted.train_variance:.2g} of its variance is left at {last.name} in train mode, "
        f"{last.predicted.eval_variance:.2g} in eval mode; mode='forward' keeps it"
    ]
