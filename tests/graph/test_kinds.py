"""The tables of kinds: nothing twice, nothing forgotten, and every module of torch shows the letter it should."""

from __future__ import annotations

import inspect
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.graph import kinds
from evenkeel.graph.kinds import Kind, function_name, is_own_call, kind_of_function

OTHER_TABLES = {
    "PRODUCTS": kinds.PRODUCTS,
    "LIKE_SECOND": kinds.LIKE_SECOND,
    "RANDOM": kinds.RANDOM,
    "SHAPE_ONLY": kinds.SHAPE_ONLY,
}


def test_no_function_is_in_the_tables_twice():
    named = Counter(name for names in kinds._FUNCTIONS.values() for name in names.split())
    assert [name for name, count in named.items() if count > 1] == []


def test_special_tables_do_not_contradict_the_kinds():
    for table in ("PRODUCTS", "RANDOM", "SHAPE_ONLY"):
        assert [name for name in OTHER_TABLES[table] if kind_of_function(name) is not Kind.OPAQUE] == [], table
    assert {kind_of_function(name) for name in kinds.LIKE_SECOND} == {Kind.PASS}
    assert not kinds.RANDOM & kinds.SHAPE_ONLY


@pytest.mark.parametrize(
    ("kind", "tables"),
    [
        (Kind.WEIGHT, "CONVOLUTIONS TRANSPOSED EMBEDDINGS"),
        (Kind.NORM, "BATCH_NORMS"),
        (Kind.ACTIVATION, "SOFTMAXES"),
        (Kind.DROPOUT, "CHANNEL_DROPOUT ALPHA_DROPOUT MULTIPLYING_DROPOUT"),
        (Kind.POOL, "MAXIMA MINIMA AVERAGES REDUCTIONS RESIZES WINDOWED_POOLS ADAPTIVE_POOLS UNPREDICTED_POOLS"),
        (Kind.JOIN, "SUBTRACTIONS"),
        (Kind.GATE, "DIVISIONS"),
        (Kind.CONCAT, "CONCATENATIONS"),
        (Kind.PASS, "PADDINGS"),
    ],
)
def test_functions_that_one_kind_treats_apart_are_of_that_kind(kind, tables):
    for table in tables.split():
        assert {kind_of_function(name) for name in getattr(kinds, table)} == {kind}, table
    assert kinds.REVERSED < kinds.SUBTRACTIONS | kinds.DIVISIONS


def test_tables_hold_names_as_function_name_gives_them():
    named = {name for names in kinds._FUNCTIONS.values() for name in names.split()}.union(*OTHER_TABLES.values())
    assert [name for name in named if name != name.strip("_")] == []


def test_letters_are_those_of_the_design():
    assert "".join(kind.value for kind in Kind) == "WNADP+cx.~?io"
    assert all(len(kind.value) == 1 for kind in Kind)


EXPECTED_BY_WORD = {"dropout": Kind.DROPOUT, "pool": Kind.POOL, "_norm": Kind.NORM, "conv": Kind.WEIGHT}
NO_KIND = {
    "local_response_norm": "divides by its neighbours' energy: neither an affine norm nor an activation",
    "max_unpool1d": "scatters by indices that another layer made",
    "max_unpool2d": "scatters by indices that another layer made",
    "max_unpool3d": "scatters by indices that another layer made",
}


def public_functions(*words: str) -> list[str]:
    return [
        name
        for name in dir(F)
        if not name.startswith("_") and callable(getattr(F, name)) and any(word in name for word in words)
    ]


@pytest.mark.parametrize("name", public_functions(*EXPECTED_BY_WORD))
def test_every_functional_dropout_pool_norm_and_conv_has_its_kind(name):
    expected = next(kind for word, kind in EXPECTED_BY_WORD.items() if word in name)
    assert kind_of_function(name) is (Kind.OPAQUE if name in NO_KIND else expected)


def test_exceptions_still_exist():
    assert set(NO_KIND) <= set(public_functions(*EXPECTED_BY_WORD))


@pytest.mark.parametrize("name", [n for n in dir(torch) if "dropout" in n and n[0] != "_"])
def test_every_dropout_of_torch_itself_has_its_kind(name):
    assert kind_of_function(function_name(getattr(torch, name))) is Kind.DROPOUT


ACTIVATIONS = [
    kind
    for name, kind in vars(nn.modules.activation).items()
    if name in nn.modules.activation.__all__ and kind is not nn.MultiheadAttention
]
ACTIVATION_ARGUMENTS = {nn.Threshold: (0.1, 0.0), nn.Softmax: (1,), nn.Softmin: (1,), nn.LogSoftmax: (1,), nn.GLU: (1,)}


@pytest.mark.parametrize("kind", ACTIVATIONS, ids=lambda kind: kind.__name__)
def test_every_activation_module_is_an_activation(kind):
    module = kind(*ACTIVATION_ARGUMENTS.get(kind, ()))
    for training in (True, False):
        graph = ek.trace(nn.Sequential(module).train(training), torch.ones(2, 4, 3, 3))
        assert str(graph) == "i A o"
        assert graph["0"].module is module


@pytest.mark.parametrize("name", [name for name in dir(F) if name.endswith("_") and not name.startswith("_")])
def test_every_function_in_place_has_the_kind_of_the_one_out_of_place(name):
    in_place, out_of_place = getattr(F, name), getattr(F, name.removesuffix("_"))
    assert kind_of_function(function_name(in_place)) is kind_of_function(function_name(out_of_place))
    assert kind_of_function(function_name(in_place)) is not Kind.OPAQUE


LINE, IMAGE, VOLUME = (2, 4, 8), (2, 4, 8, 8), (2, 4, 8, 8, 8)
SHAPES = {1: LINE, 2: IMAGE, 3: VOLUME}
MODULES = {
    **{f"Conv{d}d": (Kind.WEIGHT, (4, 4, 2), SHAPES[d]) for d in SHAPES},
    **{f"ConvTranspose{d}d": (Kind.WEIGHT, (4, 4, 2), SHAPES[d]) for d in SHAPES},
    "Linear": (Kind.WEIGHT, (8, 8), LINE),
    **{f"BatchNorm{d}d": (Kind.NORM, (4,), SHAPES[d]) for d in SHAPES},
    **{f"InstanceNorm{d}d": (Kind.NORM, (4, 1e-5, 0.1, True, True), SHAPES[d]) for d in SHAPES},
    "SyncBatchNorm": (Kind.NORM, (4,), IMAGE),
    "LayerNorm": (Kind.NORM, (8,), IMAGE),
    "RMSNorm": (Kind.NORM, (8,), IMAGE),
    "GroupNorm": (Kind.NORM, (2, 4), IMAGE),
    "Dropout": (Kind.DROPOUT, (0.2,), LINE),
    **{f"Dropout{d}d": (Kind.DROPOUT, (0.2,), SHAPES[d]) for d in SHAPES},
    "AlphaDropout": (Kind.DROPOUT, (0.2,), LINE),
    "FeatureAlphaDropout": (Kind.DROPOUT, (0.2,), LINE),
    **{f"{kind}Pool{d}d": (Kind.POOL, (2,), SHAPES[d]) for kind in ("Max", "Avg") for d in SHAPES},
    **{f"Adaptive{kind}Pool{d}d": (Kind.POOL, (2,), SHAPES[d]) for kind in ("Max", "Avg") for d in SHAPES},
    **{f"LPPool{d}d": (Kind.POOL, (2, 2), SHAPES[d]) for d in SHAPES},
    **{f"FractionalMaxPool{d}d": (Kind.POOL, (2, 3), SHAPES[d]) for d in (2, 3)},
}
NO_PLAIN_MODULE = {
    "LocalResponseNorm": "no kind, see above",
    "CrossMapLRN2d": "no kind, see above",
    **{f"MaxUnpool{d}d": "no kind, see above" for d in SHAPES},
}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_shows_its_letter(name):
    expected, arguments, shape = MODULES[name]
    module = getattr(nn, name)(*arguments)
    for training in (True, False):
        graph = ek.trace(nn.Sequential(module).train(training), torch.ones(shape))
        assert str(graph) == f"i {expected.value} o"
        assert graph["0"].module is module


def test_the_table_of_modules_is_complete():
    words = ("Dropout", "Pool", "Norm", "Conv")
    found = {name for name, kind in vars(nn).items() if inspect.isclass(kind) and any(word in name for word in words)}
    assert {name for name in found if not name.startswith("Lazy")} - set(NO_PLAIN_MODULE) <= set(MODULES)


@pytest.mark.parametrize("dimension", SHAPES)
def test_pools_that_also_return_indices(dimension):
    pool = getattr(nn, f"MaxPool{dimension}d")(2, return_indices=True)
    assert str(ek.trace(pool, torch.ones(SHAPES[dimension]))) == "i P o"


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (torch.Tensor.__iadd__, "iadd"),
        (torch.Tensor.add_, "add"),
        (torch.add, "add"),
        (torch.relu_, "relu"),
        (F.relu, "relu"),
        (torch.Tensor.T.__get__, "T"),
        (torch.Tensor.__getitem__, "getitem"),
        (torch._C._nn.log_sigmoid, "log_sigmoid"),
        (F._max_pool2d, "max_pool2d"),
    ],
)
def test_all_spellings_of_an_op_agree(function, name):
    assert function_name(function) == name


def test_a_callable_without_a_name_has_that_of_its_type():
    class Callable:
        def __call__(self):
            return None

    assert function_name(Callable()) == "Callable"


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class NormWithDropout(nn.BatchNorm1d):
    def __init__(self):
        super().__init__(4)
        self.drop = nn.Dropout()


@pytest.mark.parametrize(
    ("module", "kind", "own"),
    [
        (nn.Linear(2, 2), Kind.WEIGHT, True),
        (nn.Linear(2, 2), Kind.ACTIVATION, False),
        (nn.ReLU(), Kind.ACTIVATION, True),
        (nn.Dropout2d(), Kind.DROPOUT, True),
        (nn.Flatten(), Kind.PASS, True),
        (nn.MaxPool2d(2), Kind.POOL, True),
        (nn.Sequential(nn.ReLU()), Kind.ACTIVATION, False),
        (NormWithDropout(), Kind.NORM, True),
        (NormWithDropout(), Kind.DROPOUT, False),
        (Swish(), Kind.ACTIVATION, False),
        (nn.Embedding(2, 2), Kind.WEIGHT, True),
        (nn.BatchNorm2d(2), Kind.WEIGHT, False),
    ],
    ids=str,
)
def test_whose_work_a_call_is(module, kind, own):
    assert is_own_call(module, kind) is own
