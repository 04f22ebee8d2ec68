"""Theorems: what dropout makes of information, entropy and correlation, enumerated and drawn (chen2019)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evenkeel.papers.lab.trials import Trial
from evenkeel.theory.chen2019 import correlation_factor, dropped_entropy, information_factor

_DRAWS = {"smoke": 50_000, "quick": 300_000, "desk": 3_000_000, "full": 3_000_000}
_CORRELATION = 0.6  # of the normal neurons
_BINS = 8  # of equal mass, that their information is taken over


def theorem(trial: Trial) -> dict[str, Any]:
    """Information, entropy and correlation of two neurons behind dropout, over those before it, and by the formulas.

    Discrete neurons of three values, of a joint law drawn at random, are enumerated, gate by gate; normal ones of
    correlation .6 are drawn, and their information is that of eight bins each, with dropout's zeros apart.

    Factors: `p`, the drop rate.

    Figures: `information`, the ratio, enumerated, and `information_drawn`; `information_zero`, enumerated where one of
    the values is 0 itself, as behind a ReLU; `entropy`, in nats, enumerated; `correlation`, the ratio, drawn, and
    `correlation_mean`, of neurons whose mean is one deviation; each law as `NAME_theory`, that of `information_zero` a
    bound; `enumerated_off` and `drawn_off`, the largest distances from the formulas.
    """
    p = trial.factors["p"]
    joint = torch.rand(3, 3, dtype=torch.float64)
    joint /= joint.sum()
    enumerated = {
        "information": _information(_dropped(joint, p)) / _information(joint),
        "entropy": _entropy(_dropped(joint, p).sum(1)),
    }
    zero = _information(_dropped(joint, p, zero=True)) / _information(joint)
    neurons, gates = _normal_pair(_DRAWS[trial.scale]), torch.rand(_DRAWS[trial.scale], 2) >= p
    drawn = {
        "information_drawn": _drawn_information(neurons, gates),
        "correlation": _correlation(neurons * gates) / _correlation(neurons),
        "correlation_mean": _correlation((neurons + 1) * gates) / _correlation(neurons),
    }
    theory = {
        "information": information_factor(p),
        "entropy": dropped_entropy(_entropy(joint.sum(1)), p),
        "information_drawn": information_factor(p),
        "correlation": correlation_factor(p),
        "correlation_mean": correlation_factor(p, mean=1.0),
    }
    return {
        **enumerated,
        **drawn,
        **{f"{name}_theory": float(law) for name, law in theory.items()},
        "information_zero": zero,
        "enumerated_off": max(abs(value - theory[name]) for name, value in enumerated.items()),
        "drawn_off": max(abs(value - theory[name]) for name, value in drawn.items()),
    }


def _dropped(joint: Tensor, p: float, zero: bool = False) -> Tensor:
    """The joint law behind dropout, whose zeros are a value of their own or, if `zero`, the first of the values."""
    values = len(joint)
    kept = torch.eye(values, dtype=joint.dtype)
    channel = (1 - p) * (kept if zero else torch.nn.functional.pad(kept, (1, 0)))
    channel[:, 0] += p
    return channel.T @ joint @ channel


def _information(joint: Tensor) -> float:
    """Mutual information in nats."""
    return _entropy(joint.sum(0)) + _entropy(joint.sum(1)) - _entropy(joint)


def _entropy(law: Tensor) -> float:
    return float(torch.special.entr(law).sum())


def _normal_pair(draws: int) -> Tensor:
    first, second = torch.randn(2, draws)
    return torch.stack([first, _CORRELATION * first + (1 - _CORRELATION**2) ** 0.5 * second], 1)


def _correlation(pairs: Tensor) -> float:
    return float(pairs.double().T.corrcoef()[0, 1])


def _drawn_information(neurons: Tensor, gates: Tensor) -> float:
    """The ratio of the information of bins behind dropout to that before it."""
    edges = torch.special.ndtri(torch.linspace(0, 1, _BINS + 1)[1:-1])
    bins = torch.bucketize(neurons, edges) + 1

    def information(bins: Tensor) -> float:
        counts = torch.bincount(bins[:, 0] * (_BINS + 1) + bins[:, 1], minlength=(_BINS + 1) ** 2)
        return _information(counts.double().view(_BINS + 1, -1) / len(bins))

    return information(bins * gates) / information(bins)
