"""Noise: a model as training ran it, dropout on, but for its norms, which normalise by what training left in them."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from evenkeel.errors import ModelError
from evenkeel.model.buffers import trained_buffer, write_
from evenkeel.model.flags import flagged, frozen_in
from evenkeel.model.norms import has_running_statistics
from evenkeel.model.opacity import require_readable

STATISTICS = ("running_mean", "running_var")


@contextmanager
def noisy(model: nn.Module) -> Generator[None]:
    """Dropout on, and norms on the statistics that training left, while entered: what Monte Carlo dropout needs.

    The model is in train mode, but for norms with running statistics, which normalise by these, and for what was in
    eval mode inside a model given in train mode. After a repair (`reestimate_`, `correct_`) norms normalise by what
    they stored before it: the statistics of a repair are those of a signal without noise, and too small for one with
    it. On leaving, also after an exception, flags and statistics are as found. Masks are drawn as ever: the random
    state goes on.

    Args:
        model: the model.

    Raises:
        ModelError: the statistics were written by a repair, and those that training left are not known; files of
            `evenkeel repair` hold them, and `load_` reads them.

    >>> import torch
    >>> model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2)).eval()
    >>> with noisy(model), torch.no_grad():
    ...     outputs = torch.stack([model(torch.ones(8, 2)) for _ in range(64)])
    >>> bool(outputs.std(0).min() > 0), model[0].training
    (True, False)
    """
    with Noise(model).running():
        yield


class Noise:
    """Runs a model with noise on or off, its norms on the statistics that training left.

    Args:
        model: as `noisy` takes it; its modes now say what is frozen.

    Attributes:
        trained: the statistics that training left, mean and variance, of each norm.

    Raises:
        ModelError: as for `noisy`.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):  # type: ignore[redundant-expr]
            require_readable(model)
        self._model = model
        frozen = frozen_in(model)
        self._flags = {m: m not in frozen and not has_running_statistics(m) for m in model.modules()}
        self.trained: Mapping[nn.Module, tuple[Tensor, Tensor]] = {
            module: (_known(path, module, STATISTICS[0]), _known(path, module, STATISTICS[1]))
            for path, module in model.named_modules()
            if has_running_statistics(module)
        }

    @contextmanager
    def running(self, *, noise: bool = True) -> Generator[None]:
        """The model's modes and statistics, with noise or without; those found are put back."""
        was_training = self._model.training
        buffers = [getattr(norm, name) for norm in self.trained for name in STATISTICS]
        found = [buffer.detach().clone() for buffer in buffers]
        with flagged({module: module.training for module in self._model.modules()}):
            try:
                self._model.train(noise)  # some modules do more than to set their flag
                for module, flag in self._flags.items():
                    module.training = module.training and flag and noise  # what train() itself keeps off stays off
                for buffer, value in zip(buffers, (v for pair in self.trained.values() for v in pair), strict=True):
                    write_(buffer, value)
                yield
            finally:
                for buffer, value in zip(buffers, found, strict=True):
                    write_(buffer, value)
                self._model.train(was_training)


def _known(path: str, norm: nn.Module, name: str) -> Tensor:
    value = trained_buffer(norm, name)
    if value is None:
        raise ModelError(
            f"{name} of {path!r} was written by a repair, and what training left there is not known here: load the "
            "checkpoint as it was trained, or a repaired file by load_"
        )
    return value
