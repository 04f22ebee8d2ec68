"""trace: what the graph of a model shows, whatever its mode, its dtype and its way of writing a call."""

from __future__ import annotations

import inspect
import os
import re
import textwrap
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from snapshots import Snapshot
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from zoo import BY_NAME, ZOO, DeclaredNoise, StochasticDepth

import evenkeel as ek
from evenkeel.graph.tracing import record

THIS_FILE = os.path.basename(__file__)
every_entry = pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)


def marked_lines(code: Any) -> dict[str, str]:
    """`where` of every line of this code that ends in a comment `# at NAME`, by that name."""
    lines, first = inspect.getsourcelines(code)
    marks = ((re.search(r"# at (\S+)$", line.rstrip()), number) for number, line in enumerate(lines, first))
    return {mark[1]: f"{THIS_FILE}:{number}" for mark, number in marks if mark}


def model_of(forward: Callable[..., Any], **attributes: Any) -> nn.Module:
    """A module with these attributes whose forward is `forward(module, *inputs)`."""
    module = type("Model", (nn.Module,), {"forward": forward})()
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def linear() -> nn.Linear:
    return nn.Linear(4, 4)


def is_connected(graph: ek.LayerGraph) -> bool:
    """Whether what the model returns comes from every layer and from what it was given."""
    output = graph.layers[-1]
    return set(graph.upstream(output)) == set(graph.layers[:-1]) and bool(graph.of(ek.Kind.INPUT))


X = torch.ones(2, 4)


# Pictures


@every_entry
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_picture(entry, training):
    assert str(ek.trace(entry.build().train(training), entry.example())) == entry.picture


@every_entry
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_picture_in_other_dtypes(entry, dtype):
    assert str(ek.trace(entry.build().to(dtype), entry.example())) == entry.picture


@every_entry
def test_rates_are_those_of_training_in_either_mode(entry):
    def rates(training):
        graph = ek.trace(entry.build().train(training), entry.example())
        return [(layer.name, layer.p) for layer in graph]

    assert rates(True) == rates(False)


@every_entry
def test_restores_the_model_and_its_outputs(entry):
    model, example = entry.build(), entry.example()
    before = Snapshot(model)
    ek.trace(model, example)
    assert before.changes() == []


# a reentrant checkpoint warns wherever no gradient is asked for, in any evaluation
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@every_entry
def test_is_given_back_working(entry):
    """Nothing fake is left in the model: it computes the same bits as before."""
    model, example = entry.build().eval(), entry.example()

    def outputs():
        given = example if isinstance(example, (tuple, dict)) else (example,)
        with torch.no_grad():
            got = model(**given) if isinstance(given, dict) else model(*(g.clone() for g in given))
        return torch.cat([t.flatten() for t in _leaves(got)])

    expected = outputs()
    ek.trace(model, example)
    assert torch.equal(outputs(), expected)


def _leaves(value):
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [leaf for item in items for leaf in _leaves(item)]


FORMS = {
    "dropout": (nn.Dropout(0.3), lambda m, x: F.dropout(x, 0.3, m.training), (2, 4)),
    "dropout1d": (nn.Dropout1d(0.3), lambda m, x: F.dropout1d(x, 0.3, m.training), (2, 4, 3)),
    "dropout2d": (nn.Dropout2d(0.3), lambda m, x: F.dropout2d(x, 0.3, m.training), (2, 4, 3, 3)),
    "dropout3d": (nn.Dropout3d(0.3), lambda m, x: F.dropout3d(x, 0.3, m.training), (2, 4, 3, 3, 3)),
    "alpha": (nn.AlphaDropout(0.3), lambda m, x: F.alpha_dropout(x, 0.3, m.training), (2, 4)),
    "feature_alpha": (
        nn.FeatureAlphaDropout(0.3),
        lambda m, x: F.feature_alpha_dropout(x, 0.3, m.training),
        (2, 4, 3),
    ),
    "relu": (nn.ReLU(), lambda m, x: F.relu(x), (2, 4)),
    "gelu": (nn.GELU(), lambda m, x: F.gelu(x), (2, 4)),
    "softmax": (nn.Softmax(1), lambda m, x: x.softmax(1), (2, 4)),
    "max_pool": (nn.MaxPool2d(2), lambda m, x: F.max_pool2d(x, 2), (2, 4, 4, 4)),
    "average_pool": (nn.AdaptiveAvgPool2d(1), lambda m, x: F.adaptive_avg_pool2d(x, 1), (2, 4, 4, 4)),
    "flatten": (nn.Flatten(), lambda m, x: x.flatten(1), (2, 4, 4)),
    "linear": (nn.Linear(4, 4), lambda m, x: F.linear(x, torch.eye(4)), (2, 4)),
    "conv": (nn.Conv2d(4, 4, 1), lambda m, x: F.conv2d(x, torch.ones(4, 4, 1, 1)), (2, 4, 3, 3)),
    "batch_norm": (
        nn.BatchNorm1d(4),
        lambda m, x: F.batch_norm(x, torch.zeros(4), torch.ones(4), training=m.training),
        (2, 4),
    ),
    "layer_norm": (nn.LayerNorm(4), lambda m, x: F.layer_norm(x, (4,)), (2, 4)),
    "instance_norm": (nn.InstanceNorm1d(4), lambda m, x: F.instance_norm(x), (2, 4, 3)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_functional_form_looks_like_the_module(form, training):
    module, function, shape = FORMS[form]
    as_module = ek.trace(nn.Sequential(module).train(training), torch.ones(shape))
    as_function = ek.trace(model_of(function).train(training), torch.ones(shape))
    assert str(as_function) == str(as_module)
    assert as_function.layers[1].p == as_module.layers[1].p
    assert as_module.layers[1].module is module
    assert as_function.layers[1].module is None


SPELLINGS_OF_A_JOIN = {
    "a + b": lambda m, a, b: a + b,
    "a += b": lambda m, a, b: a.__iadd__(b),
    "torch.add": lambda m, a, b: torch.add(a, b),
    "a.add_": lambda m, a, b: a.add_(b),
    "a.add": lambda m, a, b: a.add(b, alpha=2),
    "out=": lambda m, a, b: torch.add(a, b, out=torch.empty(2, 4)),
    "operator": lambda m, a, b: sum([b], start=a),
}


@pytest.mark.parametrize("spelling", SPELLINGS_OF_A_JOIN)
def test_every_spelling_of_a_join(spelling):
    graph = ek.trace(model_of(SPELLINGS_OF_A_JOIN[spelling]), (X, X))
    assert str(graph) == "i i + o"
    assert graph.layers[2].inputs == graph.layers[:2]


NO_LAYER_OF_THEIR_OWN = {
    "shape": lambda m, x: m.fc(x).view(x.shape[0], x.size(1)),
    "positions": lambda m, x: m.fc(x) + torch.arange(4),
    "zeros_like": lambda m, x: m.fc(x) + torch.zeros_like(x),
    "buffer": lambda m, x: m.fc(x) * m.fc.bias,
    "argmax": lambda m, x: m.fc(x)[torch.argmax(x, 0) * 0],
}


@pytest.mark.parametrize("case", NO_LAYER_OF_THEIR_OWN)
def test_constants_make_no_branch(case):
    graph = ek.trace(model_of(NO_LAYER_OF_THEIR_OWN[case], fc=linear()), X)
    assert str(graph) == "i W . o"


# Names, paths, modules


@every_entry
def test_layers_are_consistent(entry):
    model = entry.build()
    graph = ek.trace(model, entry.example())
    modules = dict(model.named_modules())
    names = [layer.name for layer in graph]
    assert len(set(names)) == len(names)
    assert all(names)
    assert [graph[name] for name in names] == list(graph)
    position = {layer: i for i, layer in enumerate(graph)}
    for layer in graph:
        assert layer.path in modules
        assert layer.module is None or layer.module is modules[layer.path]
        assert all(position[source] < position[layer] for source in layer.inputs)
        assert all(layer in source.users for source in layer.inputs)
        assert all(layer in user.inputs for user in layer.users)
        assert len(set(layer.users)) == len(layer.users)
        assert (layer.p is not None) == (layer.kind is ek.Kind.DROPOUT)
        assert layer.kind not in (ek.Kind.INPUT, ek.Kind.OUTPUT) or layer.module is None
    assert len(graph.of(ek.Kind.OUTPUT)) == 1
    assert str(graph).endswith(" o")


@every_entry
def test_every_layer_reaches_the_output(entry):
    assert is_connected(ek.trace(entry.build(), entry.example()))


def test_names_are_paths_and_later_calls_are_numbered():
    graph = ek.trace(BY_NAME["CalledTwice"].build(), BY_NAME["CalledTwice"].example())
    assert [layer.name for layer in graph] == ["input", "fc", "act", "drop", "fc#2", "act#2", "drop#2", "output"]
    assert graph["fc"].module is graph["fc#2"].module
    assert graph["fc"] != graph["fc#2"]
    assert graph["drop#2"].path == "drop"


def test_paths_of_nested_modules_and_of_functions_in_containers():
    entry = BY_NAME["pre_activation_net"]
    graph = ek.trace(entry.build(), entry.example())
    names = "conv blocks.0.bn1 blocks.0.relu blocks.0.conv1 blocks.0.bn2 blocks.0.relu#2 blocks.0.drop blocks.0.conv2"
    later = "blocks.0.add bn relu adaptive_avg_pool2d flatten drop fc"
    assert [layer.name for layer in graph] == ["input", *names.split(), *later.split(), "output"]
    assert graph["blocks.0.add"].path == "blocks.0"
    assert graph["blocks.0.add"].module is None
    assert graph["relu"].path == ""
    assert graph["relu"].module is None


def test_a_function_and_a_module_of_one_name_stay_two_layers():
    model = model_of(lambda m, x: m.add(x) + x, add=linear())
    assert [layer.name for layer in ek.trace(model, X)] == ["input", "add", "add#2", "output"]


def test_a_model_that_is_one_module_has_a_name():
    for model in (linear(), nn.Dropout(0.5), DeclaredNoise(0.5)):
        graph = ek.trace(model, X)
        assert graph.layers[1].module is model
        assert graph.layers[1].path == ""
        assert graph.layers[1].name != ""


def test_one_tensor_given_twice_is_two_inputs():
    model = model_of(lambda m, a, b: m.fc(a) + b, fc=linear())
    graph = ek.trace(model, (X, X))
    assert str(graph) == "i i W + o"
    assert graph["fc"].inputs == (graph["input"],)
    assert graph["add"].inputs == (graph["fc"], graph["input#2"])


def test_nested_inputs_numbers_and_none():
    model = model_of(lambda m, pair, scale, mask: m.fc(pair[0]["x"]) * scale + pair[1], fc=linear())
    assert str(ek.trace(model, (({"x": X}, X), 2.0, None))) == "i i W . + o"


def test_a_signal_that_lends_its_shape_only_is_not_read():
    for forward in (lambda m, x: m.fc(x).view_as(x.relu()), lambda m, x: m.fc(x).expand_as(x.relu())):
        graph = ek.trace(model_of(forward, fc=linear()), X)
        assert str(graph) == "i W A . o"
        assert graph.layers[3].inputs == (graph["fc"],)


def test_shared_parameters_stay_shared():
    model = nn.Sequential(linear(), nn.ReLU(), linear())
    model[2].weight = model[0].weight
    before = Snapshot(model)
    graph = ek.trace(model, X)
    assert graph["0"].args[1] is graph["2"].args[1] is model[0].weight
    assert before.changes() == []


# Where


class Places(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.body = linear(), nn.Sequential(linear(), nn.Sequential(nn.ReLU()))

    def forward(self, x):
        x = self.fc(x)  # at fc
        x = F.dropout(x, 0.5, self.training)  # at dropout
        x = self.body(x)  # at body
        x += self.fc(x)  # at join
        x = helper(x)
        x = checkpoint(lambda h: F.gelu(self.fc(h)), x, use_reentrant=False)  # at checkpoint
        x = nn.ReLU()(x)  # at unregistered
        x = nn.Sequential(nn.Tanh(), nn.Sequential(nn.Sigmoid()))(x)  # at unregistered-nested
        return x.T  # at property


def helper(x):
    return x.sigmoid()  # at helper


def test_where_is_the_line_that_makes_the_call():
    graph = ek.trace(Places(), X)
    line = marked_lines(Places) | marked_lines(helper)
    where = {layer.name: layer.where for layer in graph}
    expected = {
        "input": None,
        "output": None,
        "fc": line["fc"],
        "dropout": line["dropout"],
        "body.0": line["body"],
        "body.1.0": line["body"],
        "fc#2": line["join"],
        "add": line["join"],
        "sigmoid": line["helper"],
        "fc#3": line["checkpoint"],
        "gelu": line["checkpoint"],
        "relu": line["unregistered"],
        "tanh": line["unregistered-nested"],
        "sigmoid#2": line["unregistered-nested"],
        "T": line["property"],
    }
    assert {name: place for name, place in where.items() if name in expected} == expected


def test_where_names_the_file_in_full_too():
    layer = ek.trace(Places(), X)["dropout"]
    assert layer.file == os.path.abspath(__file__)
    assert f"{THIS_FILE}:{layer.line}" == layer.where == marked_lines(Places)["dropout"]


def test_a_bare_sequential_has_no_line_of_its_own():
    graph = ek.trace(nn.Sequential(linear(), nn.Sequential(nn.Dropout())), X)
    assert [layer.where for layer in graph] == [None] * 4


def test_where_in_a_package_whose_name_starts_like_torch():
    """Such as torchvision, right beside torch."""
    source = """\
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(4, 4)

            def forward(self, x):
                return self.fc(x)
        """
    for package in (torch, ek):
        file = os.path.dirname(package.__file__) + "vision/net.py"
        names: dict[str, Any] = {"__name__": "net"}
        exec(compile(textwrap.dedent(source), file, "exec"), names)
        assert ek.trace(names["Net"](), X)["fc"].where == "net.py:9"


# Drop probabilities


def test_rates_of_the_zoo():
    def rates(name):
        return [layer.p for layer in ek.trace(BY_NAME[name].build(), BY_NAME[name].example()).of(ek.Kind.DROPOUT)]

    assert rates("dropout_modules") == rates("FunctionalDropouts") == [0.3, 0.2, 0.1, 0.4, 0.6, 0.7]
    assert rates("TorchDropouts") == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert rates("declared_dropout") == [0.3, 0.1]
    assert rates("norm_act") == [0.25]
    assert rates("DenseNetBlock") == [0.2, 0.2]


DEFAULT_RATES = {
    "F.dropout": (lambda m, x: F.dropout(x), 0.5),
    "F.alpha_dropout": (lambda m, x: F.alpha_dropout(x, training=True), 0.5),
    "off by default": (lambda m, x: F.alpha_dropout(x, 0.3), 0.0),
    "switched off": (lambda m, x: F.dropout(x, 0.3, False), 0.0),
    "switched off by name": (lambda m, x: F.dropout(x, training=False, p=0.3), 0.0),
    "never switched off": (lambda m, x: F.dropout(x, 0.3), 0.3),
    "none": (lambda m, x: F.dropout(x, 0, m.training), 0.0),
    "all": (lambda m, x: F.dropout(x, 1, m.training), 1.0),
}


@pytest.mark.parametrize("case", DEFAULT_RATES)
def test_rate_of_a_call(case):
    forward, p = DEFAULT_RATES[case]
    for training in (True, False):
        graph = ek.trace(model_of(forward).train(training), X)
        assert str(graph) == "i D o"
        assert graph.layers[1].p == p


@pytest.mark.parametrize(
    "mask",
    [
        lambda x, keep: x.new_empty(2, 1).bernoulli_(keep),
        lambda x, keep: x.new_empty(2, 1).bernoulli_(keep).div_(keep),
        lambda x, keep: torch.zeros_like(x).bernoulli_(keep) / keep,
        lambda x, keep: torch.empty(2, 4).bernoulli_(p=keep),
        lambda x, keep: torch.bernoulli(torch.ones(2, 4), keep),
    ],
)
@pytest.mark.parametrize("product", [torch.mul, lambda x, m: m * x, lambda x, m: x.mul_(m)])
def test_a_product_with_a_random_mask_is_dropout(mask, product):
    model = model_of(lambda m, x: product(m.fc(x), mask(x, 0.75)) + x, fc=linear())
    graph = ek.trace(model, X)
    assert str(graph) == "i W D + o"
    assert graph.layers[2].p == pytest.approx(0.25)
    assert is_connected(graph)


def test_stochastic_depth_has_its_rate_in_either_mode():
    for training in (True, False):
        graph = ek.trace(StochasticDepth(0.2).train(training), torch.ones(4, 6))
        assert [layer.p for layer in graph.of(ek.Kind.DROPOUT)] == pytest.approx([0.2])


def test_dropout_of_a_constant_mask_is_dropout_of_what_it_multiplies():
    """One mask for all time steps, as recurrent networks use it."""
    model = model_of(lambda m, x: m.fc(x) * F.dropout(torch.ones_like(x), 0.3, m.training), fc=linear())
    graph = ek.trace(model, X)
    assert str(graph) == "i W D o"
    assert graph.layers[2].p == pytest.approx(0.3)


ON_PARAMETERS = {
    "weight": lambda m, x: F.linear(x, F.dropout(m.fc.weight, 0.3, m.training)),
    "weight, by a mask": lambda m, x: F.linear(x, m.fc.weight * (torch.rand_like(m.fc.weight) < 0.7) / 0.7),
    "weight, transposed": lambda m, x: x @ m.drop(m.fc.weight.T),
    "weight on the left": lambda m, x: (m.drop(m.fc.weight) @ x.T).T,
    "gate": lambda m, x: x * m.drop(torch.sigmoid(m.fc.bias)),
    "position embedding": lambda m, x: x + m.drop(m.fc.weight[:2]),
}


@pytest.mark.parametrize("case", ON_PARAMETERS)
def test_dropout_on_a_parameter_is_a_layer_that_feeds_what_reads_it(case):
    model = model_of(lambda m, x: m.out(ON_PARAMETERS[case](m, x)), fc=linear(), drop=nn.Dropout(0.3), out=linear())
    graph = ek.trace(model, X)
    (dropout,) = graph.of(ek.Kind.DROPOUT)
    assert dropout.p == pytest.approx(0.3)
    assert dropout in graph.upstream(graph["out"])
    assert ek.Kind.OPAQUE not in {layer.kind for layer in graph}
    assert graph["out"].inputs[0] not in (dropout, graph.layers[0])


def test_dropout_of_weights_by_a_parametrization_is_seen():
    model = nn.Sequential(linear(), nn.BatchNorm1d(4))
    torch.nn.utils.parametrizations.weight_norm(model[0])
    torch.nn.utils.parametrize.register_parametrization(model[0], "weight", nn.Dropout(0.4))
    graph = ek.trace(model, X)
    assert [layer.p for layer in graph.of(ek.Kind.DROPOUT)] == [0.4]
    assert str(graph).endswith("W N o") and "?" not in str(graph)


class MaybeDrop(nn.Module):
    """A container whose forward may look at the data, with every kind of dropout under it."""

    def __init__(self, looks):
        super().__init__()
        self.looks, self.drop, self.noise = looks, nn.Dropout(0.4), DeclaredNoise(0.3)
        self.inner = model_of(lambda m, x: F.dropout(x, 0.2, m.training))

    def forward(self, x):
        if self.looks and not torch.isfinite(x).all():
            raise ValueError("not finite")
        return F.dropout(self.inner(self.noise(self.drop(x))), 0.1, self.training)


@pytest.mark.parametrize("looks", [False, True], ids=["fake pass", "real pass"])
def test_frozen_dropout_drops_nothing(looks):
    """Eval mode inside a model in train mode is meant so; of a model in eval mode every dropout counts."""

    def rates(model):
        return [layer.p for layer in ek.trace(model, X).of(ek.Kind.DROPOUT)]

    model = MaybeDrop(looks)
    assert rates(model) == [0.4, 0.3, 0.2, 0.1]
    assert rates(model.eval()) == [0.4, 0.3, 0.2, 0.1]
    model.train()
    for module in (model.drop, model.noise, model.inner):
        module.eval()
    assert rates(model) == [0, 0, 0, 0.1]


@pytest.mark.parametrize("looks", [False, True], ids=["fake pass", "real pass"])
def test_what_drops_in_eval_mode_too_is_not_frozen(looks):
    def always(m, x):
        if looks and not torch.isfinite(x).all():
            raise ValueError("not finite")
        return F.dropout(x, 0.2) * x.new_empty(2, 1).bernoulli_(0.7)

    model = nn.Sequential(linear(), model_of(always))
    model[1].eval()
    assert [layer.p for layer in ek.trace(model, X).of(ek.Kind.DROPOUT)] == pytest.approx([0.2, 0.3])


def test_a_declared_kind_inside_another_is_not_seen():
    class Outer(DeclaredNoise):
        def __init__(self):
            super().__init__(0.4)
            self.inner = DeclaredNoise(0.1)

        def forward(self, x):
            return super().forward(self.inner(x)).relu()

    graph = ek.trace(nn.Sequential(Outer(), nn.ReLU()), X)
    assert str(graph) == "i D A o"
    assert graph["0"].p == 0.4


def test_declared_kind_is_one_call_and_is_not_entered():
    class Mixed(nn.Module):
        evenkeel_kind = ek.Kind.DROPOUT

        def __init__(self):
            super().__init__()
            self.p, self.fc = 0.35, linear()

        def forward(self, x):
            return self.fc(x).relu() * torch.rand_like(x)

    model = nn.Sequential(linear(), Mixed())
    graph = ek.trace(model, X)
    assert str(graph) == "i W D o"
    assert graph["1"].module is model[1]
    assert graph["1"].p == 0.35
    assert graph["1"].shape == (2, 4)


# Nothing silent


class ThroughNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(np.tanh(x.detach().numpy()))


UNKNOWN = {
    "torch.fft": (lambda m, x: m.fc(torch.fft.fft(x).real), "i ? . W o"),
    "attention": (lambda m, x: m.fc(F.scaled_dot_product_attention(x, x, x)), "i ? W o"),
    "numpy": (lambda m, x: m.fc(torch.from_numpy(np.tanh(m.fc(x).detach().numpy()))), None),
    "numpy in a function": (lambda m, x: m.fc(ThroughNumpy.apply(m.fc(x))), None),
    "numpy in a module": (lambda m, x: m.fc(nn.Sequential(m.numpy)(m.fc(x))), None),
    "list": (lambda m, x: m.fc(torch.tensor(m.fc(x).tolist())), None),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_known_is_opaque_and_stays_connected(case):
    forward, picture = UNKNOWN[case]
    numpy = model_of(lambda m, x: torch.from_numpy(np.tanh(x.numpy())))
    graph = ek.trace(model_of(forward, fc=linear(), numpy=numpy), X)
    assert graph.of(ek.Kind.OPAQUE) != ()
    assert is_connected(graph)
    assert picture is None or str(graph) == picture
    assert str(graph).endswith("W o")


def test_what_a_module_returns_from_out_of_sight_is_its_own_layer():
    model = nn.Sequential(linear(), model_of(lambda m, x: torch.from_numpy(np.tanh(x.numpy()))), linear())
    graph = ek.trace(model, X)
    assert str(graph) == "i W ? W o"
    assert graph.layers[2].path == "1"


NOISE = {
    "added": (lambda m, x: x + torch.randn_like(x), "i ~ o"),
    "added, scaled": (lambda m, x: x - 0.1 * torch.randn(x.shape), "i ~ o"),
    "added in place": (lambda m, x: x.clone().add_(torch.empty_like(x).normal_(0, 0.2)), "i . ~ o"),
    "added, scaled by a parameter": (lambda m, x: x + m.fc.bias * torch.randn(2, 1), "i ~ o"),
    "addcmul": (lambda m, x: torch.addcmul(x, x.exp(), torch.randn_like(x)), "i A ~ o"),
    "a sample": (lambda m, x: x + (0.5 * x).exp() * torch.randn_like(x), "i . A ~ + o"),
    "rsample": (lambda m, x: torch.distributions.Normal(x, x.exp()).rsample(), "i A . ~ + o"),
    "sample": (lambda m, x: torch.distributions.Normal(x, x.exp()).sample(), "i A . . . ~ o"),
    "gumbel": (lambda m, x: F.gumbel_softmax(x), "i ~ o"),
    "states drawn": (lambda m, x: torch.bernoulli(x.sigmoid()), "i A ~ o"),
    "tokens drawn": (lambda m, x: torch.multinomial(x.softmax(1), 1), "i A ~ o"),
    "a token in its place": (lambda m, x: torch.where(torch.rand_like(x) < 0.3, x, m.fc.bias), "i ~ o"),
    "on a weight": (lambda m, x: F.linear(x, m.fc.weight + 0.1 * torch.randn_like(m.fc.weight)), "i ~ W o"),
}


@pytest.mark.parametrize("case", NOISE)
def test_noise_that_is_no_dropout_is_named_as_what_it_is(case):
    forward, picture = NOISE[case]
    graph = ek.trace(model_of(forward, fc=linear()), X)
    assert str(graph) == picture
    assert all(layer.p is None for layer in graph)


FACTORS = {
    "normal": (lambda x: 1 + 0.5 * torch.randn_like(x), 0.2, True),
    "normal, drawn around 1": (lambda x: torch.empty_like(x).normal_(1, 0.5), 0.2, True),
    "normal by a function": (lambda x: torch.normal(1.0, 0.5, x.shape), 0.2, True),
    "uniform": (lambda x: torch.empty_like(x).uniform_(0.5, 1.5), 1 / 13, True),
    "a comparison": (lambda x: (torch.rand_like(x) < 0.8).float() / 0.8, 0.2, True),
    "the opposite": (lambda x: (torch.rand_like(x) > 0.2) / 0.8, 0.2, True),
    "what is left": (lambda x: 1 - (torch.rand_like(x) < 0.2).float(), 0.2, False),
    "not": (lambda x: ~(torch.rand_like(x) < 0.2), 0.2, False),
    "rounded down": (lambda x: torch.floor(0.8 + torch.rand(2, 1)), 0.2, False),
    "of a filled tensor": (lambda x: torch.bernoulli(torch.full_like(x, 0.8)), 0.2, False),
}


@pytest.mark.parametrize("case", FACTORS)
def test_the_rate_of_a_factor_is_read_off_its_law(case):
    factor, p, scaled = FACTORS[case]
    layer = ek.trace(model_of(lambda m, x: x * factor(x)), X).layers[1]
    assert (layer.kind, layer.p, layer.scaled) == (ek.Kind.DROPOUT, pytest.approx(p), scaled)


IN_PLACE_ON_VIEWS = {
    "slice": (lambda x: x[:, :2].relu_(), ek.Kind.ACTIVATION),
    "view": (lambda x: F.relu(x.view(-1), inplace=True), ek.Kind.ACTIVATION),
    "chunk": (lambda x: F.dropout(x.chunk(2, 1)[0], 0.5, True, inplace=True), ek.Kind.DROPOUT),
    "join": (lambda x: x.T.add_(x.T.clone()), ek.Kind.JOIN),
    "indexed": (lambda x: x.__setitem__(0, x[1].tanh()), ek.Kind.ACTIVATION),
}


@pytest.mark.parametrize("case", IN_PLACE_ON_VIEWS)
def test_work_in_place_on_a_view_reaches_the_readers_of_its_base(case):
    change, kind = IN_PLACE_ON_VIEWS[case]

    def forward(m, x):
        x = m.first(x)
        change(x)
        return m.last(x)

    graph = ek.trace(model_of(forward, first=linear(), last=linear()), X)
    assert kind in {layer.kind for layer in graph.upstream(graph["last"])}
    assert is_connected(graph)


def test_work_in_place_on_a_base_reaches_the_readers_of_its_views():
    def forward(m, x):
        x = m.first(x)
        half = x[:, :2]
        F.dropout(x, 0.5, m.training, inplace=True)
        return m.last(half)

    graph = ek.trace(model_of(forward, first=linear(), last=nn.Linear(2, 2)), X)
    assert graph["dropout"] in graph.upstream(graph["last"])


def test_work_in_place_on_one_view_leaves_the_others_alone():
    def gated(m, x):
        value, gate = m.first(x).chunk(2, 1)
        return m.last(value * gate.sigmoid_())

    graph = ek.trace(model_of(gated, first=nn.Linear(4, 8), last=linear()), X)
    assert str(graph) == "i W . A x W o"
    assert [layer.kind.value for layer in graph["mul"].inputs] == [".", "A"]

    def half_dropped(m, x):
        x = m.first(x)
        left, right = x[:, :2], x[:, 2:]
        F.dropout(left, 0.5, m.training, inplace=True)
        return m.norm(right), left

    graph = ek.trace(model_of(half_dropped, first=linear(), norm=nn.BatchNorm1d(2)), X)
    assert graph["dropout"] not in graph.upstream(graph["norm"])


def test_work_in_place_on_one_view_reaches_those_that_overlap():
    def forward(m, x):
        x = m.first(x)
        left, right = x[:, :3], x[:, 1:]
        F.dropout(left, 0.5, m.training, inplace=True)
        return m.last(right)

    graph = ek.trace(model_of(forward, first=linear(), last=nn.Linear(3, 2)), X)
    assert graph["dropout"] in graph.upstream(graph["last"])


def test_work_in_place_on_several_views_reaches_the_readers_of_their_base():
    def forward(m, x):
        x = m.first(x)
        left, right = x.chunk(2, 1)
        F.relu(left, inplace=True)
        F.dropout(right, 0.5, m.training, inplace=True)
        return m.last(x), m.last(x)

    graph = ek.trace(model_of(forward, first=linear(), last=linear()), X)
    for reader in (graph["last"], graph["last#2"]):
        assert {graph["first"], graph["relu"], graph["dropout"]} <= set(graph.upstream(reader))
    assert graph["last"].inputs == graph["last#2"].inputs


def test_work_in_place_by_a_module_on_a_view_is_one_layer_of_that_module():
    def forward(m, x):
        x = m.first(x)
        m.act(x[:, :2])
        return m.last(x)

    model = model_of(forward, first=linear(), act=nn.ReLU(inplace=True), last=linear())
    graph = ek.trace(model, X)
    assert [layer.kind for layer in graph if layer.module is model.act] == [ek.Kind.ACTIVATION]
    assert graph["act"] in graph.upstream(graph["last"])


# Arguments and immutability


def test_arguments_hold_layers_for_signals_and_the_models_own_tensors():
    model = nn.Sequential(linear(), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.3))
    graph = ek.trace(model, X)
    weight, norm, relu, drop = graph.layers[1:5]
    assert weight.function == "linear"
    assert weight.args[0] is graph["input"]
    assert weight.args[1] is model[0].weight
    assert weight.args[2] is model[0].bias
    assert norm.args[0] is weight
    given = {id(a) for a in (*norm.args, *norm.kwargs.values())}
    assert {id(t) for t in (model[1].running_mean, model[1].running_var, model[1].weight, model[1].bias)} <= given
    assert relu.args[0] is norm
    assert drop.args[0] is relu
    assert 0.3 in (*drop.args[1:], *drop.kwargs.values())
    assert graph.layers[-1].inputs == (drop,)


def test_arguments_in_lists_and_by_name():
    model = model_of(lambda m, x: torch.cat([m.fc(x), x, torch.ones(2, 1)], dim=1), fc=linear())
    concat = ek.trace(model, X).layers[2]
    assert list(concat.args[0]) == [*concat.inputs, torch.Size([2, 1])]
    assert concat.kwargs == {"dim": 1}


def test_no_argument_keeps_data():
    for entry in ZOO:
        model = entry.build()
        own = {id(t) for t in (*model.parameters(), *model.buffers())}
        for layer in ek.trace(model, entry.example()):
            assert all(id(t) in own for t in _leaves([layer.args, layer.kwargs]))


def test_layers_cannot_be_changed():
    graph = ek.trace(linear(), X)
    for name in ("name", "kind", "p", "users", "inputs", "where"):
        with pytest.raises((FrozenInstanceError, AttributeError)):
            setattr(graph.layers[1], name, None)


def test_graphs_cannot_be_changed():
    graph = ek.trace(linear(), X)
    with pytest.raises(TypeError):
        graph.layers[0] = graph.layers[1]
    with pytest.raises(AttributeError):
        graph.layers = ()


# Errors


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 5)

    def forward(self, x):
        x = x + 1
        return self.fc(x)  # at mismatch


def test_error_names_layer_place_and_reason():
    model = nn.Sequential(linear(), nn.Sequential(nn.ReLU(), Broken()))
    before = Snapshot(model)
    with pytest.raises(ek.TraceError) as raised:
        ek.trace(model, X)
    message = str(raised.value)
    assert "'1.1.fc'" in message
    assert marked_lines(Broken)["mismatch"] in message
    assert "2x4" in message  # torch's own words on the shapes
    assert "example" in message
    assert isinstance(raised.value, ek.EvenkeelError)
    assert raised.value.__cause__ is not None
    assert before.changes() == []


def test_error_in_a_bare_sequential_names_the_layer():
    with pytest.raises(ek.TraceError, match="'1'"):
        ek.trace(nn.Sequential(linear(), nn.Linear(5, 5)), X)


def test_error_raised_by_the_model_is_quoted():
    def forward(m, x):
        raise LookupError("no such token: 17")  # at raise

    with pytest.raises(ek.TraceError, match=r"LookupError.*no such token: 17") as raised:
        ek.trace(model_of(forward), X)
    assert marked_lines(forward)["raise"] in str(raised.value)


def test_error_for_an_example_that_does_not_fit_the_signature():
    with pytest.raises(ek.TraceError, match="right"):
        ek.trace(BY_NAME["Dicts"].build(), {"left": torch.ones(4, 6)})


def test_a_model_that_runs_in_eval_mode_only_is_traced_there():
    seen = []

    def forward(m, x):
        if m.training:
            raise RuntimeError("for inference only")
        seen.append(type(x).__name__)
        return m.drop(m.fc(x))

    graph = ek.trace(model_of(forward, fc=linear(), drop=nn.Dropout(0.3)), X)
    assert seen == ["FakeTensor"]  # on shapes alone, still
    assert str(graph) == "i W D o"
    assert graph["drop"].p == 0.3


def test_an_error_that_the_model_handles_itself_is_no_error():
    def forward(m, x):
        try:
            x = m.broken(x)
        except RuntimeError:
            x = m.fc(x)
        return m.fc(x)

    model = model_of(forward, broken=nn.Sequential(nn.Linear(5, 5)), fc=linear())
    graph = ek.trace(model, X)
    assert str(graph) == "i W W o"
    assert [layer.path for layer in graph][1:3] == ["fc", "fc"]
    assert [layer.where for layer in graph][1] is not None


def test_calls_after_an_error_handled_belong_to_the_module_that_handled_it():
    def forward(m, x):
        try:
            return m.broken(x)
        except RuntimeError:
            return F.relu(x)  # at rescue

    model = nn.Sequential(model_of(forward, broken=nn.Sequential(nn.ReLU(), nn.Linear(5, 5))), linear())
    graph = ek.trace(model, X)
    assert str(graph) == "i A A W o"  # what the broken one did before it broke is seen, and read by nobody
    assert graph.layers[2].path == "0"
    assert graph.layers[2].module is None
    assert graph.layers[2].where == marked_lines(forward)["rescue"]
    assert graph["1"].inputs == (graph.layers[2],)


# The example


def test_values_of_the_example_do_not_matter_and_stay():
    model = model_of(lambda m, x: x.mul_(2).add_(m.fc(x)), fc=linear())
    for value in (0.0, 7.0, float("nan")):
        example = torch.full((2, 4), value)
        kept = example.clone()
        assert str(ek.trace(model, example)) == "i . W + o"
        assert torch.equal(example.nan_to_num(), kept.nan_to_num())


def test_a_batch_of_one_is_enough():
    """In train mode a batch norm would refuse a single value per channel, and in eval mode some noise is not seen."""
    model = nn.Sequential(BY_NAME["mlp"].build(), nn.Linear(8, 6), StochasticDepth())
    assert str(ek.trace(model, torch.ones(1, 6))) == "i W A D W N W W A D + o"


def test_examples_that_require_gradients_stay_as_they_are():
    example = torch.ones(2, 4, requires_grad=True)
    graph = ek.trace(nn.Sequential(linear(), nn.ReLU(inplace=True)), example)
    assert str(graph) == "i W A o"
    assert example.grad is None
    assert example.requires_grad


class Outputs(OrderedDict):
    """Its entries are set one by one only, as in the outputs of the transformers library."""

    def update(self, *args, **kwargs):
        raise TypeError("set the entries one by one")


def test_outputs_in_a_mapping_of_its_own_kind():
    def forward(m, x):
        outputs = Outputs()
        outputs["logits"], outputs["hidden"] = m.head(x), x
        return outputs

    graph = ek.trace(model_of(forward, head=model_of(lambda m, x: m.fc(x), fc=linear())), X)
    assert str(graph) == "i W o"
    assert graph["output"].inputs == (graph["head.fc"], graph["input"])


@dataclass
class Result:
    logits: torch.Tensor
    hidden: torch.Tensor | None = field(default=None, init=False)


def test_outputs_in_a_dataclass_with_a_field_set_later():
    def forward(m, x):
        result = Result(m.fc(x))
        result.hidden = m.fc(x)
        return result

    graph = ek.trace(model_of(forward, fc=linear()), X)
    assert graph["output"].inputs == (graph["fc"], graph["fc#2"])


def test_record_leaves_the_call_to_the_caller():
    model = nn.Sequential(linear(), nn.Dropout(0.3))
    graph = record(model, lambda inputs: F.relu(model(inputs["x"])), {"x": X})
    assert str(graph) == "i W D A o"
    assert [layer.where for layer in graph] == [None] * 5


# Parts that show no calls


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("verb", [ek.trace, lambda model, x: ek.variance_shift(model, [x])], ids=["trace", "shift"])
def test_scripted_parts_are_opaque_and_keep_their_weights(verb):
    model = nn.Sequential(torch.jit.script(nn.Linear(4, 4)), nn.BatchNorm1d(4))
    before = {name: (type(t), t.clone()) for name, t in model.state_dict().items()}
    verb(model, X)
    for name, tensor in model.state_dict().items():
        assert type(tensor) is before[name][0]
        assert torch.equal(tensor, before[name][1])
    assert str(ek.trace(model, X)) == "i ? N o"


@torch.jit.script
def scripted_function(x: torch.Tensor, shift: float) -> torch.Tensor:
    return torch.relu(x) + shift


def test_scripted_functions_are_opaque_the_first_time_and_later():
    model = model_of(
        lambda m, x: m.bn(scripted_function(m.drop(m.fc(x)), 1.0)), fc=linear(), drop=nn.Dropout(), bn=nn.BatchNorm1d(4)
    )
    called = torch.jit.ScriptFunction.__call__
    for _ in range(2):
        graph = ek.trace(model, X)
        assert str(graph) == "i W D ? N o"
        assert graph.of(ek.Kind.OPAQUE)[0].function == "scripted_function"
    assert torch.jit.ScriptFunction.__call__ is called
    assert [f.code for f in ek.lint(model, X, guideline="hendrycks2016")] == ["EK104"]


def test_scripted_functions_of_constants_carry_no_signal():
    model = model_of(lambda m, x: m.fc(x) + scripted_function(torch.ones(4), 1.0), fc=linear())
    assert str(ek.trace(model, X)) == "i W . o"


class Holder:
    def __init__(self, x):
        self.x = x


def test_inputs_and_outputs_in_objects_of_ones_own():
    model = model_of(lambda m, held: Holder(m.fc(held.x)), fc=linear())
    graph = ek.trace(model, Holder(X))
    assert str(graph) == "i W o"
    assert is_connected(graph)


def test_inputs_that_the_caller_makes_of_something_else():
    model = nn.Sequential(linear(), nn.Dropout(0.5), nn.BatchNorm1d(4))
    graph = record(model, lambda numbers: model(torch.tensor(numbers)), [[1.0] * 4] * 3)
    assert str(graph) == "i W D N o"


def test_dropout_inside_attention_and_recurrent_layers_is_known():
    lstm = ek.trace(nn.LSTM(4, 4, num_layers=2, dropout=0.25), torch.ones(3, 2, 4))
    product = ek.trace(
        model_of(lambda m, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)), torch.ones(1, 2, 4)
    )
    for graph, p in ((lstm, 0.25), (product, 0.5)):
        assert [layer.p for layer in graph.of(ek.Kind.OPAQUE)] == [p]
    model = nn.Sequential(
        linear(), model_of(lambda m, x: m.rnn(x)[0], rnn=nn.LSTM(4, 4, 2, dropout=0.25)), nn.BatchNorm1d(4)
    )
    (row,) = ek.variance_shift(model, [X])
    assert [layer.p for layer in row.dropouts] == [0.25]


def test_multi_head_attention_is_opened():
    """To torch it is one function; its weight layers and its dropout are in the graph even so."""
    attention = nn.MultiheadAttention(4, 2, dropout=0.125)
    graph = ek.trace(model_of(lambda m, x: m.attention(x, x, x)[0], attention=attention), torch.ones(3, 2, 4))
    held = [next(c for c in layer.constants if isinstance(c, nn.Parameter)) for layer in graph.of(ek.Kind.WEIGHT)]
    assert held[0] is attention.in_proj_weight and held[-1] is attention.out_proj.weight
    assert [layer.p for layer in graph.of(ek.Kind.DROPOUT)] == [0.125]
    fused = ek.trace(nn.TransformerEncoderLayer(4, 2, dropout=0.25), torch.ones(3, 2, 4))
    assert [layer.p for layer in fused.of(ek.Kind.OPAQUE)] == [0.25]


def test_sums_over_neighbours_are_pools():
    """As graph nets make them: the indices are inputs too, but carry no values."""

    def aggregate(m, x, index):
        return m.norm(torch.zeros(3, 4).scatter_add(0, index.unsqueeze(1).expand_as(x), m.drop(m.fc(x))))

    model = model_of(aggregate, fc=linear(), drop=nn.Dropout(0.5), norm=nn.BatchNorm1d(4))
    graph = ek.trace(model, (torch.ones(5, 4), torch.tensor([0, 1, 2, 1, 0])))
    assert next(layer.kind for layer in graph.upstream(graph["norm"])) is ek.Kind.POOL
    assert str(ek.trace(model_of(lambda m, a, b: torch.max(a, b)), (X, X))) == "i i P o"


def test_products_of_signals_are_gates_and_extremes_of_them_pools():
    graph = ek.trace(model_of(lambda m, x: m.fc(torch.maximum(x, x @ x.T @ x)), fc=linear()), X)
    assert str(graph) == "i . x x P W o"
    single = ek.trace(model_of(lambda m, x: torch.maximum(x, torch.zeros(()))), X)
    assert str(single) == "i P o"


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda m, x: torch.addcmul(m.fc.bias, m.fc.weight[0], x), ek.Kind.PASS),
        (lambda m, x: torch.addcmul(m.fc.bias, x, m.fc(x)), ek.Kind.OPAQUE),
        (lambda m, x: x.masked_fill(torch.eye(4, dtype=torch.bool)[:2], 0.0), ek.Kind.PASS),
        (lambda m, x: torch.where(x > 0, x, 0.0), ek.Kind.OPAQUE),
        (lambda m, x: x.abs().pow(2), ek.Kind.ACTIVATION),
        (lambda m, x: x.abs().pow(m.fc(x)), ek.Kind.OPAQUE),
    ],
)
def test_constants_scale_and_blank_out_and_signals_do_what_is_not_understood(function, kind):
    graph = ek.trace(model_of(function, fc=linear()), X)
    assert graph.layers[-2].kind is kind
