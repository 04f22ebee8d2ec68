"""Which layers really differ by chance in eval mode: two passes of one input, from different seeds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from evenkeel.graph.kinds import Kind
from evenkeel.graph.recorder import Recorder
from evenkeel.model.nested import map_tensors
from evenkeel.model.restoring import restored, seed_all


class _OutputRecorder(Recorder):
    """Keeps what some layers return, by name."""

    def __init__(self, model: nn.Module, names: Collection[str]) -> None:
        super().__init__(model, training=False)
        self.wanted = frozenset(names)
        self.outputs: dict[str, Tensor] = {}

    def _add(self, kind: Kind, function: str, outputs: Iterable[Tensor], **details: Any) -> None:
        outputs = list(outputs)
        super()._add(kind, function, outputs, **details)
        if outputs and self.layers[-1].name in self.wanted:
            with torch._C.DisableTorchFunction():
                self.outputs[self.layers[-1].name] = outputs[0].clone()


def random_layers(model: nn.Module, run: Callable[[Any], Any], inputs: Any, names: Collection[str]) -> frozenset[str]:
    """The layers among those named whose output in eval mode is another with another seed; the model is restored.

    Args:
        model: the model, without wrappers.
        run: makes one forward pass, given inputs such as `inputs`.
        inputs: what `run` is given; they stay as they are.
        names: of layers in the graph recorded in eval mode.

    Returns:
        Their names; all of them, if the model does not run.
    """
    found: list[dict[str, Tensor]] = []
    for seed in range(2):
        recorder = _OutputRecorder(model, names)
        try:
            with restored(model), torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.eval()
                seed_all(seed)
                recorder.run(run, map_tensors(torch.clone, inputs))
        except Exception:
            return frozenset(names)
        found.append(recorder.outputs)
    return frozenset(name for name in names if not _same(*(outputs.get(name) for outputs in found)))


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.shape != other.shape:
        return False
    return bool(torch.isclose(one, other, rtol=0, atol=0, equal_nan=True).all())
