"""The nets, images and recipes of Li et al. 2018, by scale."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from evenkeel.papers.lab.specs import DESK_RECIPE, Recipe, Scale

# PreResNet "110" has 164 layers: 54 bottlenecks, 1.70 M parameters, as the paper counts.
SIZES: dict[Scale, dict[str, dict[str, Any]]] = {
    "smoke": {
        "preresnet": {"depth": 11, "width": 4},
        "resnext": {"depth": 11, "cardinality": 2, "base_width": 2, "width": 4},
        "wrn": {"depth": 10, "widen": 1, "width": 4},
        "densenet": {"depth": 10, "growth": 4, "bottleneck": True},
    },
    "quick": {
        "preresnet": {"depth": 11, "width": 8},
        "resnext": {"depth": 11, "cardinality": 4, "base_width": 4, "width": 4},
        "wrn": {"depth": 10, "widen": 2, "width": 8},
        "densenet": {"depth": 16, "growth": 6, "bottleneck": True},
    },
    # In the order in which they are run: 0.33, 0.69, 0.57 and 0.65 seconds of a core a step in float32; the wide net
    # comes before the two others since it gains from bfloat16 (0.27).
    "desk": {
        "preresnet": {"depth": 20, "block": "basic"},
        "wrn": {"depth": 16, "widen": 2},
        "densenet": {"depth": 22, "growth": 12, "bottleneck": True},
        "resnext": {"depth": 20, "cardinality": 4, "base_width": 4, "width": 16},
    },
    "full": {
        "preresnet": {"depth": 164},
        "resnext": {"depth": 29, "cardinality": 8, "base_width": 64},
        "wrn": {"depth": 28, "widen": 10},
        "densenet": {"depth": 100, "growth": 12, "bottleneck": True},
    },
}

# Of the code that the paper follows, bearpaw/pytorch-classification.
_RECIPES = {
    "preresnet": Recipe(epochs=164, batch=128, weight_decay=1e-4, milestones=(81 / 164, 122 / 164)),
    "resnext": Recipe(epochs=300, batch=128, weight_decay=5e-4, milestones=(0.5, 0.75)),
    "wrn": Recipe(epochs=200, batch=128, weight_decay=5e-4, milestones=(0.3, 0.6, 0.8), gamma=0.2),
    "densenet": Recipe(epochs=300, batch=64, weight_decay=1e-4, milestones=(0.5, 0.75)),
}
_SHORT: dict[Scale, dict[str, Any]] = {"smoke": {"epochs": 1}, "quick": {"epochs": 8, "batch": 64}, "full": {}}


def recipe_at(scale: Scale, net: str) -> Recipe:
    """How a net is trained at a scale: as the paper did, shortened; at desk scale, as all nets are there."""
    if scale == "desk":
        return DESK_RECIPE
    return replace(_RECIPES[net], **{"optimizer": "sgd", "augment": True, **_SHORT[scale]})
