"""Passes: nothing of a measurement stays in a network, and what is found is the best of all rounds."""

import torch
from mergednets import batches, mlp, normed, pair
from snapshots import Snapshot

import evenkeel as ek
from evenkeel.merging import passes as module
from evenkeel.merging.folds import Target
from evenkeel.merging.passes import Passes, settled_norms
from evenkeel.merging.units import units_of


def ready(build, data):
    model, nets = pair(build)
    units, _ = units_of(model, ek.trace(model, data[0]))
    return model, nets, units, Passes(data, None, None, 1 << 20)


def test_measuring_leaves_nothing():
    data = batches(3, 16, 3, 7, 7)
    model, _, units, passes = ready(normed, data)
    before = Snapshot(model)
    found = passes.measured(model, units).populations
    assert list(found) == ["1", "5", "8"] and before.changes() == []
    assert set(settled_norms(model)) == {"1", "5"}


def test_a_worse_round_is_not_kept(monkeypatch):
    data = batches()
    model, nets, units, passes = ready(lambda: mlp().bfloat16(), [batch.bfloat16() for batch in data])
    points = [passes.measured(net, units).populations for net in nets]
    targets = {path: Target.between([one[path] for one in points], [0.5, 0.5]) for path in units}
    rounds = []
    tried = Passes._tried
    monkeypatch.setattr(module.Passes, "_tried", lambda self, *a: rounds.append(tried(self, *a)) or rounds[-1])
    before = Snapshot(model)
    found = passes.matched(model, units, targets)
    assert found.off == min(one.off for one in rounds) and len(rounds) >= 2 and before.changes() == []
    assert all(value.dtype is torch.bfloat16 for value in found.weights.values())
