"""DropRates: where rates are held, what cannot be set, and that all are put back."""

import pytest
import torch
from smallnet import TwoDrops
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.graph.drop_rates import DropRates, at_ending_rates, is_scheduled


class Functional(nn.Module):
    """Rates in attributes that its forward reads, one of them under a name that says nothing."""

    def __init__(self):
        super().__init__()
        self.attention_dropout, self.p, self.beta = 0.2, 0.4, 0.3

    def forward(self, x):
        x = F.dropout(x, self.attention_dropout, self.training)
        return F.dropout(x, self.p, self.training) + self.beta


class Numbers(nn.Module):
    """Numbers that are no rates, beside one that is."""

    def __init__(self):
        super().__init__()
        self.drop, self.act, self.distance = nn.Dropout(0.1), nn.Softplus(beta=1), nn.PairwiseDistance(p=1.0)
        self.drop_last, self.drop_index, self.dropouts, self.p = True, 1, [0.5], 0.5

    def forward(self, x):
        return self.act(self.drop(x))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Dropout(0.5), {"p": 0.5}),
        (nn.Sequential(nn.Dropout2d(0.5), nn.AlphaDropout(0)), {"0.p": 0.5, "1.p": 0}),
        (ek.Uout(0.2), {"beta": 0.2}),
        (ek.IC(4), {"dropout.p": 0.05}),
        (nn.LSTM(2, 2, 2, dropout=0.3), {"dropout": 0.3}),
        (nn.MultiheadAttention(4, 2, dropout=0.1), {"dropout": 0.1}),
        (Functional(), {"attention_dropout": 0.2}),
        (Numbers(), {"drop.p": 0.1}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_rates_are_found_by_what_classes_and_attributes_are_called(model, expected):
    assert DropRates(model).found == expected


@pytest.mark.parametrize("name", ["drop_keep_prob", "dropout_keep", "dropped", "drop_last_share", "dropout_start"])
def test_a_rate_to_keep_and_other_numbers_named_after_dropping_are_none(name):
    model = nn.Sequential(nn.Dropout(0.1), nn.Linear(2, 2))
    setattr(model[1], name, 0.8)
    assert DropRates(model).found == {"0.p": 0.1}


def test_without_an_example_the_error_says_what_was_not_looked_for():
    model = Functional()
    del model.attention_dropout
    with pytest.raises(ek.ModelError, match="pass example="):
        DropRates(model)
    with pytest.raises(ek.ModelError) as raised:
        DropRates(nn.Linear(2, 2), torch.ones(2, 2))
    assert "example=" not in str(raised.value)


def test_an_example_shows_rates_of_any_name():
    assert DropRates(Functional(), torch.ones(2, 4)).found == {"attention_dropout": 0.2, "p": 0.4}
    assert DropRates(Numbers(), torch.ones(2, 4)).found == {"drop.p": 0.1}


def test_what_cannot_be_set_is_named_and_without_an_example_not_known():
    model = TwoDrops()
    rates = DropRates(model, torch.zeros(2, 4))
    (label, reason), *more = rates.untouched.items()
    assert "smallnet.py" in label and "p=0.25" in reason and not more and rates.notes == ()
    assert rates.found == {"drop.p": 0.5, "off.p": 0.0} and model.drop.p == 0.5
    assert DropRates(model).untouched == {} and "pass example=" in DropRates(model).notes[0]


def test_a_wrapper_changes_no_name():
    model = nn.DataParallel(nn.Sequential(nn.Dropout(0.5)))
    assert DropRates(model, torch.ones(2, 4)).found == {"0.p": 0.5}


def test_rates_at_zero_drop_nothing():
    for module in (nn.Dropout(0.5), ek.Uout(0.2), ek.IC(4, ndim=0).dropout, nn.FeatureAlphaDropout(0.3)):
        rates, x = DropRates(module), torch.rand(6, 4)
        assert not torch.equal(module.train()(x), x)
        rates.write(dict.fromkeys(rates.found, 0.0))
        assert torch.equal(module(x), x)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_that_makes_no_sense_changes_none(rate):
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.2))
    with pytest.raises(ek.EvenkeelError, match=r"1\.p would be"):
        DropRates(model).write({"0.p": 0.1, "1.p": rate})
    assert [drop.p for drop in model] == [0.5, 0.2]


def test_a_model_without_rates_is_refused():
    with pytest.raises(ek.ModelError, match="holds a drop rate"):
        DropRates(nn.Linear(2, 2))


def test_ending_rates_are_set_while_entered_also_when_that_raises():
    model = nn.Sequential(nn.Dropout(0.5))
    rates = DropRates(model)
    rates.announce({"0.p": 0.1})
    with pytest.raises(ArithmeticError), at_ending_rates(model) as differs:
        assert differs and model[0].p == 0.1
        raise ArithmeticError
    assert model[0].p == 0.5 and is_scheduled(model[0])
    with pytest.raises(ek.EvenkeelError, match="already"):
        DropRates(model).announce({"0.p": 0.2})
    rates.withdraw()
    with at_ending_rates(model) as differs:
        assert not differs and model[0].p == 0.5
