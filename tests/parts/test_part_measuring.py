"""measure_part: reads only, names what it cannot measure, and measures on the start it is given."""

import copy

import pytest
import torch
from parted import images, plain, statistics
from snapshots import Snapshot
from torch import nn

import evenkeel as ek


def test_the_model_is_as_it_was():
    model, data = plain(3), images(64).split(16)
    before = Snapshot(model)
    part = ek.measure_part(model, data, name="a")
    ek.measure_part(model, data, start=part.start, memory=1 << 20)
    assert before.changes() == []
    assert repr(part) == "Part('a': 3 norms, 64 samples in 4 batches)"


def test_norms_store_the_start_meanwhile():
    model, other = plain(2), plain(2)
    ek.reestimate_(other, images(64).split(16), match="variance")
    start = ek.measure_part(other, images(16).split(16)).start
    data = images(64).split(16)
    one, two = ek.measure_part(model, data, start=start), ek.measure_part(other, data)
    assert one.fingerprint == two.fingerprint and one.start.fingerprint == two.start.fingerprint
    assert one.found != two.found and one.fingerprint != ek.measure_part(model, data).fingerprint


def test_a_start_of_other_weights_is_refused():
    model, data = plain(2), images(16).split(16)
    start = ek.measure_part(model, data).start
    other = plain(2)
    with torch.no_grad():
        other[0].weight.mul_(2)
    with pytest.raises(ek.EvenkeelError, match="belongs to other weights"):
        ek.measure_part(other, data, start=start)


def test_what_holds_no_data_or_reaches_no_norm_or_is_not_finite_is_named():
    model = plain(2)
    for batches, said in (
        ([], "loader is empty"),
        ([torch.full((4, 3, 4, 4), torch.nan)], "batch 1 is not finite at norm '1'"),
        (images(32).split(16), "reached none"),
    ):
        run = (lambda model, batch: batch) if said == "reached none" else None
        before = Snapshot(model)
        with pytest.raises(ek.BatchError, match=said):
            ek.measure_part(model, batches, forward=run)
        assert before.changes() == []
    with pytest.raises(ek.ModelError, match="frozen"):
        frozen = copy.deepcopy(model).train()
        frozen[1].eval(), frozen[5].eval()
        ek.measure_part(frozen, images(16).split(16))


def test_norms_left_out_are_named_with_the_reason():
    model = nn.ModuleDict({"used": nn.BatchNorm1d(3), "unused": nn.BatchNorm1d(3), "frozen": nn.BatchNorm1d(3)})
    model["frozen"].eval()
    part = ek.measure_part(model, [torch.randn(8, 3)], forward=lambda model, batch: model["used"](batch))
    assert list(part.sums) == ["used"] and set(part.untouched) == {"unused", "frozen"}
    assert "never reached" in part.untouched["unused"]


def test_dropout_that_stays_on_is_noticed():
    class Always(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.5, training=True)

    part = ek.measure_part(nn.Sequential(Always(), nn.BatchNorm1d(3)), torch.randn(4, 16, 3))
    assert part.is_random and not ek.measure_part(nn.BatchNorm1d(3), torch.randn(4, 16, 3)).is_random


def test_wrappers_do_not_count():
    model, data = plain(2), images(48).split(16)
    part = ek.measure_part(model, data)
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    assert ek.measure_part(compiled, data).fingerprint == part.fingerprint
    before = statistics(model)
    ek.merge_parts_(compiled, [part])
    ek.merge_parts_(model, [ek.measure_part(nn.DataParallel(model), data)])
    assert not torch.equal(before["1.running_var"], model[1].running_var)
    assert torch.equal(compiled._orig_mod[1].running_var, model[1].running_var)


def test_a_start_is_no_report_and_no_path():
    model = plain(1)
    for start in ("next", ek.merge_parts_(plain(1), ek.measure_part(model, images(32).split(16)))):
        with pytest.raises(ek.EvenkeelError, match=f"not {type(start).__name__}"):
            ek.measure_part(model, images(16).split(16), start=start)


def test_norms_are_in_the_order_of_passes_whatever_each_leaves_out():
    class Some(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.BatchNorm1d(2) for _ in range(3))

        def forward(self, x):
            for norm in (n for i, n in enumerate(self.norms) if len(x) != 2 + i):
                x = norm(x)
            return x

    part = ek.measure_part(Some(), [torch.randn(n, 2) for n in (2, 3, 4)])
    assert list(part.sums) == ["norms.0", "norms.1", "norms.2"] and part.repeated == ()
