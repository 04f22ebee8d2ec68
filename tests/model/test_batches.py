"""batches: how a model is called on a batch, and one clear error for every fault of an iterable."""

from __future__ import annotations

from collections import UserDict, namedtuple
from itertools import count
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import evenkeel as ek
from evenkeel.model.batches import call, device_of, each, forward_pass, samples
from evenkeel.model.nested import tensors


class Echo(nn.Module):
    """Returns what it was given."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs


X, Y = torch.ones(3, 2), torch.zeros(3)
Pair = namedtuple("Pair", "x y")


@pytest.mark.parametrize(
    ("batch", "args", "kwargs"),
    [
        (X, (X,), {}),
        ((X, Y), (X,), {}),
        ([X, Y], (X,), {}),
        (Pair(X, Y), (X,), {}),
        ([{"x": X}, Y], ({"x": X},), {}),
        ({"x": X, "y": Y}, (), {"x": X, "y": Y}),
        (UserDict(x=X), (), {"x": X}),
    ],
    ids=["tensor", "tuple", "list", "named tuple", "list of mapping", "mapping", "mapping that is no dict"],
)
def test_call(batch, args, kwargs):
    assert call(Echo(), batch) == (args, kwargs)


@pytest.mark.parametrize("batch", ["text", None, 3, (), [], {1, 2}], ids=repr)
def test_call_refuses_what_is_no_batch(batch):
    with pytest.raises(ek.BatchError, match=r"forward=lambda model, batch"):
        call(Echo(), batch)


def test_forward_goes_before_call():
    assert forward_pass(Echo(), "text", 1, lambda model, batch: model(batch, 2)) == (("text", 2), {})


class Failing(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


@pytest.mark.parametrize("forward", [None, lambda model, batch: model(batch)])
def test_a_failing_pass_names_batch_layer_and_reason(forward):
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), Failing(ValueError("too cold\nor too warm"))))
    with pytest.raises(ek.BatchError, match=r"batch 17 .*ValueError: too cold.*'1\.1'") as raised:
        forward_pass(model, X, 17, forward)
    assert isinstance(raised.value.__cause__, ValueError)
    assert "\n" not in str(raised.value)


def test_a_failing_model_of_one_module_is_not_named_by_an_empty_path():
    with pytest.raises(ek.BatchError, match="KeyError") as raised:
        forward_pass(Failing(KeyError("x")), X, 1)
    assert "''" not in str(raised.value)


def test_an_error_without_words_is_named_by_its_type():
    with pytest.raises(ek.BatchError, match="RuntimeError"):
        forward_pass(Failing(RuntimeError()), X, 1)


def test_an_error_outside_of_the_model_names_no_layer():
    def forward(model, batch):
        raise ValueError("nothing to run")

    with pytest.raises(ek.BatchError, match=r"batch 2 .*nothing to run") as raised:
        forward_pass(nn.Linear(2, 2), X, 2, forward)
    assert "layer" not in str(raised.value)


def test_interrupts_pass_through():
    with pytest.raises(KeyboardInterrupt):
        forward_pass(Failing(KeyboardInterrupt()), X, 1)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (X, 3),
        ((X, Y), 3),
        ({"flag": torch.tensor(True), "x": torch.ones(5, 2)}, 5),
        ([], 0),
        ("text", 0),
        (torch.tensor(1.0), 0),
        ([[torch.ones(4, 1)], Y], 4),
    ],
)
def test_samples(batch, expected):
    assert samples(batch) == expected


def test_device_of():
    buffers_only = nn.Module()
    buffers_only.register_buffer("b", torch.ones(1, device="meta"))
    assert device_of(nn.Linear(2, 2, device="meta")).type == "meta"
    assert device_of(buffers_only).type == "meta"
    assert device_of(nn.ReLU()).type == "cpu"


# Iterables

MODEL = nn.Linear(2, 2)


def numbered(n):
    return [torch.full((2, 2), float(i)) for i in range(n)]


@pytest.mark.parametrize("take", [1, 2, 5, None])
def test_each_yields_the_batches_in_order(take):
    got = [int(batch[0, 0]) for batch in each(numbered(5), MODEL, take)]
    assert got == list(range(5))[:take]


@pytest.mark.parametrize(
    "kind", [list, tuple, iter, lambda b: (x for x in b), lambda b: DataLoader(b, batch_size=None)]
)
def test_each_takes_any_iterable(kind):
    assert len(list(each(kind(numbered(3)), MODEL, None))) == 3


def test_each_takes_no_more_than_it_needs():
    numbers = count()
    endless = (torch.ones(1, 2) * i for i in numbers)
    assert len(list(each(endless, MODEL, 3))) == 3
    assert next(numbers) == 3


def test_each_moves_tensors_to_the_model():
    batch = {"x": X, "more": [Y, "text"], "pair": Pair(X, 1)}
    (moved,) = each([batch], nn.Linear(2, 2, device="meta"), None)
    assert {t.device.type for t in tensors(moved)} == {"meta"}
    assert moved["more"][1] == "text"
    assert batch["x"].device.type == "cpu"


def test_each_keeps_the_type_of_a_mapping():
    """A tokenizer's batch is a mapping whose entries are attributes too, and a custom forward may use them so."""

    class Encoding(UserDict):
        def __getattr__(self, name):
            try:
                return self.data[name]
            except KeyError:
                raise AttributeError(name) from None

    (batch,) = each([Encoding(x=X)], MODEL, None)
    assert torch.equal(batch.x, X)


@pytest.mark.parametrize("batches", [{"x": X}, "text", 3, None], ids=["mapping", "text", "number", "none"])
def test_each_refuses_one_batch_in_place_of_many(batches):
    with pytest.raises(ek.BatchError, match=r"iterable of batches.*\[batch\]"):
        next(each(batches, MODEL, None))


@pytest.mark.parametrize("most", [0, -1])
def test_each_refuses_a_senseless_number(most):
    with pytest.raises(ek.BatchError, match=f"max_batches.*{most}"):
        next(each([X], MODEL, most))


@pytest.mark.parametrize("batches", [[], iter(()), DataLoader(TensorDataset(torch.ones(3, 2)), 4, drop_last=True)])
@pytest.mark.parametrize("most", [None, 3])
def test_an_empty_loader_is_an_error(batches, most):
    with pytest.raises(ek.BatchError, match="empty"):
        list(each(batches, MODEL, most))


def test_a_loader_that_raises_is_an_error_with_the_number_of_the_batch():
    def loader():
        yield X
        yield X
        raise OSError("disk gone")

    stream = each(loader(), MODEL, None)
    next(stream), next(stream)
    with pytest.raises(ek.BatchError, match=r"OSError: disk gone.*batch 3") as raised:
        next(stream)
    assert isinstance(raised.value.__cause__, OSError)


def test_an_iterable_that_cannot_even_start_is_an_error():
    class Broken:
        def __iter__(self):
            raise OSError("no such folder")

    with pytest.raises(ek.BatchError, match=r"no such folder.*batch 1"):
        list(each(Broken(), MODEL, None))


def test_fewer_than_asked_for_is_an_error():
    with pytest.raises(ek.BatchError, match=r"short.*2.*max_batches=5"):
        list(each(numbered(2), MODEL, 5))


class Promising(list):
    """Says that it holds more than it does."""

    def __len__(self):
        return 9


def test_fewer_than_promised_is_an_error():
    with pytest.raises(ek.BatchError, match=r"short.*9.*2"):
        list(each(Promising(numbered(2)), MODEL, None))


def test_fewer_than_promised_but_all_that_was_asked_for_is_fine():
    assert len(list(each(Promising(numbered(2)), MODEL, 2))) == 2


def test_loaders_without_a_length():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(numbered(3))

    assert len(list(each(DataLoader(Stream(), batch_size=None), MODEL, None))) == 3
