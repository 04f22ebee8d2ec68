"""match_: units have the mean and deviation that a slow oracle gives them, layer by layer; and the verb's contract."""

import copy
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mergednets import averaged, batches, mlp, normed, pair
from models import specs
from snapshots import Snapshot, places_of
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import evenkeel as ek
from evenkeel.errors import brief

WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


def weighted(net):
    return {path: module for path, module in net.named_modules() if isinstance(module, WEIGHTED)}


def returned(net, module, x):
    """What a module returns over all calls, in eval mode, a row a value and a column a unit."""
    found = []
    place = -1 if isinstance(module, nn.Linear) else 1
    handle = module.register_forward_hook(lambda _m, _i, out: found.append(out.movedim(place, -1).flatten(0, -2)))
    with torch.no_grad():
        copy_of_mode = net.training
        net.eval()(x)
        net.train(copy_of_mode)
    handle.remove()
    return torch.cat(found).double()


def target(nets, path, x, weights):
    found = [returned(net, net.get_submodule(path), x) for net in nets]
    mean = sum(w * y.mean(0) for w, y in zip(weights, found, strict=True))
    return mean, sum(w * y.std(0) for w, y in zip(weights, found, strict=True))


@torch.no_grad()
def match_slowly_(model, nets, x, weights):
    """The oracle: one layer after the other, each on what a whole pass through those before it gives."""
    for path, module in weighted(model).items():
        mean, deviation = target(nets, path, x, weights)
        y = returned(model, module, x)
        scale = deviation / y.std(0)
        shape = [-1] + [1] * (module.weight.dim() - 1)
        if getattr(module, "transposed", False):
            rows = module.weight.unflatten(0, (module.groups, -1)).transpose(1, 2)
            rows = (rows * scale.reshape(*rows.shape[:2], *[1] * (rows.dim() - 2))).transpose(1, 2)
            module.weight.copy_(rows.flatten(0, 1))
        else:
            module.weight.mul_(scale.reshape(shape))
        if module.bias is not None:
            module.bias.copy_(scale * (module.bias - y.mean(0)) + mean)


def require_same(model, other, near=1e-8):
    for (name, ours), theirs in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=near, atol=near, msg=lambda text, name=name: f"{name}: {text}")


# The law: what is measured afterwards is what was asked for


@st.composite
def cases(draw):
    """A network, as layers of one kind of input, with batches for it, end points and their weights."""
    dims = draw(st.integers(0, 2))
    width = draw(st.sampled_from([4, 8]))
    layers = []
    for _ in range(draw(st.integers(1, 4))):
        bias = draw(st.booleans())
        if dims:
            kind = draw(st.sampled_from([f"Conv{dims}d", f"ConvTranspose{dims}d"]))
            groups = draw(st.sampled_from([1, 2, 4]))
            layers.append((getattr(nn, kind), {"kernel_size": 3, "padding": 1, "groups": groups, "bias": bias}))
        else:
            layers.append((nn.Linear, {"bias": bias}))
        layers.append((draw(st.sampled_from([nn.ReLU, nn.Tanh, nn.GELU])), None))
    shape = (width, *[5] * dims) if dims else draw(st.sampled_from([(width,), (3, width)]))
    count = draw(st.integers(1, 3))
    shares = [draw(st.integers(1, 5)) for _ in range(count)]
    sizes = draw(st.lists(st.integers(2, 24), min_size=1, max_size=4))
    return layers, width, shape, [share / sum(shares) for share in shares], sizes, draw(st.sampled_from([0, 1 << 27]))


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(case=cases(), seed=st.integers(0, 99))
def test_it_does_what_the_oracle_does(case, seed):
    layers, width, shape, weights, sizes, memory = case

    def build():
        return nn.Sequential(*(kind() if how is None else kind(width, width, **how) for kind, how in layers)).double()

    model, nets = pair(build, len(weights), weights, seed)
    slow = copy.deepcopy(model)
    data = [torch.randn(size, *shape, dtype=torch.float64) + i for i, size in enumerate(sizes)]
    done = ek.match_(model, nets, data, weights=weights, memory=memory)
    match_slowly_(slow, nets, torch.cat(data), weights)
    require_same(model, slow, 1e-3 if len(data) > 1 and not memory else 1e-8)
    assert [row.path for row in done] == list(weighted(model))
    for path, module in weighted(model).items():
        mean, deviation = target(nets, path, torch.cat(data), weights)
        y = returned(model, module, torch.cat(data))
        near = 1e-4 * deviation.max()
        torch.testing.assert_close(y.std(0), deviation, rtol=2e-4, atol=float(near))
        if module.bias is not None:
            torch.testing.assert_close(y.mean(0), mean, rtol=0, atol=float(2 * near))


def test_the_rows_say_what_was_measured():
    model, nets = pair()
    x = torch.cat(batches())
    before = returned(model, model[2], x)
    row = ek.match_(model, nets, batches())[1]
    mean, deviation = target(nets, "2", x, [0.5, 0.5])
    after = returned(model, model[2], x)
    assert (row.path, row.units, row.has_bias) == ("2", 16, True)
    said = [row.mean_before, row.mean_after, row.mean_target]
    assert said == pytest.approx([float(m.mean()) for m in (before.mean(0), after.mean(0), mean)], abs=1e-5)
    said = [row.deviation_before, row.deviation_after, row.deviation_target]
    assert said == pytest.approx([float(s.mean()) for s in (before.std(0), after.std(0), deviation)], abs=1e-5)
    assert row.ratio == pytest.approx(said[0] / said[2]) and row.off_after < 1e-5
    off = torch.maximum((before.std(0) / deviation - 1).abs(), (before.mean(0) - mean).abs() / deviation).max()
    assert row.off_before == pytest.approx(float(off), rel=1e-4)


@pytest.mark.parametrize("correlation", [-0.5, 0.0, 0.4, 0.9])
def test_two_linear_units_lose_the_variance_that_the_closed_form_says(correlation):
    """Of unit vectors a, b with a.b = c on white data, (a + b) / 2 has the deviation sqrt((1 + c) / 2)."""
    x = torch.linalg.qr(torch.randn(64, 3, dtype=torch.float64) - 0).Q
    x = torch.linalg.qr(x - x.mean(0)).Q * math.sqrt(63)  # mean 0, covariance I
    nets = [nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 1)).double() for _ in range(2)]
    rows = ([1.0, 0.0, 0.0], [correlation, math.sqrt(1 - correlation**2), 0.0])
    with torch.no_grad():
        for net, row, (bias, slope) in zip(nets, rows, ((1.0, 2.0), (3.0, 4.0)), strict=True):
            net[0].weight.copy_(torch.tensor([row]))
            net[0].bias.fill_(bias)
            net[1].weight.fill_(slope)
            net[1].bias.zero_()
    model = averaged(nets)
    first, second = ek.match_(model, nets, [x])
    lost = math.sqrt((1 + correlation) / 2)
    assert first.ratio == pytest.approx(lost)
    assert (first.deviation_after, first.mean_after) == pytest.approx((1.0, 2.0))
    # the second layer, slope 3 of the mean of both: deviations 2 and 4 are asked for, means 2 * 1 and 4 * 3
    assert (second.deviation_target, second.mean_target) == pytest.approx((3.0, 7.0))
    assert second.ratio == pytest.approx(lost), "the first layer's loss is handed on, and measured before"
    torch.testing.assert_close(model[0].weight, averaged(nets)[0].weight / lost)
    assert (model[1].weight.item(), model[1].bias.item()) == pytest.approx((3.0, 1.0))


@pytest.mark.parametrize("build", [mlp, lambda: mlp(bias=False)])
def test_matched_to_itself_it_stays_as_it_is(build):
    model, _ = pair(build)
    before = copy.deepcopy(model)
    done = ek.match_(model, model, batches())
    require_same(model, before, 1e-6)
    assert done.references == 1 and all(row.ratio == pytest.approx(1) for row in done)


def test_twice_is_once():
    model, nets = pair()
    ek.match_(model, nets, batches())
    once = copy.deepcopy(model)
    ek.match_(model, nets, batches())
    require_same(model, once, 1e-5)


def test_weights_of_one_end_point_are_its_own():
    model, nets = pair(weights=[0.5, 0.5])
    row = ek.match_(model, nets, batches(), weights=[0, 1])[0]
    y = returned(nets[1], nets[1][0], torch.cat(batches()))
    assert (row.mean_target, row.deviation_target) == pytest.approx((float(y.mean(0).mean()), float(y.std(0).mean())))


@pytest.mark.slow
def test_many_groups_of_unlike_batches_come_as_near():
    """Batches sorted by level, in groups of their own: what the first ones say of the others is wrong."""
    model, nets = pair(lambda: mlp((6, *[12] * 4, 3), activation=nn.Tanh).double())
    data = [torch.randn(16, 6, dtype=torch.float64) + i / 4 for i in range(12)]
    done = ek.match_(model, nets, data, memory=0)
    assert max(row.off_after for row in done) < 1e-4 and not done.unsure and done.passes <= 8


class Draws(Dataset):
    """Samples drawn anew whenever they are asked for."""

    def __len__(self):
        return 96

    def __getitem__(self, index):
        return torch.randn(6) + index / 50


def test_a_loader_that_draws_draws_the_same_for_all_networks():
    model, nets = pair()
    loader = DataLoader(Draws(), batch_size=32, shuffle=True)
    state = torch.get_rng_state()
    x = torch.cat(list(loader))
    torch.set_rng_state(state)
    row = ek.match_(model, nets, loader)[1]
    _, deviation = target(nets, "2", x, [0.5, 0.5])
    assert row.deviation_target == pytest.approx(float(deviation.mean()), rel=1e-5) and row.off_after < 1e-4
    assert torch.equal(torch.get_rng_state(), state)


# Norms with stored statistics


def test_norms_get_the_statistics_that_reestimation_gives():
    data = batches(4, 32, 3, 7, 7)
    model, nets = pair(normed)
    other = copy.deepcopy(model)
    done = ek.match_(model, nets, data)
    ek.reestimate_(other, data, match="variance")
    for path in ("1", "5"):
        for name in ("running_mean", "running_var"):
            ours, theirs = (getattr(net.get_submodule(path), name) for net in (model, other))
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert [row.path for row in done] == ["8"] and list(done.untouched) == ["0", "3"]
    assert [norm.path for norm in done.norms] == ["1", "5"] and "2 norms re-estimated" in str(done)
    assert all("norm with stored statistics follows" in reason for reason in done.untouched.values())
    assert max(abs(row.ratio - 1) for row in ek.variance_shift(model, data)) < 1e-4


def test_frozen_norms_stay_and_the_layer_before_is_matched():
    model, nets = pair(normed)
    model.train()
    model[1].eval()
    before = copy.deepcopy(model[1].state_dict())
    done = ek.match_(model, nets, batches(4, 32, 3, 7, 7))
    assert [row.path for row in done] == ["0", "8"] and "frozen" in done.untouched["1"]
    assert all(torch.equal(before[name], value) for name, value in model[1].state_dict().items())
    assert model.training and not model[1].training


# What is matched, and what is left


class Branches(nn.Module):
    """A residual block: its sum scales nothing, its branch's last layer is matched."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3, bias=False)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.norm(x + self.two(F.relu(self.one(x)))))


class Again(nn.Module):
    """One layer called three times a pass."""

    def __init__(self):
        super().__init__()
        self.into, self.again = nn.Linear(6, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = torch.tanh(self.into(x))
        for _ in range(3):
            x = torch.tanh(self.again(x))
        return x


class Shared(nn.Module):
    """Weights that are tied, computed, sliced, multiplied, looked up and recurrent."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 6)
        self.tied = nn.Linear(6, 10, bias=False)
        self.tied.weight = self.table.weight
        self.one, self.other = nn.Linear(6, 6), nn.Linear(6, 6)
        self.other.weight = self.one.weight
        self.computed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
        self.factor, self.cut = nn.Parameter(torch.randn(6, 6)), nn.Linear(6, 12)
        self.memory, self.plain, self.unused = nn.GRU(6, 6, batch_first=True), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, tokens):
        x = self.other(torch.relu(self.one(self.table(tokens))))
        x = self.memory(torch.tanh(self.computed(x) @ self.factor))[0]
        return self.tied(F.linear(self.plain(x), self.cut.weight[:6]))


def test_residual_branches_and_layer_norms():
    model, nets = pair(Branches)
    slow = copy.deepcopy(model)
    done = ek.match_(model, nets, batches())
    match_slowly_(slow, nets, torch.cat(batches()), [0.5, 0.5])
    require_same(model, slow, 1e-4)
    assert [row.path for row in done] == ["stem", "one", "two", "head"]
    assert done.unsure == {"head": "no bias: its deviations were matched, not its means"}


def test_a_layer_called_several_times_is_matched_over_all_calls():
    model, nets = pair(Again)
    done = ek.match_(model, nets, batches())
    x = torch.cat(batches())
    mean, deviation = target(nets, "again", x, [0.5, 0.5])
    y = returned(model, model.again, x)
    torch.testing.assert_close(y.std(0), deviation, rtol=1e-3, atol=0)
    torch.testing.assert_close(y.mean(0), mean, rtol=0, atol=1e-3)
    assert not done.unsure


def test_what_cannot_be_folded_is_named():
    model, nets = pair(Shared)
    before = copy.deepcopy(model.state_dict())
    tokens = [torch.randint(0, 10, (16, 5)) for _ in range(3)]
    done = ek.match_(model, nets, tokens)
    assert [row.path for row in done] == ["plain"]
    words = {
        "table": "embedding",
        "one": "another one",
        "computed": "computed",
        "factor": "no linear layer",
        "cut": "that are cut",
        "memory.weight_ih_l0": "recurrent",
        "unused": "do not reach",
    }
    assert {path: word for path, word in words.items() if word in done.untouched.get(path, "")} == words
    now = model.state_dict()
    changed = [name for name in before if not torch.equal(before[name], now[name])]
    assert changed == ["plain.weight", "plain.bias"]


def test_attention_is_opened():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, nets = pair(lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1))
    done = ek.match_(model, nets, batches(2, 16, 5, 8))
    inside = ["self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2"]
    assert [row.path for row in done] == [f"layers.0.{name}" for name in inside]
    assert done[0].units == 24 and max(row.off_after for row in done) < 1e-4 and not done.untouched


def test_some_frozen_weights_stay_all_frozen_ones_say_nothing():
    model, nets = pair()
    model[2].requires_grad_(False)
    done = ek.match_(model, nets, batches())
    assert [row.path for row in done] == ["0", "4"] and "frozen" in done.untouched["2"]
    model.requires_grad_(False)
    assert [row.path for row in ek.match_(model, nets, batches())] == ["0", "2", "4"]


def test_units_that_do_not_vary_keep_their_scale():
    model, nets = pair()
    with torch.no_grad():
        model[0].weight[3] = 0
    done = ek.match_(model, nets, batches())
    mean, _ = target(nets, "0", torch.cat(batches()), [0.5, 0.5])
    assert not model[0].weight[3].any() and model[0].bias[3].item() == pytest.approx(float(mean[3]), abs=1e-5)
    assert "units that do not vary keep their scale: 1, the first in '0'" in done.notes


def test_dropout_that_stays_on_is_said():
    class Noisy(nn.Sequential):
        def forward(self, x):
            return self[2](F.dropout(self[0](x), 0.2))

    model, nets = pair(lambda: Noisy(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    assert any("draws at random" in note for note in ek.match_(model, nets, batches(8, 64)).notes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_precisions(dtype):
    model, nets = pair(lambda: mlp().to(dtype))
    done = ek.match_(model, nets, [batch.to(dtype) for batch in batches()])
    assert max(row.off_after for row in done) < {torch.bfloat16: 0.03, torch.float16: 3e-3}.get(dtype, 1e-5)
    assert all(parameter.dtype is dtype for parameter in model.parameters())


# The way back, and what is refused


def test_undo_is_exact():
    (model, nets), data = pair(normed), batches(4, 32, 3, 7, 7)
    before = Snapshot(model)
    done = ek.match_(model, nets, data)
    assert not torch.equal(model[8].weight, averaged(nets)[8].weight)
    done.undo()
    assert before.changes() == []


def test_references_stay_as_they_are():
    (model, nets), data = pair(normed), batches(4, 32, 3, 7, 7)
    before = [Snapshot(net) for net in nets]
    ek.match_(model, nets, data)
    assert [one.changes() for one in before] == [[], []]


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_else_changes_and_nothing_at_all_if_it_fails(fails):
    @settings(max_examples=10, deadline=None)
    @given(spec=specs(fails=fails))
    def law(spec):
        model, data = spec.build(), spec.batches()
        reference = spec.build()
        before = Snapshot(model)
        try:
            ek.match_(model, [reference, model], data)
        except (ek.EvenkeelError, KeyboardInterrupt):
            assert before.changes() == []
        else:
            kept = {f"state_dict {name}" for name in model.state_dict()}
            norms = [path for path, m in model.named_modules() if hasattr(m, "running_var")]
            marks = places_of([f"{path}.{name}" for path in norms for name in ("running_mean", "running_var")])
            inside = {f"attribute {path}:_parameters" for path, _ in model.named_modules()}
            assert set(before.changes()) <= kept | marks | inside

    law()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"batches": []}, ek.BatchError, "empty"),
        ({"batches": iter(batches())}, ek.BatchError, "several times"),
        ({"batches": [*batches(), torch.full((4, 6), math.nan)]}, ek.BatchError, "batch 5 is not finite at layer '0'"),
        ({"batches": [torch.ones(1, 6)]}, ek.BatchError, "one value a unit"),
        ({"batches": [torch.ones(4, 5)]}, ek.EvenkeelError, "shape"),
        ({"max_batches": 9}, ek.BatchError, "ran short"),
        ({"references": []}, ek.ModelError, "at least one, not none"),
        ({"references": [mlp().state_dict()]}, ek.ModelError, "not OrderedDict"),
        ({"references": [mlp((6, 8, 8, 4)), mlp()]}, ek.ModelError, r"reference 1 .* '0.weight' has shape \(16, 6\)"),
        ({"references": [nn.Linear(6, 4)]}, ek.ModelError, "none there"),
        ({"weights": [1.0]}, ek.EvenkeelError, "each of the 2"),
        ({"weights": [0.7, 0.7]}, ek.EvenkeelError, "sum 1.4"),
        ({"weights": [1.5, -0.5]}, ek.EvenkeelError, "none negative"),
        ({"choose": "best"}, ek.EvenkeelError, "held_out"),
        ({"score": F.mse_loss}, ek.EvenkeelError, "held_out"),
        ({"held_out": iter([])}, ek.BatchError, "twice"),
        ({"held_out": [torch.ones(4, 6)]}, ek.BatchError, "held-out data: batch 1 holds no labels"),
        ({"model": nn.ReLU()}, ek.ModelError, "nothing to match"),
    ],
    ids=lambda value: brief(value, 30) if isinstance(value, Exception) else None,
)
def test_what_is_refused_changes_nothing(change, error, words):
    model, nets = pair()
    given = {"model": model, "references": nets, "batches": batches()} | change
    before = Snapshot(given["model"], world=False)
    with pytest.raises(error, match=words):
        ek.match_(given.pop("model"), given.pop("references"), given.pop("batches"), **given)
    assert before.changes() == []


def test_overflow_is_refused():
    model, nets = pair(lambda: mlp().half())
    with torch.no_grad():
        nets[0][0].weight.mul_(3e4)
    before = Snapshot(model, world=False)
    with pytest.raises(ek.BatchError, match=r"not finite|overflows"):
        ek.match_(model, nets, [batch.half() for batch in batches()])
    assert before.changes() == []


def test_a_damaged_reference_is_named():
    model, nets = pair()
    with torch.no_grad():
        nets[1][2].weight[0, 0] = math.nan
    with pytest.raises(ek.BatchError, match=r"'2.weight' .* layer '2'.*the model is damaged"):
        ek.match_(model, nets, batches())


def labelled(net, count=3):
    return [(x, net(x).argmax(1)) for x in batches(count)]


def test_held_out_data_say_whether_it_helped():
    model, nets = pair()
    held_out = labelled(nets[0])
    done = ek.match_(model, nets, batches(), held_out=held_out)
    assert done.kept and done.before.error is not None and done.after.error is not None
    assert "log loss" in done.summary
    worse, faint = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        faint[4].weight.mul_(0.01)  # as likely labels, said with less confidence
    done = ek.match_(worse, [faint], batches(), held_out=labelled(model), choose="best")
    assert not done.kept and "taken back" in str(done)
    require_same(worse, model, 0)


def test_other_batches_and_wrappers():
    model, nets = pair()
    slow = copy.deepcopy(model)
    given = [{"z": batch} for batch in batches()]
    ek.match_(model, nets, given, forward=lambda net, batch: net(batch["z"]))
    ek.match_(slow, nets, [(batch, torch.zeros(32)) for batch in batches()])
    require_same(model, slow, 1e-6)
    again = averaged(nets)
    ek.match_(nn.DataParallel(again), [nn.DataParallel(net) for net in nets], batches())
    require_same(again, slow, 1e-6)


def test_processes_are_said_not_to_be_pooled():
    from torch.testing._internal.distributed.fake_pg import FakeStore

    model, nets = pair()
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        done = ek.match_(model, nets, batches())
    finally:
        torch.distributed.destroy_process_group()
    assert any("not pooled" in note for note in done.notes)


# what is wrong is named


def test_the_reference_that_is_not_finite_is_named():
    merged, nets = pair(mlp)
    with torch.no_grad():
        nets[1][0].weight.fill_(torch.nan)
    with pytest.raises(ek.BatchError, match=r"reference 2: '0.weight' of the model .* is not finite"):
        ek.match_(merged, nets, batches())


@pytest.mark.parametrize(("references", "said"), [(None, "NoneType"), (3, "int"), ([], "none")])
def test_what_is_no_reference_is_said(references, said):
    with pytest.raises(ek.ModelError, match=f"not {said}"):
        ek.match_(nn.Linear(2, 2), references, [torch.randn(4, 2)])


def test_weights_that_are_no_numbers_are_refused():
    with pytest.raises(ek.EvenkeelError, match="weights are numbers, one for each of the 1 references"):
        ek.match_(nn.Linear(2, 2), nn.Linear(2, 2), [torch.randn(4, 2)], weights=["a"])


def test_units_that_cannot_be_made_to_vary_are_named():
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(3)]
    with torch.no_grad():
        nets[0][2].weight[0] = 0  # the merged one alone
        for net in nets:
            net[0].weight[0] = 0  # as in the end points
    done = ek.match_(nets[0], nets[1:], torch.randn(4, 32, 4))
    assert [row.dead for row in done] == [0, 1]
    assert list(done.unsure) == ["2"] and "1 of 3 units do not vary, and should" in done.unsure["2"]


def test_a_layer_whose_bias_alone_is_frozen_is_left():
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(3)]
    nets[0][0].bias.requires_grad_(False)
    bias = nets[0][0].bias.clone()
    done = ek.match_(nets[0], nets[1:], torch.randn(4, 32, 4))
    assert "frozen" in done.untouched["0"] and torch.equal(nets[0][0].bias, bias)


def test_an_autocast_around_it_does_not_go_on_with_casts_of_old_weights():
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)) for _ in range(3)]
    x = torch.randn(4, 32, 4)
    with torch.autocast("cpu", torch.bfloat16):
        first = nets[0](x[0])
        done = ek.match_(nets[0], nets[1:], x)
        inside = nets[0](x[0])
        done.undo()
        assert torch.equal(nets[0](x[0]), first)
    assert all(row.off_after < 0.05 for row in done) and not done.unsure
    done = ek.match_(nets[0], nets[1:], x)
    assert torch.allclose(inside.float(), nets[0](x[0]), atol=0.1) and not torch.equal(inside, first)
