"""The order law: statistics are those of all data at once, norm after norm, in whatever order and parts they come."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import evenkeel as ek

WIDTH = 6
pytestmark = pytest.mark.slow


class Chain(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.weights = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm1d(WIDTH) for _ in range(depth))

    def forward(self, x):
        for weight, norm in zip(self.weights, self.norms, strict=True):
            x = F.relu(norm(weight(x)))
        return x


class Residual(Chain):
    def forward(self, x):
        for weight, norm in zip(self.weights, self.norms, strict=True):
            x = x + weight(F.relu(norm(x)))
        return x


class Dense(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(WIDTH * (1 + i)) for i in range(depth))
        self.weights = nn.ModuleList(nn.Linear(WIDTH * (1 + i), WIDTH) for i in range(depth))

    def forward(self, x):
        for weight, norm in zip(self.weights, self.norms, strict=True):
            x = torch.cat([x, weight(F.relu(norm(x)))], 1)
        return x


class Graph(Chain):
    """Each row is mixed with others of its batch, by their numbers."""

    def forward(self, x, neighbours):
        for weight, norm in zip(self.weights, self.norms, strict=True):
            x = F.relu(norm(weight(x + x[neighbours].mean(1))))
        return x


def draw_batches(kind, domains, order, sizes, seed):
    """Rows of several domains, in batches: as the domains come, in blocks, or shuffled."""
    generator = torch.Generator().manual_seed(seed)
    domain = torch.arange(sum(sizes)) * domains // sum(sizes)
    if order == "shuffled":
        domain = domain[torch.randperm(len(domain), generator=generator)]
    elif order == "blocked":
        domain = domain.view(-1).roll(len(domain) // 3)
    scale = 0.3 + 2 * torch.rand(domains, 1, generator=generator)
    place = 2 * torch.randn(domains, WIDTH, generator=generator)
    x = place[domain] + scale[domain] * torch.randn(sum(sizes), WIDTH, generator=generator)
    if kind is not Graph:
        return list(x.split(sizes))
    return [
        {"x": rows, "neighbours": torch.randint(len(rows), (len(rows), 3), generator=generator)}
        for rows in x.split(sizes)
    ]


def run(model, batch):
    return model(**batch) if isinstance(batch, dict) else model(batch)


def double(batch):
    return (
        {k: t.double() if t.is_floating_point() else t for k, t in batch.items()}
        if isinstance(batch, dict)
        else batch.double()
    )


@torch.no_grad()
def oracle(model, batches, prior):
    """Norm after norm, on all data at once, in float64: what is met, blended with what is stored."""
    model, batches = copy.deepcopy(model).double().eval(), list(map(double, batches))
    for norm in model.norms:
        met = []
        handle = norm.register_forward_pre_hook(lambda _, args, met=met: met.append(args[0]))
        for batch in batches:
            run(model, batch)
        handle.remove()
        variance, mean = torch.var_mean(torch.cat(met), 0)
        count = sum(map(len, met))
        total, moved = prior + count, norm.running_mean - mean
        # Equal statistics blend to themselves: what is stored counts in full, as its own variance is unbiased already.
        squares = (count - 1) * variance + prior * norm.running_var + prior * count / total * moved**2
        norm.running_mean.copy_(mean + prior / total * moved)
        norm.running_var.copy_(squares / (total - 1))
    return model


def apart(model, right):
    """The largest errors: of a mean in deviations, and of a variance relative to it, or to 1 % of the mean one."""
    pairs = list(zip(model.norms, right.norms, strict=True))
    means = [(a.running_mean - b.running_mean).abs().max() / b.running_var.mean().sqrt() for a, b in pairs]
    variances = [
        ((a.running_var - b.running_var).abs() / b.running_var.clamp_min(0.01 * b.running_var.mean())).max()
        for a, b in pairs
    ]
    return float(max(means)), float(max(variances))


@given(
    kind=st.sampled_from([Chain, Residual, Dense, Graph]),
    depth=st.integers(1, 6),
    domains=st.integers(1, 5),
    order=st.sampled_from(["sorted", "blocked", "shuffled"]),
    sizes=st.lists(st.sampled_from([8, 40, 100, 256]), min_size=2, max_size=30),
    prior=st.sampled_from([0, 0, 50, 1000]),
    memory=st.sampled_from([0, 1 << 12, 1 << 20]),
    once=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_statistics_are_those_of_all_data_in_any_order(kind, depth, domains, order, sizes, prior, memory, once, seed):
    torch.manual_seed(seed)
    model, batches = kind(depth), draw_batches(kind, domains, order, sizes, seed)
    right = oracle(model, batches, prior)
    done = ek.reestimate_(model, iter(batches) if once else batches, prior=prior, memory=memory)
    means, variances = apart(model, right)
    assert means < 0.02 and variances < 0.01, (means, variances, done)
    assert done.samples == sum(sizes) and not done.unsure
