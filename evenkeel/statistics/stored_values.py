"""What stored statistics say of themselves: values that cannot be, and what is left of the initial ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from evenkeel.errors import count_text, listed
from evenkeel.model.buffers import is_as_written
from evenkeel.model.norms import Norm

NEVER_UPDATED = (
    "never updated, though its weight and bias were trained: in eval mode, where mean 0 and variance 1 are right, or "
    "it is a copy made before training, such as an average of weights, and they are wrong"
)
_SURELY = 0.98
MUCH = 0.05  # of the initial statistics: with more of them left, what is stored is not what was met


def faults_in(norm: Norm) -> dict[str, str]:
    """Which of a norm's statistics cannot be, by name, each with what is wrong in words.

    >>> import torch
    >>> norm = torch.nn.BatchNorm1d(3)
    >>> norm.running_var[0] = -1.0
    >>> faults_in(norm)
    {'running_var': 'running_var holds negative values in 1 of 3 channels'}
    """
    found: dict[str, str] = {}
    for name in ("running_mean", "running_var"):
        values = getattr(norm, name)
        kinds = _infinite(values)
        if name == "running_var":
            kinds["negative values"] = (values < 0) & values.isfinite()
        if counts := _counts(kinds):
            found[name] = f"{name} holds {counts} of {len(values)} channels"
    return found


def _infinite(values: Tensor) -> dict[str, Tensor]:
    """Where something is no number, by what it is."""
    return {"NaN": values.isnan(), "infinite values": values.isinf()}


def _counts(kinds: Mapping[str, Tensor]) -> str:
    return " and ".join(f"{what} in {int(where.sum())}" for what, where in kinds.items() if where.any())


@torch.no_grad()
def infinite_parameters(model: nn.Module) -> dict[str, str]:
    """The parameters that hold what is no number, by path, each with that in words.

    >>> net = nn.Sequential(nn.Linear(2, 2))
    >>> net[0].weight.data[0, 0] = math.nan
    >>> infinite_parameters(net)
    {'0.weight': 'holds NaN in 1 of 4 values'}
    """
    return {
        path: f"holds {_counts(_infinite(parameter))} of {parameter.numel()} values"
        for path, parameter in model.named_parameters()
        if not (is_lazy(parameter) or parameter.is_meta) and parameter.is_floating_point() and parameter.itemsize > 1
        if not parameter.isfinite().all()
    }


def infinite_behind(model: nn.Module, norms: Mapping[str, Norm]) -> list[str]:
    """A line for every parameter that holds what is no number, but for those of norms that have a row."""
    own = {f"{path}.{name}" for path in norms for name in ("weight", "bias")}
    return [
        f"{path} {what}, and so does what is made of it: load a checkpoint from before"
        for path, what in infinite_parameters(model).items()
        if path not in own
    ]


def fault_in_affine(norm: Norm) -> str:
    """What in a norm's weight and bias is no number, in words; nothing if all is.

    >>> norm = nn.BatchNorm1d(3)
    >>> norm.bias.data[0] = math.inf
    >>> fault_in_affine(norm)
    'bias holds infinite values in 1 of 3 values'
    """
    return "; ".join(f"{name} {what}" for name, what in infinite_parameters(norm).items() if "." not in name)


def fault_of(norm: Norm) -> str:
    """What among the values that a norm stores cannot be, in words; nothing if all can.

    >>> from torch import nn
    >>> norm = nn.BatchNorm1d(3)
    >>> norm.running_var[0], norm.running_var[1] = -1.0, math.nan
    >>> fault_of(norm)
    'running_var holds NaN in 1 and negative values in 1 of 3 channels'
    """
    return "; ".join(faults_in(norm).values())


def initial_left(norm: Norm) -> float | None:
    """How much of what a norm stores is still the mean 0 and the variance 1 that it was built with, 0 to 1.

    Each update leaves `1 - momentum` of what was there. The values have a say, too: a share `left` of the initial
    variance leaves none below `left`. So statistics that were written, or loaded from a file, are told from these.

    Returns:
        The share; None if the updates were not counted, or the momentum is 0 by now, and the values are not the initial
        ones.

    >>> import torch
    >>> norm = torch.nn.BatchNorm1d(2, momentum=0.01)
    >>> initial_left(norm)
    1.0
    >>> _ = norm(torch.randn(64, 2))
    >>> initial_left(norm)
    0.99
    """
    mean, variance, count = norm.running_mean, norm.running_var, norm.num_batches_tracked
    assert mean is not None and variance is not None
    if not mean.any() and (variance == 1).all():
        return 1.0
    if is_as_written(norm, "running_var"):
        return 0.0
    if count is None or count <= 0 or norm.momentum == 0:
        return None
    left = 0.0 if norm.momentum is None else (1 - norm.momentum) ** int(count)
    return left if variance.min() >= 0.999 * left else 0.0


def is_never_updated(norm: Norm) -> bool:
    """Whether a norm stores what it was built with, though its weight and bias differ between channels, as if trained.

    >>> import torch
    >>> norm = torch.nn.BatchNorm1d(3)
    >>> is_never_updated(norm)
    False
    >>> _ = torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    >>> is_never_updated(norm)
    True
    """
    trained = all(map(_differs, (norm.weight, norm.bias)))
    return trained and initial_left(norm) == 1.0 and not is_as_written(norm, "running_var")


def _differs(parameter: Tensor | None) -> bool:
    """Whether a parameter's values differ, which those of no norm do that is newly built."""
    if parameter is None or parameter.is_meta or is_lazy(parameter):
        return False
    return bool((parameter != parameter.flatten()[0]).any())


def misleading_counts(norms: Iterable[Norm]) -> set[tuple[float | None, int]]:
    """Momentums with counts of updates by which too much of the initial statistics would be left in some norm.

    So where statistics were made in another way, such as all averaged, by torch's `update_bn`.
    """
    return {
        key
        for norm in norms
        if (key := counted(norm)) and norm.momentum and norm.running_var is not None
        if (left := (1 - norm.momentum) ** key[1]) > MUCH and norm.running_var.min() < _SURELY * left
    }


def counted(norm: Norm) -> tuple[float | None, int] | None:
    """A norm's momentum and count of updates; None if they were not counted."""
    count = norm.num_batches_tracked
    return None if count is None or count <= 0 else (norm.momentum, int(count))


def batches_in(norm: Norm) -> float:
    """How many batches' worth of data is in a norm's moving average; infinite if that is not known.

    >>> import torch
    >>> norm = torch.nn.BatchNorm1d(2, momentum=0.1)
    >>> for _ in range(100):
    ...     _ = norm(torch.randn(64, 2))
    >>> round(batches_in(norm))
    19
    """
    count = 0 if norm.num_batches_tracked is None else int(norm.num_batches_tracked)
    if not count or norm.momentum == 0 or is_as_written(norm, "running_var"):
        return math.inf
    if norm.momentum is None:
        return count
    left = (1 - norm.momentum) ** count
    return (1 - left) ** 2 * (1 - (1 - norm.momentum) ** 2) / (norm.momentum**2 * (1 - left**2))


def history_of(norm: Norm) -> str:
    """How a norm's statistics came about, in words.

    >>> from torch import nn
    >>> history_of(nn.BatchNorm1d(2, momentum=0.01)), history_of(nn.BatchNorm1d(2, momentum=None))
    ('0 updates at momentum 0.01', '0 updates, all averaged')
    """
    count = norm.num_batches_tracked
    updates = "updates that were not counted" if count is None else count_text(int(count), "update")
    return f"{updates}, all averaged" if norm.momentum is None else f"{updates} at momentum {norm.momentum:g}"


def averaged_while_trained(norms: Mapping[str, Norm]) -> list[str]:
    """A line for norms of momentum None, if they were trained: what they store is an average over all of it.

    >>> norm = nn.BatchNorm1d(3, momentum=None)
    >>> averaged_while_trained({"bn": norm})
    []
    """
    counts = {
        path: int(norm.num_batches_tracked)
        for path, norm in norms.items()
        if norm.momentum is None and _differs(norm.weight) and not is_as_written(norm, "running_var")
        if norm.num_batches_tracked is not None and norm.num_batches_tracked > 1
    }
    if not counts:
        return []
    return [
        f"{listed([*counts])}: averages over {count_text(max(counts.values()), 'update')} alike "
        "(momentum=None): if these were training, they lag behind the weights, and only data tell by how much"
    ]


def is_untrained(norm: Norm) -> bool:
    """Whether a norm's running statistics are still those it was built with.

    >>> from torch import nn
    >>> is_untrained(nn.BatchNorm1d(2))
    True
    """
    count, mean, variance = (getattr(norm, name) for name in ("num_batches_tracked", "running_mean", "running_var"))
    return not (count is not None and count > 0) and not mean.any() and bool((variance == 1).all())


def damage_of(model: nn.Module) -> str:
    """What in a model is not finite, if anything: then the data are not to blame.

    >>> import torch
    >>> net = torch.nn.Linear(2, 2)
    >>> net.weight.data[0, 0] = torch.nan
    >>> damage_of(net)
    "'weight' of the model (1 of its 4 values)"
    """
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            return f"{path!r} of the model ({count} of its {tensor.numel()} values)"
    return ""
