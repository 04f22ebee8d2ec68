"""reestimate_: each row of what the known re-estimators get wrong is a law here; then the verb's own contract."""

import copy
import math
from collections import namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from snapshots import Snapshot
from torch import nn
from torch.nn import functional as F

import evenkeel as ek


def eval_inputs(model, norm, data):
    """The oracle: all that reaches the norm with the whole model in eval mode, values by channels."""
    seen = []
    handle = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].transpose(0, 1).flatten(1).T))
    flags = [(m, m.training) for m in model.modules()]
    model.eval()
    with torch.no_grad():
        for batch in data:
            model(batch)
    for module, flag in flags:
        module.training = flag
    handle.remove()
    return torch.cat(seen).double()


def dropout_net():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 16), nn.BatchNorm1d(16))


# --- the table of peers' failures -------------------------------------------------------------------------------------


def test_dropout_is_off():
    model, data = dropout_net(), torch.randn(8, 64, 8)
    for batch in data:
        model(batch)
    ek.reestimate_(model, data)
    oracle = eval_inputs(model, model[4], data)
    assert torch.allclose(model[4].running_var.double(), oracle.var(0), rtol=1e-5)
    assert torch.allclose(model[4].running_mean.double(), oracle.mean(0), atol=1e-6)


class NormDropAct(nn.BatchNorm1d):
    """A norm that carries its dropout and activation inside, as timm's BatchNormAct2d does."""

    def __init__(self, features):
        super().__init__(features)
        self.drop, self.act = nn.Dropout(0.5), nn.ReLU()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class OwnForwardNorm(NormDropAct):
    """The same with a forward of its own, whose kernel is not known to fill the buffers."""

    def forward(self, x):
        out = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.3)
        return self.act(self.drop(out))


@pytest.mark.parametrize("norm", [NormDropAct, OwnForwardNorm])
@pytest.mark.parametrize("training", [True, False])
def test_dropout_nested_in_a_norm_stays_off(norm, training):
    model = nn.Sequential(nn.Linear(8, 8), norm(8), nn.Linear(8, 8), nn.BatchNorm1d(8)).train(training)
    data = torch.randn(4, 512, 8)
    ek.reestimate_(model, data)
    ek.reestimate_(model, [data.flatten(0, 1)])  # in one batch, upstream statistics are those that eval mode uses
    oracle = eval_inputs(model, model[3], [data.flatten(0, 1)])
    assert torch.allclose(model[3].running_var.double(), oracle.var(0), rtol=1e-3)
    assert model[1].drop.training is training


def test_unequal_batches_are_pooled():
    torch.manual_seed(1)
    data = [torch.randn(256, 4), 5 + torch.randn(8, 4)]
    model = nn.BatchNorm1d(4)
    ek.reestimate_(model, data)
    pooled = torch.cat(data).double()
    assert torch.allclose(model.running_mean.double(), pooled.mean(0), rtol=1e-5)
    assert torch.allclose(model.running_var.double(), pooled.var(0), rtol=1e-5)
    assert 0.1 < model.running_mean.mean() < 0.3 and 1.4 < model.running_var.mean() < 2.1


@pytest.mark.parametrize("batch_size", [2, 4, 16])
def test_conv_norm_with_image_level_signal(batch_size):
    torch.manual_seed(0)
    levels = torch.randn(512, 3, 1, 1)  # what a batch of two images cannot show within itself
    data = (levels + 0.1 * torch.randn(512, 3, 4, 4)).split(batch_size)
    model = nn.BatchNorm2d(3)
    ek.reestimate_(model, data)
    pooled = torch.cat(data).double().transpose(0, 1).flatten(1)
    assert torch.allclose(model.running_var.double(), pooled.var(1), rtol=1e-5)


@pytest.mark.parametrize("shape", [(64, 4), (16, 4, 8), (16, 4, 4, 4), (4, 4, 4, 4, 4)])
def test_large_mean_small_deviation(shape):
    torch.manual_seed(0)
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)](4)
    data = [1000 + 0.1 * torch.randn(shape) for _ in range(8)]
    ek.reestimate_(norm, data)
    pooled = torch.cat(data).double().transpose(0, 1).flatten(1)
    assert (norm.running_var > 0).all()
    assert torch.allclose(norm.running_var.double(), pooled.var(1), rtol=1e-2)
    assert torch.isfinite(norm.eval()(data[0])).all()


class Partial(nn.Module):
    """A norm that is used, one that is not, and one that is used twice."""

    def __init__(self):
        super().__init__()
        self.used, self.unused, self.twice = nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.twice(3 * self.used(x)) + self.twice(x + 7)


def test_a_norm_never_reached_is_untouched_and_named():
    model, data = Partial(), torch.randn(3, 32, 4)
    nn.init.constant_(model.unused.running_mean, 3)
    nn.init.constant_(model.unused.running_var, 5)
    done = ek.reestimate_(model, data)
    assert list(done.untouched) == ["unused"] and "never reached" in done.untouched["unused"]
    assert model.unused.running_mean.eq(3).all() and model.unused.running_var.eq(5).all()
    assert "unused" in repr(done)


def test_a_norm_used_twice_is_merged():
    model, data = Partial(), [torch.randn(32, 4)]
    ek.reestimate_(model, data)
    oracle = eval_inputs(model, model.twice, data)
    assert len(oracle) == 64
    assert torch.allclose(model.twice.running_mean.double(), oracle.mean(0), atol=1e-5)
    assert torch.allclose(model.twice.running_var.double(), oracle.var(0), rtol=1e-5)


def broken_at(number, error=None):
    for i in range(1, 10):
        if i == number:
            raise error or RuntimeError("disk on fire")
        yield torch.randn(16, 8)


class Sized:
    """A loader that promises more than it gives."""

    def __len__(self):
        return 5

    def __iter__(self):
        return iter(torch.randn(3, 16, 8))


def with_bad_batch(value):
    data = torch.randn(5, 16, 8)
    data[2, 3, 1] = value
    return data


FAULTS = {
    "raises": (lambda: broken_at(3), {}, r"RuntimeError: disk on fire when asked for batch 3"),
    "short": (lambda: torch.randn(3, 16, 8).unbind(), {"max_batches": 7}, r"ran short: 3 of max_batches=7"),
    "shorter than its length": (Sized, {}, r"length 5 but ended after 3"),
    "empty": (list, {}, r"empty"),
    "nan": (lambda: with_bad_batch(math.nan).unbind(), {}, r"batch 3 is not finite at norm '4'"),
    "inf": (lambda: with_bad_batch(math.inf).unbind(), {"tolerance": 1e-9}, r"batch 3 is not finite at norm '4'"),
    "wrong shape": (lambda: [torch.randn(4, 8), torch.randn(4, 9)], {}, r"batch 2 raised RuntimeError.*layer '0'"),
    "single value": (lambda: [torch.randn(1, 8)], {}, r"norm '4' saw one value per channel"),
    "not batches": (lambda: {"x": torch.randn(4, 8)}, {}, r"batches must be an iterable of batches, not one dict"),
    "not a batch": (lambda: ["text"], {}, r"not str.*forward="),
    "no batches asked": (lambda: [torch.randn(4, 8)], {"max_batches": 0}, r"at least 1, not 0"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("training", [True, False])
def test_on_a_fault_the_model_is_as_before_and_the_error_says_where(fault, training):
    loader, options, message = FAULTS[fault]
    model = dropout_net().train(training)
    model(torch.randn(16, 8))
    model[2].training = not training
    before = Snapshot(model, world=False)
    with pytest.raises(ek.BatchError, match=message):
        ek.reestimate_(model, loader(), **options)
    assert before.changes() == []


def test_an_interrupt_leaves_the_model_as_before():
    model = dropout_net()
    before = Snapshot(model, world=False)
    with pytest.raises(KeyboardInterrupt):
        ek.reestimate_(model, broken_at(3, KeyboardInterrupt()))
    assert before.changes() == []


def test_a_frozen_norm_is_untouched_and_named():
    model = nn.Sequential(nn.BatchNorm1d(4).eval(), nn.Linear(4, 4), nn.BatchNorm1d(4))
    before = Snapshot(model, world=False)
    done = ek.reestimate_(model, 2 + torch.randn(3, 32, 4))
    assert "frozen" in done.untouched["0"]
    assert before.changes(written=("2.running_mean", "2.running_var")) == []


def trained_in_eval_mode():
    """Its weights and biases are those of training, its statistics as built."""
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
    for norm in (model[1], model[4]):
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    return model


def test_norms_that_were_never_updated_beside_trained_weights_stay_unless_told_otherwise():
    model, data = trained_in_eval_mode(), torch.randn(64, 4).split(16)
    before = Snapshot(model, world=False)
    with pytest.raises(ek.ModelError, match="2 of 2 norms, such as '1': never updated"):
        ek.reestimate_(model, data)
    assert before.changes() == []
    assert not ek.reestimate_(model, data, unsure="write").untouched
    assert ek.variance_shift(model, data).worst == pytest.approx(1, abs=1e-5)
    with pytest.raises(ek.EvenkeelError, match="unsure must be"):
        ek.reestimate_(model, data, unsure="maybe")


def test_one_of_them_among_others_is_left_and_named():
    model, data = trained_in_eval_mode(), torch.randn(64, 4).split(16)
    model[1].train()(torch.randn(64, 8))
    done = ek.reestimate_(model, data)
    assert [row.path for row in done] == ["1"] and "never updated" in done.untouched["4"]
    assert not model[4].running_mean.any()


def test_an_average_of_weights_or_a_score_that_decides_is_told_enough():
    data = [(x, torch.randn(16, 8)) for x in torch.randn(64, 4).split(16)]
    average = torch.optim.swa_utils.AveragedModel(trained_in_eval_mode())
    assert len(ek.reestimate_(average, data)) == 2
    judged = ek.reestimate_(trained_in_eval_mode(), data, held_out=data, choose="best")
    assert judged.before is not None and judged.after is not None


def test_in_a_model_in_eval_mode_every_norm_counts():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    done = ek.reestimate_(model, 2 + torch.randn(3, 32, 4))
    assert not done.untouched
    assert (model[0].running_mean - 2).abs().max() < 0.5 and not model[0].training


def test_norms_without_statistics_are_left_alone():
    model = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.LayerNorm(4), nn.BatchNorm1d(4))
    done = ek.reestimate_(model, torch.randn(3, 32, 4))
    assert list(done.standard_errors) == ["2"] and not done.untouched


def test_flags_momentum_hooks_and_buffer_identity_are_as_found():
    model = dropout_net()
    model[0].eval()
    model[4].momentum = None
    model[1].register_forward_hook(lambda *_: None)
    model(torch.randn(16, 8))
    before = Snapshot(model, world=False)
    ek.reestimate_(model, torch.randn(3, 16, 8))
    assert before.changes(written=("4.running_mean", "4.running_var")) == []


# --- what a batch may be ----------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", "image label")


class Keyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, *, image, mask=None):
        return self.norm(input=image)


@pytest.mark.parametrize(
    ("wrap", "model", "forward"),
    [
        (lambda x: x, nn.BatchNorm1d(4), None),
        (lambda x: (x, torch.ones(1)), nn.BatchNorm1d(4), None),
        (lambda x: [x, "label"], nn.BatchNorm1d(4), None),
        (lambda x: Pair(x, 0), nn.BatchNorm1d(4), None),
        (lambda x: {"image": x}, Keyword(), None),
        (lambda x: {"deep": [(x,)]}, nn.BatchNorm1d(4), lambda model, batch: model(batch["deep"][0][0])),
    ],
)
def test_every_form_of_batch(wrap, model, forward):
    data = torch.randn(3, 32, 4)
    done = ek.reestimate_(model, [wrap(x) for x in data], forward=forward)
    norm = model if isinstance(model, nn.BatchNorm1d) else model.norm
    assert torch.allclose(norm.running_var.double(), data.flatten(0, 1).double().var(0), rtol=1e-5)
    assert done.batches == 3


# --- the verb's own contract ------------------------------------------------------------------------------------------


def test_undo_puts_the_same_bits_back_in_the_same_buffers():
    model = dropout_net()
    model(torch.randn(16, 8))
    before = Snapshot(model, world=False)
    done = ek.reestimate_(model, torch.randn(3, 16, 8))
    assert "state_dict 4.running_var" in before.changes()
    done.undo()
    assert before.changes() == []
    done.undo()
    assert before.changes() == []


@pytest.mark.parametrize(("stats", "kept"), [("var", "running_mean"), ("mean", "running_var")])
def test_stats_says_what_is_written(stats, kept):
    model = nn.Sequential(nn.BatchNorm1d(4))
    before = Snapshot(model, world=False)
    done = ek.reestimate_(model, 3 + 2 * torch.randn(3, 32, 4), stats=stats)
    (other,) = {"running_mean", "running_var"} - {kept}
    assert before.changes(written=[f"0.{other}"]) == []
    assert f"state_dict 0.{other}" in before.changes()
    done.undo()
    assert before.changes() == []


def test_prior_counts_the_statistics_found_as_samples():
    old, new = torch.randn(300, 4), 4 + 3 * torch.randn(100, 4)
    model = nn.BatchNorm1d(4)
    ek.reestimate_(model, [old])
    ek.reestimate_(model, [new], prior=300)
    both = torch.cat([old, new]).double()
    assert torch.allclose(model.running_mean.double(), both.mean(0), rtol=1e-5)
    assert torch.allclose(model.running_var.double(), both.var(0), rtol=1e-2)


def test_batches_of_unknown_size_are_used_but_bear_no_prior():
    model, data = nn.BatchNorm1d(4), [torch.randn(32, 4).numpy() for _ in range(3)]
    before = Snapshot(model, world=False)
    with pytest.raises(ek.BatchError, match=r"prior= needs the number of samples.*samples="):
        ek.reestimate_(model, data, forward=lambda m, b: m(torch.from_numpy(b)), prior=5)
    assert before.changes() == []
    done = ek.reestimate_(model, data, forward=lambda m, b: m(torch.from_numpy(b)))
    assert (done.batches, done.samples) == (3, 0)
    assert torch.allclose(
        model.running_var.double(), torch.cat([torch.from_numpy(b) for b in data]).double().var(0), rtol=1e-5
    )


def test_a_model_whose_norms_are_never_reached_is_an_error():
    model = Partial()
    with pytest.raises(ek.BatchError, match="reached none of the model's norms"):
        ek.reestimate_(model, torch.randn(2, 8, 4), forward=lambda m, b: b)


@pytest.mark.parametrize("verb", [ek.reestimate_, ek.variance_shift])
def test_an_empty_batch_is_an_error(verb):
    model, x = nn.BatchNorm1d(4), torch.randn(8, 4)
    before = Snapshot(model, world=False)
    with pytest.raises(ek.BatchError, match="batch 2 holds no samples"):
        verb(model, [x, x[:0]])
    assert before.changes() == []


@pytest.mark.parametrize("verb", [ek.reestimate_, ek.variance_shift])
def test_a_model_without_values_is_refused(verb):
    with pytest.raises(ek.ModelError, match="'0' is on the meta device"):
        verb(nn.Sequential(nn.BatchNorm1d(4)).to("meta"), [torch.randn(8, 4)])


def test_statistics_that_overflow_their_dtype_are_not_written():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2)).half()
    before = Snapshot(model, world=False)
    with pytest.raises(ek.BatchError, match=r"running_var of BatchNorm1d.*overflows torch.float16"):
        ek.reestimate_(model, [(1200 * torch.randn(64, 2)).half() for _ in range(3)])
    assert before.changes() == []


class Counting(nn.BatchNorm1d):
    """A norm that counts its batches as old code does."""

    def forward(self, x):
        if self.training:
            self.num_batches_tracked += 1
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum
        )


def test_a_norm_that_counts_in_its_own_way():
    model, data = Counting(4), torch.randn(3, 16, 4)
    ek.reestimate_(model, data)
    assert torch.allclose(model.running_var.double(), data.flatten(0, 1).double().var(0), rtol=1e-5)
    assert model.num_batches_tracked == 0


def test_a_layout_that_fails_in_a_branch_leaves_no_trace():
    """The first try reaches a norm that the second one does not."""

    class Layouts(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            if not x.is_contiguous():
                self.other(x)
                raise RuntimeError("not this layout")
            return self.norm(x)

    data = torch.randn(3, 4, 3, 5, 5)
    done = ek.reestimate_(Layouts(), data)
    assert list(done.standard_errors) == ["norm"] and list(done.untouched) == ["other"]


def test_whether_the_tolerance_was_reached_is_said():
    model, data = nn.BatchNorm1d(4), torch.randn(6, 16, 4)
    assert ek.reestimate_(model, data).converged
    assert ek.reestimate_(model, data, tolerance=0.5).converged
    done = ek.reestimate_(model, data, tolerance=1e-6)
    assert not done.converged and "the tolerance was not reached" in repr(done)
    assert "error not known" in repr(ek.reestimate_(model, data[:1]))


def test_samples_and_batches_are_counted():
    done = ek.reestimate_(nn.BatchNorm1d(4), [(torch.randn(n, 4), 0) for n in (5, 7, 11)])
    assert (done.batches, done.samples) == (3, 23)


def test_max_batches_takes_no_more():
    stream = iter(torch.randn(9, 16, 4))
    assert ek.reestimate_(nn.BatchNorm1d(4), stream, max_batches=4).batches == 4
    assert len(list(stream)) == 5


@pytest.mark.slow
def test_standard_error_is_that_of_the_mean_variance():
    """Law: over many repetitions, the spread of the estimate is what `standard_error` says it is."""
    torch.manual_seed(0)
    estimates, claims = [], []
    for _ in range(200):
        model = nn.BatchNorm1d(3)
        scale = torch.rand(20, 1, 1) + 0.5  # batches differ, as images do
        claims.append(ek.reestimate_(model, scale * torch.randn(20, 32, 3)).standard_error)
        estimates.append(float(model.running_var.mean()))
    spread = torch.tensor(estimates).std() / torch.tensor(estimates).mean()
    assert torch.tensor(claims).mean() == pytest.approx(float(spread), rel=0.15)


def test_tolerance_stops_by_itself():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    done = ek.reestimate_(model, torch.randn(1000, 128, 4), tolerance=0.01)
    assert done.standard_error <= 0.01 and 4 <= done.batches < 500
    loose = ek.reestimate_(model, torch.randn(1000, 128, 4), tolerance=0.05)
    assert loose.batches < done.batches


def test_one_batch_has_no_standard_error():
    assert math.isnan(ek.reestimate_(nn.BatchNorm1d(4), [torch.randn(64, 4)]).standard_error)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.BatchNorm2d(4)).to(dtype)
    data = torch.randn(4, 8, 3, 8, 8, dtype=dtype)
    ek.reestimate_(model, data)
    oracle = eval_inputs(model, model[2], data)
    precision = {torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    assert torch.allclose(model[2].running_var.double(), oracle.var(0), rtol=precision)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_instance_norms_average_instances(dims):
    norm = [nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d][dims - 1](4, track_running_stats=True)
    data = torch.randn(6, 5, 4, *(8,) * dims) * torch.rand(6, 5, 4, *(1,) * dims)
    ek.reestimate_(norm, data)
    instances = data.flatten(0, 1).flatten(2).double()
    assert torch.allclose(norm.running_var.double(), instances.var(2).mean(0), rtol=1e-5)
    assert torch.allclose(norm.running_mean.double(), instances.mean(2).mean(0), atol=1e-6)


def test_a_model_that_needs_the_usual_memory_layout():
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.last = nn.BatchNorm2d(3), nn.BatchNorm1d(48)

        def forward(self, x):
            return self.last(self.norm(x).view(len(x), -1))  # refuses channels-last tensors

    model, data = Viewing(), torch.randn(3, 8, 3, 4, 4)
    done = ek.reestimate_(model, data)
    assert done.batches == 3
    assert torch.allclose(model.norm.running_var.double(), data.double().var((0, 1, 3, 4)), rtol=1e-5)


@pytest.mark.slow
def test_a_compiled_model():
    model = torch.compile(dropout_net(), backend="eager")
    done = ek.reestimate_(model, torch.randn(3, 16, 8))
    assert done.batches == 3 and list(done.standard_errors) == ["4"]


@pytest.mark.parametrize("verb", [ek.reestimate_, ek.variance_shift])
def test_random_state_is_as_found(verb):
    model, data = dropout_net(), torch.randn(40, 8)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data), batch_size=8, shuffle=True)
    state = torch.get_rng_state()
    verb(model, loader)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stats": "sd"}, "'both', 'var' or 'mean', not 'sd'"),
        ({"prior": -1}, "not -1"),
        ({"tolerance": 0}, "not 0"),
        ({"prior": math.nan}, "not nan"),
        ({"tolerance": math.inf}, "not inf"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ek.EvenkeelError, match=message):
        ek.reestimate_(nn.BatchNorm1d(4), [torch.randn(4, 4)], **options)


def test_nothing_to_work_on():
    with pytest.raises(ek.ModelError, match="no norm layer with running statistics"):
        ek.reestimate_(nn.Linear(4, 4), [torch.randn(4, 4)])
    with pytest.raises(ek.ModelError, match="all 1 norms are frozen"):
        ek.reestimate_(nn.Sequential(nn.BatchNorm1d(4).eval()), [torch.randn(4, 4)])
    with pytest.raises(ek.ModelError, match=r"'1.*lazy"):
        ek.reestimate_(nn.Sequential(nn.Linear(4, 4), nn.LazyBatchNorm1d()), [torch.randn(4, 4)])


def test_a_progress_bar_does_not_show_without_a_terminal(capsys):
    ek.reestimate_(nn.BatchNorm1d(4), torch.randn(3, 16, 4), progress=True)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@given(sizes=st.lists(st.integers(2, 40), min_size=1, max_size=8), seed=st.integers(0, 2**16))
def test_any_split_into_batches_gives_the_pooled_statistics(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    scale, offset = torch.rand(2, len(sizes), generator=generator).mul(10).unbind()
    data = [offset[i] + scale[i] * torch.randn(n, 3, generator=generator) for i, n in enumerate(sizes)]
    model = nn.BatchNorm1d(3)
    ek.reestimate_(model, copy.deepcopy(data))
    pooled = torch.cat(data).double()
    assert torch.allclose(model.running_var.double(), pooled.var(0), rtol=1e-4)
    assert torch.allclose(model.running_mean.double(), pooled.mean(0), rtol=1e-4, atol=1e-4)


# --- did it help? -----------------------------------------------------------------------------------------------------


def classifier():
    """A norm and a head that is right as long as the norm lets its input through as it is."""
    model = nn.Sequential(nn.BatchNorm1d(4, affine=False, eps=0.0), nn.Linear(4, 4, bias=False))
    nn.init.eye_(model[1].weight)
    return model


def labelled(count=64):
    x = torch.randn(count, 4)
    return [(x, x.argmax(1))]


@pytest.mark.parametrize("choose", ["new", "best"])
@pytest.mark.parametrize("helps", [True, False])
def test_scores_before_and_after_say_whether_it_helped(helps, choose):
    torch.manual_seed(0)
    model, held_out = classifier(), labelled()
    if helps:
        nn.init.constant_(model[0].running_var, 100.0)
    data = torch.randn(4, 64, 4) * (1 if helps else 30)
    before = Snapshot(model, world=False)
    done = ek.reestimate_(model, data, held_out=held_out, choose=choose)
    assert (done.after.log_loss < done.before.log_loss) is helps
    assert done.kept is (helps or choose == "new")
    if not done.kept:
        assert before.changes() == []
        assert "no better, so taken back" in repr(done)
    done.undo()
    assert before.changes() == []


def test_what_cannot_be_scored_changes_nothing():
    model = classifier()
    before = Snapshot(model, world=False)
    with pytest.raises(ek.BatchError, match=r"^held-out data: batch 1 holds no labels"):
        ek.reestimate_(model, torch.randn(4, 64, 4), held_out=[torch.randn(8, 4)])
    assert before.changes() == []
    with pytest.raises(ek.BatchError, match="scored twice, and a list_iterator is used up by then: pass a list"):
        ek.reestimate_(model, torch.randn(4, 64, 4), held_out=iter(labelled()))
    assert before.changes() == []


class Loader(list):
    """Batches that count how often they are iterated over."""

    starts = 0

    def __iter__(self):
        self.starts += 1
        return super().__iter__()


def rows(outputs, targets):
    return (outputs - targets).abs().sum(1).mean()


TASKS = {
    "squared error": (lambda x: (x, 3 * x), {}),
    "log loss": (lambda x: (x, x.argmax(1)), {}),
    "rows": (lambda x: (x, 3 * x), {"score": rows}),
    "log loss, by name": (lambda x: {"pixels": x, "labels": x.argmax(1)}, {"forward": lambda m, b: m(b["pixels"])}),
    "the model's own loss": (
        lambda x: {"pixels": x},
        {"forward": lambda model, batch: F.mse_loss(model(batch["pixels"]), 3 * batch["pixels"])},
    ),
}


@pytest.mark.parametrize("state", ["stale", "nan", "right"])
@pytest.mark.parametrize("task", TASKS)
def test_any_task_is_judged_on_data_read_twice(task, state):
    torch.manual_seed(0)
    make, options = TASKS[task]
    model, data = classifier(), [make(x) for x in torch.randn(4, 64, 4)]
    model[1].weight.data.mul_(3)
    if state != "right":
        model[0].running_var[0] = torch.nan if state == "nan" else 100.0
    before, held_out = Snapshot(model, world=False), Loader(make(x) for x in torch.randn(2, 32, 4))
    bad = [make(x) for x in 30 * torch.randn(4, 64, 4)]
    done = ek.reestimate_(model, bad if state == "right" else data, held_out=held_out, choose="best", **options)
    assert held_out.starts == 2
    assert done.before.name == task.partition(",")[0] and done.after.samples == 64
    assert done.kept is (state != "right")
    assert math.isnan(done.before.loss) is (state == "nan")
    assert f"{done.before.name} {done.before.loss:.3g} to {done.after.loss:.3g}" in done.summary
    if not done.kept:
        assert before.changes() == []


def test_data_to_judge_by_that_decide_nothing_are_said_to():
    torch.manual_seed(0)
    model, data = classifier(), [TASKS["log loss"][0](x) for x in torch.randn(4, 64, 4)]
    before, spoilt = Snapshot(model, world=False), [(math.nan * x, y) for x, y in data]
    done = ek.reestimate_(model, data, held_out=spoilt, choose="best")
    assert not done.kept and before.changes() == []
    assert any("no finite number before, nor after" in note for note in done.notes)


@pytest.mark.parametrize(
    ("name", "value"), [("running_var", math.inf), ("running_mean", -math.inf), ("running_var", -1.0)]
)
def test_damage_that_is_put_back_is_named(name, value):
    """A channel that is infinite is off, and may score no worse than one that is right."""
    torch.manual_seed(0)
    model, data = classifier(), [TASKS["log loss"][0](x) for x in torch.randn(4, 64, 4)]
    getattr(model[0], name)[0] = value

    before = Snapshot(model, world=False)
    done = ek.reestimate_(model, data, held_out=data, choose="best", score=lambda outputs, targets: 1.0)
    assert not done.kept and before.changes() == []
    assert any(note.startswith("'0' stores what cannot be") and name in note for note in done.notes)


def test_what_is_in_doubt_changes_nothing_and_names_score():
    model = classifier()
    before = Snapshot(model, world=False)
    held_out = [(torch.randn(8, 4), torch.randint(0, 2, (8, 4)).float())]
    with pytest.raises(ek.BatchError, match="score="):
        ek.reestimate_(model, torch.randn(4, 64, 4), held_out=held_out)
    assert before.changes() == []
    score = F.binary_cross_entropy_with_logits
    done = ek.reestimate_(model, torch.randn(4, 64, 4), held_out=held_out, score=score)
    assert done.after.name == "binary_cross_entropy_with_logits"


@pytest.mark.parametrize(
    "options", [{"choose": "best"}, {"choose": "old", "held_out": []}, {"memory": -1}, {"score": F.mse_loss}]
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ek.EvenkeelError, match=r"choose must be|memory must be|pass held_out="):
        ek.reestimate_(classifier(), torch.randn(4, 64, 4), **options)


# --- and lint ---------------------------------------------------------------------------------------------------------


def shifted(model):
    """The norms that lint finds to carry dropout's variance: the worst, if there is one."""
    return [finding.path for finding in ek.lint(model, torch.zeros(1, 8), select=["EK102"])]


def test_lint_falls_silent_and_speaks_again():
    model, data = nn.Sequential(nn.BatchNorm1d(8), *dropout_net()), torch.randn(64, 256, 8)
    for batch in data:
        model(batch)
    assert shifted(model) == ["5"]
    done = ek.reestimate_(model, data)
    assert shifted(model) == shifted(model.eval()) == shifted(copy.deepcopy(model)) == []
    done.undo()
    assert shifted(model) == ["5"]
    ek.reestimate_(model, data)
    model.train()
    for batch in data:
        model(batch)
    assert shifted(model) == ["5"]
