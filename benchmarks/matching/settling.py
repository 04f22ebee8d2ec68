"""Norm after norm, in the order they run: slow and obvious rules for what each is to store.

Two streams: noise on, with the statistics that training stored, and noise off, with those settled already.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evenkeel.model.norms import Norm, norms_of

_CHUNK, _POSITIONS = 256, 4  # samples in a pass, and positions of an image that are looked at
Stored = tuple[Tensor, Tensor]  # a mean and a variance per channel


@dataclass
class Seen:
    """What reached a norm: a row for each sample and position looked at, a column for each channel.

    Attributes:
        z: the norm's input; of the noisy stream, its mean over masks.
        behind: the norm's output in the noisy stream after the ReLU behind it, if there is one; mean over masks.
        is_rectified: whether a ReLU takes the norm's output.
    """

    z: Tensor
    behind: Tensor
    is_rectified: bool


Rule = Callable[[Norm, Seen, Seen], Stored]  # of the norm, the quiet stream and the noisy stream


class _Reached(Exception):
    """The pass has come as far as it has to."""


@contextmanager
def noisy(model: nn.Module) -> Iterator[None]:
    """Train mode of everything but norms."""
    model.train()
    for norm in norms_of(model).values():
        norm.eval()
    try:
        yield
    finally:
        model.eval()


def rows(z: Tensor) -> Tensor:
    """Samples and some of the positions, the same each time, by channels."""
    if z.ndim == 2:
        return z
    flat = z.flatten(2)
    count = flat.shape[2]
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(count))[:_POSITIONS]
    return flat[:, :, chosen].movedim(1, 2).flatten(0, 1)


@torch.no_grad()
def look(model: nn.Module, x: Tensor, norms: list[Norm]) -> dict[Norm, Seen]:
    """What reaches these norms in one pass, in the order they run; the pass ends at the last one if it is alone."""
    found: dict[Norm, list[Tensor]] = {}
    rectified: set[Norm] = set()
    last: dict[str, Any] = {}

    def at_norm(norm: Any, args: tuple[Tensor, ...]) -> None:
        found.setdefault(norm, []).append(rows(args[0]).double())
        if len(norms) == 1:
            raise _Reached

    def after_norm(norm: Any, _: Any, output: Tensor) -> None:
        last["norm"], last["output"] = norm, output

    def at_relu(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args[0] is last.get("output"):
            rectified.add(last["norm"])

    hooks = [norm.register_forward_pre_hook(at_norm) for norm in norms]
    hooks += [norm.register_forward_hook(after_norm) for norm in norms]
    hooks += [m.register_forward_pre_hook(at_relu) for m in model.modules() if isinstance(m, nn.ReLU)]
    for part in x.split(_CHUNK):
        with suppress(_Reached):
            model(part)
    for hook in hooks:
        hook.remove()
    pooled = {norm: torch.cat(parts) for norm, parts in found.items()}
    return {norm: Seen(z, normalised(norm, z, norm in rectified), norm in rectified) for norm, z in pooled.items()}


def normalised(norm: Norm, z: Tensor, is_rectified: bool) -> Tensor:
    """What the norm makes of its input in eval mode, and the ReLU behind it."""
    scale, shift = affine(norm)
    y = z * scale + shift
    return y.relu() if is_rectified else y


def affine(norm: Norm) -> tuple[Tensor, Tensor]:
    """The norm in eval mode as a factor and a term per channel."""
    mean, var = stored(norm)
    weight, bias = norm.weight.detach().double(), norm.bias.detach().double()
    scale = weight / (var + norm.eps).sqrt()
    return scale, bias - scale * mean


def stored(norm: Norm) -> Stored:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean.double().clone(), norm.running_var.double().clone()


def write(norm: Norm, values: Stored) -> None:
    for buffer, value in zip((norm.running_mean, norm.running_var), values, strict=True):
        assert buffer is not None
        buffer.copy_(value)


def noisy_stream(model: nn.Module, x: Tensor, masks: int) -> dict[Norm, Seen]:
    """Every norm's input with noise on, averaged over masks; norms in the order they run."""
    with noisy(model):
        runs = [look(model, x, list(norms_of(model).values())) for _ in range(masks)]
    return {
        norm: Seen(
            sum((run[norm].z for run in runs), torch.zeros(())) / masks,
            sum((run[norm].behind for run in runs), torch.zeros(())) / masks,
            seen.is_rectified,
        )
        for norm, seen in runs[0].items()
    }


def settle(model: nn.Module, x: Tensor, rule: Rule, masks: int = 4) -> nn.Module:
    """A copy in which each norm stores what the rule says, once those before it do."""
    model = copy.deepcopy(model).eval()
    for norm, noise in noisy_stream(model, x, masks).items():
        write(norm, rule(norm, look(model, x, [norm])[norm], noise))
    return model


def variance(norm: Norm, quiet: Seen, noise: Seen) -> Stored:
    """The mean and the variance of the input with noise off."""
    return quiet.z.mean(0), quiet.z.var(0)


def mean(norm: Norm, quiet: Seen, noise: Seen) -> Stored:
    """What makes the output with noise off the best affine prediction of that with noise on, averaged over masks."""
    m, v = stored(norm)
    off, on = quiet.z - quiet.z.mean(0), noise.z - noise.z.mean(0)
    slope = (off * on).mean(0) / off.square().mean(0)
    slope = torch.where(slope.isfinite() & (slope > 0), slope, 1.0)
    v_new = ((v + norm.eps) / slope.square() - norm.eps).clamp_min(0)
    return quiet.z.mean(0) - (noise.z.mean(0) - m) / slope, v_new


def behind(norm: Norm, quiet: Seen, noise: Seen, steps: int = 15) -> Stored:
    """What makes relu(a z + b) with noise off the best prediction of that with noise on, averaged over masks."""
    known = mean(norm, quiet, noise)
    if not noise.is_rectified:
        return known
    weight, bias = norm.weight.detach().double(), norm.bias.detach().double()
    a = weight / (known[1] + norm.eps).sqrt()
    b = bias - a * known[0]
    best = a, b
    least = _misfit(quiet.z, noise.behind, a, b)
    for _ in range(steps):  # least squares where the ReLU is open, until where it is open does not change
        a, b = _fit_open(quiet.z, noise.behind, a, b)
        misfit = _misfit(quiet.z, noise.behind, a, b)
        better = (misfit < least) & (a * weight > 0)
        best = torch.where(better, a, best[0]), torch.where(better, b, best[1])
        least = torch.where(better, misfit, least)
    a, b = best
    var = (weight / a).square() - norm.eps
    fits = a.isfinite() & (a * weight > 0) & (var > 0)
    return torch.where(fits, (bias - b) / a, known[0]), torch.where(fits, var, known[1])


def _misfit(z: Tensor, target: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return ((z * a + b).relu() - target).square().mean(0)


def _fit_open(z: Tensor, target: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and offset of least squares over the rows in which a z + b is positive, channel by channel."""
    is_open = (z * a + b > 0).double()
    count = is_open.sum(0)
    centre_z, centre_t = ((v * is_open).sum(0) / count for v in (z, target))
    off_z, off_t = (z - centre_z) * is_open, (target - centre_t) * is_open
    slope = (off_z * off_t).sum(0) / off_z.square().sum(0)
    fits = slope.isfinite() & (count > 2)
    return torch.where(fits, slope, a), torch.where(fits, centre_t - slope * centre_z, b)


def best_of(
    model: nn.Module, x: Tensor, starts: list[nn.Module], rules: list[Rule], loss: Callable[[nn.Module], float]
) -> nn.Module:
    """From the start of the lowest loss on: norm after norm stores what the rule of the lowest loss says."""
    model, start = copy.deepcopy(model).eval(), min(starts, key=loss)
    streams = {norm: (noise, stored(norm)) for norm, noise in noisy_stream(model, x, 4).items()}
    model.load_state_dict(start.state_dict())
    least = loss(model)
    for norm, (noise, trained) in streams.items():
        quiet, known = look(model, x, [norm])[norm], stored(norm)
        write(norm, trained)  # what the rules compare with
        for value in [rule(norm, quiet, noise) for rule in rules]:
            write(norm, value)
            found = loss(model)
            if found < least:
                least, known = found, value
        write(norm, known)
    return model


@torch.no_grad()
def ensemble(model: nn.Module, x: Tensor, combine: Callable[[Tensor], Tensor], passes: int = 64) -> Tensor:
    """The mean over noisy passes of what `combine` makes of the outputs."""
    model = copy.deepcopy(model)
    total = torch.zeros(())
    with noisy(model):
        for _ in range(passes):
            total = total + torch.cat([combine(model(part)) for part in x.split(512)])
    return total / passes
