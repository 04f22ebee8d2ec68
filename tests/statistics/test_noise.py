"""noisy: dropout on and the statistics of training while entered, and all as found afterwards."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from masked import as_if_trained, same_bits, statistics_in
from snapshots import Snapshot
from torch import Tensor, nn

import evenkeel as ek

DATA = torch.randn(256, 6, generator=torch.Generator().manual_seed(7))
BATCHES = list(DATA.split(32))
REPAIRS = {
    "mean": lambda model: ek.reestimate_(model, BATCHES, match="mean"),
    "variance": lambda model: ek.reestimate_(model, BATCHES, match="variance"),
    "relative": lambda model: ek.reestimate_(model, BATCHES, match="variance", relative=True),
    "blend": lambda model: ek.reestimate_(model, BATCHES, match="variance", prior=64),
    "variance only": lambda model: ek.reestimate_(model, BATCHES, match="variance", stats="var"),
    "without data": lambda model: ek.correct_(model, DATA[:2], unsure="write"),
}


def small() -> nn.Sequential:
    torch.manual_seed(5)
    layers = nn.Linear(6, 8), nn.Dropout(0.4), nn.BatchNorm1d(8), nn.ReLU()
    more = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 2)
    return as_if_trained(nn.Sequential(*layers, *more), DATA)  # type: ignore[return-value]


def drawn(model: nn.Module, seed: int = 0) -> Tensor:
    """What a model gives with the masks of a seed."""
    torch.manual_seed(seed)
    with ek.noisy(model), torch.no_grad():
        return model(DATA)


def by_hand(model: nn.Module, seed: int = 0) -> Tensor:
    """The same of a model as training left it: dropout on, norms in eval mode."""
    torch.manual_seed(seed)
    for module in model.modules():
        module.training = isinstance(module, nn.Dropout)
    with torch.no_grad():
        return model(DATA)


def test_it_is_dropout_on_and_norms_in_eval_mode():
    assert torch.equal(drawn(small()), by_hand(small()))
    assert torch.equal(drawn(small().train()), by_hand(small()))
    assert not torch.equal(drawn(small()), drawn(small(), 1))


@pytest.mark.parametrize("repair", REPAIRS)
def test_after_a_repair_it_is_as_before(repair):
    model = small()
    before, found = drawn(model), statistics_in(model)
    done = REPAIRS[repair](model)
    new = statistics_in(model)
    assert not same_bits(found, new)
    assert torch.equal(drawn(model), before) and same_bits(statistics_in(model), new)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(drawn(other), before) and same_bits(statistics_in(other), new)
    done.undo()
    assert torch.equal(drawn(model), before) and same_bits(statistics_in(model), found)


def test_after_several_repairs_it_is_as_before_the_first():
    model = small()
    before = drawn(model)
    for repair in ("mean", "variance", "variance only", "blend", "mean"):
        REPAIRS[repair](model)
        assert torch.equal(drawn(model), before)
    assert torch.equal(drawn(model.double().float()), before)


def test_a_whole_model_from_a_file_still_knows():
    model, file = small(), io.BytesIO()
    before = drawn(model)
    REPAIRS["variance"](model)
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(drawn(torch.load(file, weights_only=False)), before)


def test_a_state_dict_is_taken_as_it_stands():
    repaired, model = small(), small()
    REPAIRS["variance"](repaired)
    model.load_state_dict(repaired.state_dict())
    expected = small()
    for norm, other in zip((expected[2], expected[5]), (repaired[2], repaired[5]), strict=True):
        norm.running_mean.copy_(other.running_mean)
        norm.running_var.copy_(other.running_var)
    assert torch.equal(drawn(model), by_hand(expected))


def test_what_was_loaded_or_trained_since_counts():
    model = small()
    REPAIRS["variance"](model)
    model.load_state_dict(small().state_dict())
    assert torch.equal(drawn(model), by_hand(small()))
    REPAIRS["variance"](model)
    model.train()(3 * DATA)
    trained = small()
    trained.load_state_dict(model.state_dict())
    assert torch.equal(drawn(model.eval()), by_hand(trained))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("repair", [None, "variance"])
def test_all_is_as_found_afterwards_and_after_an_exception(training, repair):
    model = small()
    if repair:
        REPAIRS[repair](model)
    model.train(training)
    model[6].eval()
    before = Snapshot(model, world=False)
    drawn(model)
    assert before.changes() == []
    with pytest.raises(KeyboardInterrupt), ek.noisy(model):
        assert model[1].training and not model[2].training and before.changes()
        raise KeyboardInterrupt
    assert before.changes() == []


def test_nested_it_is_the_same():
    model = small()
    once = drawn(model)
    REPAIRS["variance"](model)
    before = Snapshot(model, world=False)
    with ek.noisy(model):
        outer = Snapshot(model, world=False)
        assert torch.equal(drawn(model), once)
        assert outer.changes() == []
        with pytest.raises(ValueError, match="within"), ek.noisy(model):
            raise ValueError("within")
        assert outer.changes() == []
    assert before.changes() == []


def test_frozen_modules_stay_frozen():
    model = small().train()
    model[1].eval()
    with ek.noisy(model):
        assert not model[1].training and model[6].training
    assert not model[1].training and model[2].training


class Backbone(nn.Module):
    """Keeps a part in eval mode in training, by its own `train`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.ReLU())
        self.drop, self.norm, self.head = nn.Dropout(0.1), nn.BatchNorm1d(8), nn.Linear(8, 1)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.drop(self.body(x))))


def test_what_the_model_itself_keeps_in_eval_mode_stays_there():
    model = as_if_trained(Backbone(), DATA)
    with ek.noisy(model):
        assert model.drop.training and not model.body[1].training


def test_random_numbers_go_on():
    model = small()
    torch.manual_seed(0)
    with ek.noisy(model), torch.no_grad():
        first, second = model(DATA), model(DATA)
    assert not torch.equal(first, second)
    assert torch.equal(first, drawn(model))


def test_gradients_flow():
    model = small()
    with ek.noisy(model):
        model(DATA).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_norms_made_in_inference_mode_take_part():
    with torch.inference_mode():
        model = small()
    before = drawn(model)
    REPAIRS["variance"](model)
    assert torch.equal(drawn(model), before)


def test_the_average_is_what_matching_the_mean_keeps():
    model = small()
    data = torch.randn(4096, 6)
    with ek.noisy(model), torch.no_grad():
        average = torch.stack([model(DATA) for _ in range(256)]).mean(0)
    errors = {}
    for match in ("mean", "variance"):
        repaired = copy.deepcopy(model)
        ek.reestimate_(repaired, list(data.split(64)), match=match)
        with torch.no_grad():
            errors[match] = float((repaired(DATA) - average).square().mean())
    assert errors["mean"] < errors["variance"] / 4
