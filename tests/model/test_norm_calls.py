"""NormCalls: what is seen is what is normalised by a norm's own statistics, by whatever function, and nothing else."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evenkeel.model.norm_calls import NormCalls


def seen(model, run, on_read=None):
    """What reaches each norm of a model in eval mode."""
    norms = {path: m for path, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._NormBase)}
    found = {}
    with torch.no_grad(), NormCalls(norms, lambda path, norm, x: found.setdefault(path, []).append(x), on_read):
        run(model.eval())
    return found


class Masked(nn.BatchNorm1d):
    def forward(self, x, mask):
        out = torch.zeros_like(x)
        out[mask] = super().forward(x[mask])
        return out


def test_of_a_masked_norm_the_valid_rows():
    x, mask = torch.randn(6, 4, 3), torch.rand(6, 4) > 0.5
    found = seen(nn.ModuleList([Masked(3)]), lambda m: m[0](x, mask))
    assert torch.equal(*found["0"], x[mask])


class Split(nn.BatchNorm1d):
    def __init__(self, features):
        super().__init__(features)
        self.auxiliary = nn.BatchNorm1d(features)

    def forward(self, x):
        return self.auxiliary(x)


def test_a_norm_that_hands_over_is_not_reached():
    assert list(seen(nn.Sequential(Split(3)), lambda m: m(torch.randn(4, 3)))) == ["0.auxiliary"]


def buffers(norm):
    return norm.running_mean, norm.running_var


BY_FUNCTION = {
    "F.batch_norm": lambda n, x: F.batch_norm(x, *buffers(n)),
    "by name": lambda n, x: F.batch_norm(input=x, running_var=n.running_var, running_mean=n.running_mean),
    "torch.batch_norm": lambda n, x: torch.batch_norm(x, None, None, *buffers(n), False, 0.1, 1e-5, False),
    "native": lambda n, x: torch.native_batch_norm(x, None, None, *buffers(n), False, 0.1, 1e-5),
    "aten": lambda n, x: torch.ops.aten.batch_norm(x, None, None, *buffers(n), False, 0.1, 1e-5, False),
    "an overload": lambda n, x: torch.ops.aten.native_batch_norm.default(x, None, None, *buffers(n), False, 0.1, 1e-5),
    "F.instance_norm": lambda n, x: F.instance_norm(x[..., None], *buffers(n), use_input_stats=False),
}


@pytest.mark.parametrize("name", BY_FUNCTION)
def test_calls_from_outside_the_norm_count_as_well(name):
    x = torch.randn(4, 3)
    found = seen(nn.ModuleList([nn.BatchNorm1d(3)]), lambda m: BY_FUNCTION[name](m[0], x))
    assert torch.equal(found["0"][0].flatten(1), x)


def test_normalising_by_the_batch_or_by_other_statistics_is_none_of_the_norms_business():
    x = torch.randn(4, 3)
    model = nn.ModuleList([nn.BatchNorm1d(3)])
    assert not seen(model, lambda m: F.batch_norm(x, None, None, training=True))
    assert not seen(model, lambda m: F.batch_norm(x, torch.zeros(3), torch.ones(3)))


def test_who_reads_statistics_without_normalising_by_them_is_told():
    model, x, read = nn.ModuleList([nn.BatchNorm1d(3), nn.BatchNorm1d(3)]), torch.randn(4, 3), set()
    seen(model, lambda m: m[0](x * (m[1].running_var + m[1].eps).sqrt()), read.add)
    assert read == {"1"}
    read.clear()
    seen(model, lambda m: (m[0](x), m[1](x), m[1].running_var.shape), read.add)
    assert not read
