"""Heads: what dropout before or after the global pool does to the outputs of a trained network (kim2023)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from evenkeel.errors import EvenkeelError
from evenkeel.papers.lab import measures
from evenkeel.papers.lab.images import Images
from evenkeel.papers.lab.training import batches_of
from evenkeel.papers.lab.trials import Trial
from evenkeel.theory.kim2023 import expected_head_variance_ratio, noise_after_pooling, noise_before_pooling
from evenkeel.theory.li2018 import dropout_noise

_MASKS = 64
_IMAGES = 1000
_RECTIFIED = {"mean": 1 / math.sqrt(2 * math.pi), "variance": 0.5 - 1 / (2 * math.pi)}  # ReLU of a standard normal


def equal_noise_rate(p: float, positions: int) -> float:
    """The rate before a global pool that makes as much noise as a rate behind it, of independent rectified values.

    `p' / (1 - p') = p / (1 - p) / ratio`, with the ratio of `theory.kim2023.expected_head_variance_ratio`.

    Args:
        p: rate behind the pool, 0 <= p < 1.
        positions: of a map.

    >>> round(equal_noise_rate(0.2, 64), 3), equal_noise_rate(0.2, 1)
    (0.84, 0.2)
    """
    noise = float(dropout_noise(p)) / float(expected_head_variance_ratio(positions, **_RECTIFIED))
    return noise / (1 + noise)


def head_noise(trial: Trial) -> dict[str, Any]:
    """Scores, and how much the logits move from mask to mask of the head's dropout, in eval mode otherwise.

    Factors: `p`, the rate after the pool that the arm stands for.

    Figures: `logit_noise`, the variance over masks, as the head was trained, over the variance of logits over images,
    drawn, and `logit_noise_theory`, by the closed form; `before_noise` and `after_noise`, by the closed form, of this
    network with dropout of rate `p` on either side of the pool; `noise_ratio`, of these two, which is that at any rate;
    `positions`, of a map.
    """
    assert trial.trained is not None and trial.images is not None
    net = trial.trained.model(trial.images).eval()
    figures = measures.scores(trial)
    if not math.isfinite(trial.trained.history[-1]["train_loss"]):
        return figures
    maps = _maps(net, trial.images)
    squares = _classifier(net).weight.detach().double() ** 2
    signal = float(_behind_maps(net, maps).double().var(0, correction=0).mean())
    units = {
        "before": float((noise_before_pooling(maps.double(), 0.5) @ squares.T).mean()) / signal,
        "after": float((noise_after_pooling(maps.double(), 0.5) @ squares.T).mean()) / signal,
    }
    noise = float(dropout_noise(trial.factors["p"]))
    places = {"drop_pool": "before", "drop_fc": "after"}
    drops = {places[name]: layer.p for name, layer in _head(net).named_children() if isinstance(layer, nn.Dropout)}
    return {
        **figures,
        "logit_noise": _drawn_noise(net, maps) / signal if drops else 0.0,
        "logit_noise_theory": sum(units[place] * float(dropout_noise(p)) for place, p in drops.items()),
        "before_noise": units["before"] * noise,
        "after_noise": units["after"] * noise,
        "noise_ratio": units["before"] / units["after"],
        "positions": math.prod(maps.shape[2:]),
    }


def _head(net: nn.Module) -> nn.Sequential:
    head = net.get_submodule("head")
    assert isinstance(head, nn.Sequential)
    if "pool" not in dict(head.named_children()):
        raise EvenkeelError(f"a head of {', '.join(dict(head.named_children()))} has no pool to put dropout around")
    return head


def _classifier(net: nn.Module) -> nn.Linear:
    layer = _head(net).get_submodule("fc")
    assert isinstance(layer, nn.Linear)
    return layer


def _split(net: nn.Module) -> tuple[nn.Sequential, nn.Sequential]:
    """What comes before the global pool and its dropout, and the rest."""
    head = dict(_head(net).named_children())
    at = list(head).index("drop_pool" if "drop_pool" in head else "pool")
    body = [child for name, child in net.named_children() if name != "head"]
    return nn.Sequential(*body, *list(head.values())[:at]), nn.Sequential(*list(head.values())[at:])


def _maps(net: nn.Module, images: Images) -> Tensor:
    body = _split(net)[0].eval()
    with torch.no_grad():
        return torch.cat([body(inputs) for inputs, _ in batches_of(images, images.test, _IMAGES)])


@torch.no_grad()
def _behind_maps(net: nn.Module, maps: Tensor, *, drop: bool = False) -> Tensor:
    """Logits of maps: the rest of the head holds no norm, so train mode is dropout."""
    rest = _split(net)[1].train(drop)
    return rest(maps)


def _drawn_noise(net: nn.Module, maps: Tensor) -> float:
    """The variance of logits over masks, averaged over images and classes."""
    clean = _behind_maps(net, maps)
    drawn = [(_behind_maps(net, maps, drop=True) - clean).double().square().mean() for _ in range(_MASKS)]
    return float(torch.stack(drawn).mean())
