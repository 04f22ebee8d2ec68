"""Where matching variances may make a regression worse, the repairs say so; a classifier is left in peace."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.errors import StretchWarning
from evenkeel.statistics.stretching import has_class_labels

X = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.norm, self.last = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 1)

    def forward(self, x):
        return self.last(self.norm(F.dropout(self.weight(x), 0.5, self.training)))


NETS = {
    "right before": lambda: nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.BatchNorm1d(16), nn.Linear(16, 1)),
    "activation between": lambda: nn.Sequential(
        nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 1)
    ),
    "functional": Functional,
}


def trained(name):
    torch.manual_seed(0)
    model = NETS[name]()
    for _ in range(60):
        model(X)
    return model


TARGETS = {
    "one": torch.randn(400, 1),
    "several": torch.randn(400, 3),
    "counts": torch.randint(9, (400,)),
    "none": None,
}


def batches(targets):
    return list(X.split(50)) if targets is None else list(zip(X.split(50), targets.split(50), strict=True))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NETS)
def test_a_repair_that_stretches_outputs_warns(name, target):
    with pytest.warns(StretchWarning, match=r"right behind a dropout, now passes on x1\.\d\d"):
        done = ek.reestimate_(trained(name), batches(TARGETS[target]), match="variance")
    assert "right behind a dropout" in done.notes[-1] and "right behind a dropout" in str(done)
    with pytest.warns(StretchWarning, match="a regression's error may grow"):
        fixed = ek.correct_(trained(name), X[:2], match="variance")
    assert "right behind a dropout" in str(fixed)


def quiet(verb, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return verb(*args, **options)


def test_a_classifier_is_not_warned_of():
    labels = torch.randint(3, (400,))
    model = trained("right before")
    model[3] = nn.Linear(16, 3)
    assert not quiet(ek.reestimate_, model, batches(labels)).notes


def test_where_held_out_data_judge_there_is_no_warning_but_a_note():
    data = batches(TARGETS["one"])
    done = quiet(ek.reestimate_, trained("right before"), data, match="variance", held_out=data)
    assert "right behind a dropout" in done.notes[-1] and done.before.name == "squared error"


def test_where_a_weight_layer_is_between_or_nothing_shrinks_there_is_no_warning():
    between = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 1))
    for _ in range(60):
        between(X)
    assert not quiet(ek.reestimate_, between, batches(TARGETS["one"]), match="variance").notes
    model = trained("right before")
    with pytest.warns(StretchWarning):
        ek.reestimate_(model, batches(TARGETS["one"]), match="variance")
    assert not quiet(ek.reestimate_, model, batches(TARGETS["one"]), match="variance").notes


@pytest.mark.parametrize("target", ["one", "none"])
@pytest.mark.parametrize("name", NETS)
def test_a_regression_has_its_mean_matched_by_default(name, target):
    model = trained(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    done = quiet(ek.reestimate_, model, batches(TARGETS[target]))
    assert done.match == "mean"
    last = done[-1]
    assert last.ratio == pytest.approx(1, abs=0.1)
    fixed = quiet(ek.correct_, trained(name), X[:2])
    assert fixed.match == "mean" and all(row.ratio == pytest.approx(1, abs=0.1) for row in fixed)
    done.undo()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ({"x": X, "labels": torch.tensor([1])}, True),
        ({"x": X, "y": torch.tensor([1.0])}, False),
        ([X, [3, 4]], True),
        ((X, [{"labels": torch.tensor([1])}]), True),
        ((X,), False),
        (X, False),
    ],
)
def test_labels_of_classes_are_whole_numbers(batch, found):
    assert has_class_labels(batch) is found


def test_dropout_that_drops_nothing_stretches_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.0), nn.BatchNorm1d(8), nn.Linear(8, 1))
    for _ in range(50):
        model(3 * torch.randn(32, 6))
    done = ek.reestimate_(model, [torch.randn(32, 6) for _ in range(4)], match="variance")  # warnings are errors
    assert done[0].ratio < 0.5 and not any("dropout" in note for note in done.notes)
