"""freeze_norms_: norms that stay on settled statistics for the last steps of training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, simplefilter
from weakref import WeakSet

from torch import nn

from evenkeel.errors import EvenkeelError, ModelError, StretchWarning
from evenkeel.model.flags import FROZEN, flagged, frozen_in
from evenkeel.model.norms import norms_of
from evenkeel.model.wrappers import unwrapped
from evenkeel.reestimation.reestimation import reestimate_
from evenkeel.reestimation.reestimation_report import Reestimation

if TYPE_CHECKING:
    from typing_extensions import Self


class FrozenNorms:
    """Norms that are in eval mode while their model trains; a context, too, that thaws them on leaving.

    Attributes:
        paths: the norms frozen here.
        reestimation: what settled their statistics; None if they were frozen as they were.
        untouched: norms that were not re-estimated, or frozen before, by path, each with the reason.
    """

    def __init__(
        self, norms: dict[str, nn.Module], owner: nn.Module, untouched: dict[str, str], done: Reestimation | None
    ) -> None:
        self.paths = tuple(norms)
        self.reestimation = done
        self.untouched = untouched
        self._norms = norms
        self._owner = owner
        self._stays = {path: _StaysInEval(norm) for path, norm in norms.items()}
        for path, norm in norms.items():
            norm.__dict__["train"] = self._stays[path]
            norm.training = False
        _ON.add(self)

    def thaw(self) -> None:
        """Let the norms follow `train()` again, as their model does now; their statistics stay as they are."""
        for path, norm in self._norms.items():
            if norm.__dict__.get("train") is self._stays[path]:
                del norm.__dict__["train"]
                norm.training = self._owner.training
        _ON.discard(self)

    def undo(self) -> None:
        """Thaw the norms, and put the statistics found before back."""
        self.thaw()
        if self.reestimation is not None:
            self.reestimation.undo()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.thaw()

    def __repr__(self) -> str:
        settled = "as they were" if self.reestimation is None else f"on {self.reestimation.samples} samples"
        return f"FrozenNorms({len(self.paths)} norms, {settled})"


_ON: WeakSet[FrozenNorms] = WeakSet()  # those whose norms are not thawed


class _StaysInEval:
    """Stands in for the `train` of a norm, on the object itself: unheld and pickled with it."""

    def __init__(self, norm: nn.Module) -> None:
        self._norm = norm

    def __call__(self, mode: bool = True) -> nn.Module:
        for child in self._norm.children():
            child.train(mode)
        self._norm.training = False
        return self._norm


def freeze_norms_(model: nn.Module, batches: Iterable[Any] | None = None, **options: Any) -> FrozenNorms:
    """Re-estimate the norms' statistics with dropout off, then keep the norms on them while training goes on.

    Frozen norms normalise by what they store, in train mode, too, so that weights adapt to what eval mode computes. No
    batch changes their statistics; their scale and offset are trained as ever. They stay in eval mode whatever calls
    `model.train()`, until `thaw()`. Wu & Johnson (2021, arXiv 2105.07576) advise it for the last epochs. Set drop rates
    to 0 as well, by `DropoutSchedule.quiet_end`: with dropout on, norms are fed more variance than they store, and the
    error grew (`benchmarks.quiet_end`). A copy of the model, by `deepcopy` or pickle, is frozen, too: another call
    returns what thaws it, as it does where what the first call returned is lost.

    Args:
        model: the model, changed in place.
        batches: as for `reestimate_`; if None, norms are frozen on the statistics that they store, as when training
            goes on from a checkpoint that was saved while they were frozen.
        options: of `reestimate_`, such as `tolerance=0.01` or `forward=`; `match` is "variance" unless given: training
            goes on, and adapts to what it changes.

    Returns:
        The way back: `thaw()`, or `undo()`, which takes back the statistics, too.

    Raises:
        EvenkeelError: norms are frozen already by another call, or as for `reestimate_`; the model is as it was then.
        ModelError: as for `reestimate_`.
        BatchError: as for `reestimate_`.

    >>> import torch
    >>> model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2))
    >>> with freeze_norms_(model, [torch.randn(256, 2) for _ in range(4)]):
    ...     found = model[1].running_var.clone()
    ...     _ = model.train()(torch.randn(8, 2))
    ...     print(model.training, model[1].training, torch.equal(found, model[1].running_var))
    True False True
    >>> model[1].training
    True
    """
    with unwrapped(model) as plain:
        norms = norms_of(plain)
        held = {norm for other in _ON for norm in other._norms.values()}
        if again := [path for path, norm in norms.items() if norm in held]:
            raise EvenkeelError(f"the norm {again[0]!r} is frozen already: thaw() it first")
        unheld = [norm for norm in norms.values() if isinstance(vars(norm).get("train"), _StaysInEval)]
        frozen = frozen_in(plain) - {*unheld}
        chosen: dict[str, nn.Module] = {path: norm for path, norm in norms.items() if norm not in frozen}
        if not chosen:
            raise ModelError(f"all {len(norms)} norms are {FROZEN}: there is none left to freeze")
    settings: dict[str, Any] = {"match": "variance"} | options
    with catch_warnings(), flagged(dict.fromkeys(unheld, plain.training)):
        simplefilter("ignore", StretchWarning)  # training goes on, and adapts
        done = None if batches is None else reestimate_(model, batches, **settings)
    untouched = dict.fromkeys((path for path, norm in norms.items() if norm in frozen), FROZEN)
    return FrozenNorms(chosen, plain, untouched | (done.untouched if done else {}), done)
