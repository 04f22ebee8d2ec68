"""correct_: what it writes is what data would give, it can be undone, and it writes nothing it would have to guess."""

import copy
import math
import pickle
import re

import pytest
import torch
from snapshots import Snapshot
from test_shift_prediction import train_
from torch import nn

import evenkeel as ek
from evenkeel.prediction.random_inputs import random_field


def net(p=0.5, norms=3, width=64):
    torch.manual_seed(0)
    layers = [nn.Linear(8, width)]
    for _ in range(norms - 1):
        layers += [nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(p), nn.Linear(width, width)]
    return train_(nn.Sequential(*layers, nn.BatchNorm1d(width)), (8,))


def statistics(model):
    return {k: v.clone() for k, v in model.state_dict().items() if "running" in k}


def median_shift(model, x):
    ratios = sorted(abs(math.log(row.ratio)) for row in ek.variance_shift(model, [x]))
    return ratios[len(ratios) // 2]


def test_the_statistics_written_are_those_that_data_give():
    model, x = net(), random_field((8192, 8))
    before = median_shift(model, x)
    done = ek.correct_(model, torch.zeros(1, 8))
    assert before > 0.3 and median_shift(model, x) < before / 10
    corrected = statistics(model)
    ek.reestimate_(model, [x])
    for name, value in statistics(model).items():
        assert torch.allclose(corrected[name], value, rtol=0.15, atol=0.15), name
    assert [row.path for row in done] == ["1", "5", "9"] and done.untouched == {}


def test_of_channels_and_norms_alike_what_is_corrected_is_settled_not_the_shift_as_it_stands():
    model, x = net(), random_field((8192, 8))
    stands = [row.ratio for row in ek.predict_shift(model, torch.zeros(1, 8))]
    settled = [row.ratio for row in ek.correct_(model, torch.zeros(1, 8))]
    assert settled[1] == pytest.approx(stands[1], rel=0.02), "nothing upstream of the first shift is to be settled"
    assert abs(settled[2] - stands[2]) > 0.03
    assert [row.ratio for row in ek.variance_shift(model, [x])] == pytest.approx([1, 1, 1], abs=0.1)


def test_means_move_by_what_an_activation_makes_of_noise():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(64), nn.Dropout(0.5), nn.ReLU(), nn.Tanh(), nn.BatchNorm1d(64))
    train_(model, (64,))
    data = random_field((20000, 64))
    both, var = ek.correct_(model, torch.zeros(1, 64)), model[4].running_mean.clone()
    ek.reestimate_(model, [data])
    assert torch.allclose(model[4].running_mean, var, atol=0.03)
    assert both[1].moved > 0.05
    both.undo()
    only = ek.correct_(model, torch.zeros(1, 64), stats="var")
    assert not torch.equal(model[4].running_mean, var) and only[1].moved == 0


def test_undo_gives_back_every_bit_in_place():
    model = net()
    before, buffers = statistics(model), [model[1].running_var, model[9].running_mean]
    done = ek.correct_(model, torch.zeros(1, 8))
    assert not torch.equal(model[9].running_var, before["9.running_var"])
    done.undo()
    assert all(torch.equal(before[k], v) for k, v in statistics(model).items())
    assert buffers[0] is model[1].running_var and buffers[1] is model[9].running_mean


def test_a_model_without_dropout_stays_what_it_is():
    model = net(p=0.0)
    before = statistics(model)
    done = ek.correct_(model, torch.zeros(1, 8))
    assert [row.ratio for row in done] == pytest.approx([1, 1, 1], rel=1e-5)
    for name, value in statistics(model).items():
        assert torch.allclose(value, before[name], rtol=1e-4, atol=1e-5)


def test_only_statistics_are_written():
    model = net().eval()
    model[3].train()
    before = Snapshot(model)
    ek.correct_(model, torch.zeros(1, 8))
    written = [f"{path}.{name}" for path in "159" for name in ("running_mean", "running_var")]
    assert {f"attribute {path}:evenkeel_written" for path in "159"} < set(before.changes())
    assert before.changes(written) == []


class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.last = nn.Linear(8, 64), nn.BatchNorm1d(64), nn.BatchNorm1d(64)

    def forward(self, x):
        x = self.norm(self.linear(x))
        return self.last(self.norm(torch.dropout(x.relu(), 0.5, self.training)))


def input_dropout():
    return train_(nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 64), nn.BatchNorm1d(64)), (8,))


def drowned():
    model = net(norms=2)
    model[5].running_var.mul_(0.05)
    return model


def frozen():
    model = net(norms=2)
    model[5].eval()
    return model


@pytest.mark.parametrize(
    ("build", "path", "reason"),
    [
        (lambda: train_(Reused(), (8,)), "norm", "2 calls together"),
        (input_dropout, "2", r"100% of what noise does to it comes from 0.*whose variance no norm fixes"),
        (drowned, "5", r"the noise predicted exceeds the variance stored in \d+ of 64 channels"),
        (frozen, "5", "frozen: in eval mode"),
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(), nn.BatchNorm1d(8)), "2", "untrained"),
    ],
)
def test_what_it_would_have_to_guess_is_left_and_named(build, path, reason):
    torch.manual_seed(0)
    model = build()
    before = statistics(model)
    done = ek.correct_(model, torch.zeros(1, 8))
    behind = {other for other, why in done.untouched.items() if why.startswith(f"it rests on {path!r}")}
    assert set(done.untouched) == {path} | behind and ("last" in behind) == isinstance(model, Reused)
    assert re.search(reason, done.untouched[path])
    for name in ("running_mean", "running_var"):
        assert torch.equal(before[f"{path}.{name}"], model.state_dict()[f"{path}.{name}"])
    assert path in repr(done) and path in str(done)


def test_norms_downstream_are_settled_on_what_is_left_as_it_was():
    model, x = net(norms=4), random_field((8192, 8))
    model[5].eval()
    done = ek.correct_(model, torch.zeros(1, 8), seed=4)  # by others, the last norm's noise exceeds what it stores
    assert set(done.untouched) == {"5"}
    ratios = {row.path: row.ratio for row in ek.variance_shift(model, [x])}
    assert abs(math.log(ratios["5"])) > 0.3
    assert [ratios["9"], ratios["13"]] == pytest.approx([1, 1], abs=0.15)


def test_dropout_on_the_input_right_before_a_norm_is_known():
    model = train_(nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(64)), (64,))
    done = ek.correct_(model, torch.zeros(1, 64))
    assert done[0].ratio == pytest.approx(0.5, abs=0.03) and not done.untouched


def shifted(model):
    """The norm that lint finds to carry dropout's variance, if there is one."""
    return [finding.path for finding in ek.lint(model, torch.zeros(1, 8), select=["EK102"])]


def trained_on(model):
    """The model, its statistics those of the last batches, dropout on."""
    for norm in model.modules():
        norm.momentum = 0.3
    for _ in range(30):
        model.train()(random_field((256, 8)))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("twin", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_lint_falls_silent_and_speaks_again(twin):
    model = net()
    found = shifted(model)
    assert found
    done = ek.correct_(model, torch.zeros(1, 8))
    assert shifted(twin(model)) == []
    done.undo()
    assert shifted(twin(model)) == found
    ek.correct_(model, torch.zeros(1, 8))
    assert shifted(trained_on(twin(model))) == found


def test_lint_speaks_of_what_was_left():
    model = net()
    frozen = model[5].eval()
    ek.correct_(model, torch.zeros(1, 8))
    frozen.train()
    assert shifted(model) == ["5"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_buffers_keep_their_dtype(dtype):
    model = net().to(dtype)
    expected = [row.ratio for row in ek.correct_(net(), torch.zeros(1, 8))]
    assert [row.ratio for row in ek.correct_(model, torch.zeros(1, 8))] == pytest.approx(expected, rel=0.05)
    assert model[5].running_var.dtype == dtype


def test_the_report_counts_prints_and_goes_into_json():
    done = ek.correct_(net(), torch.zeros(1, 8))
    assert len(done) == 3 and "3 norms corrected without data" in str(done)
    assert done.to_dict()["rows"][1]["ratio"] == done[1].ratio
    assert repr(done) == "Correction(3 norms)"


def test_what_is_taken_for_a_classifier_is_said_unless_the_match_is_given():
    notes = [ek.correct_(net(), torch.zeros(1, 8), match=match).notes for match in (None, "variance", "mean")]
    said = ["as classifiers do" in " ".join(lines) for lines in notes]
    assert said == [True, False, False]


def test_corrected_models_are_ordinary_models():
    model = net()
    ek.correct_(model, torch.zeros(1, 8))
    copy = pickle.loads(pickle.dumps(model)).eval()
    x = torch.randn(4, 8)
    assert torch.equal(copy(x), model.eval()(x))


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (lambda m: m, {"stats": "mean"}, ek.EvenkeelError, "stats must be 'both' or 'var', not 'mean'"),
        (lambda m: m[0].weight.data.fill_(math.nan), {}, ek.ModelError, "not finite"),
        (
            lambda m: m[5].running_var.fill_(math.inf),
            {},
            ek.ModelError,
            "'5' is damaged: running_var holds infinite values in 64 of 64 channels",
        ),
        (lambda m: m.append(nn.Linear(3, 3)), {}, ek.TraceError, "in layer '10'"),
    ],
)
def test_errors_leave_the_model_as_found(change, options, error, message):
    model = net()
    change(model)
    snapshot = Snapshot(model)
    with pytest.raises(error, match=message):
        ek.correct_(model, torch.zeros(1, 8), **options)
    assert snapshot.changes() == []


@pytest.mark.parametrize(("steps", "left"), [(0, True), (3, True), (40, False)])
def test_what_was_repaired_is_left_alone_until_training_has_replaced_it(steps, left):
    model, x = net(), random_field((2048, 8))
    ek.reestimate_(model, [x])
    for norm in (model[1], model[5], model[9]):
        norm.momentum = 0.1
    for _ in range(steps):
        model.train()(x)
    if not steps:
        with pytest.raises(ek.ModelError, match="nothing is left to correct"):
            ek.correct_(model, torch.zeros(1, 8))
        return
    done = ek.correct_(model, torch.zeros(1, 8))
    assert ("5" in done.untouched) is ("9" in done.untouched) is left
    assert not left or done.untouched["5"].startswith("73% of what reestimate_ or correct_ wrote is left")


def test_where_means_alone_were_written_the_noise_is_in_yet():
    model, x = net(), random_field((4096, 8))
    ek.reestimate_(model, [x], stats="mean")
    assert len(ek.correct_(model, torch.zeros(1, 8))) == 3
    assert median_shift(model, x) < 0.1


def test_statistics_that_were_all_averaged_are_not_stale_whatever_momentum_and_count_say():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
    torch.optim.swa_utils.update_bn(torch.randn(8, 512, 8) * torch.tensor([0.3, *[3.0] * 7]), model)
    assert model[4].running_var.min() < 0.9**8 or model[1].running_var.min() < 0.9**8
    assert "stale" not in str(ek.correct_(model, torch.zeros(1, 8)).untouched)


def test_what_was_repaired_before_is_left_alone_and_what_was_trained_on_is_not():
    torch.manual_seed(0)
    model, x = nn.Sequential(), torch.randn(400, 8)
    for _ in range(2):
        model.extend([nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.4)])
    model.extend([nn.Linear(8, 8), nn.BatchNorm1d(8)])
    for _ in range(60):
        model(x)
    trained = copy.deepcopy(model.state_dict())
    done = ek.reestimate_(model, [x])
    exact = copy.deepcopy(model.state_dict())
    with pytest.raises(ek.ModelError, match="taken the noise of dropout out of all 3 norms since training"):
        ek.correct_(model, x[:2])
    assert all(torch.equal(value, exact[key]) for key, value in model.state_dict().items())
    done.undo()
    assert len(ek.correct_(model, x[:2])) == 3
    model.load_state_dict(trained)
    assert {"5", "9"} <= {row.path for row in ek.correct_(model, x[:2])}  # other values than were written

    model.load_state_dict(exact)
    ek.reestimate_(model, [x])
    for _ in range(60):
        model[5:](x)  # the last two are trained on
    done = ek.correct_(model, x[:2])
    assert list(done.untouched) == ["1"] and "the noise of dropout is out already" in done.untouched["1"]
