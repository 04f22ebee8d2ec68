"""lint: every rule, whatever the way of calling; what is asked for and what is kept silent; and nothing changes."""

from __future__ import annotations

import json
import linecache
import re
import warnings

import pytest
import torch
from hypothesis import given, settings
from made import Made
from residuals import specs
from snapshots import Snapshot
from torch import fx, nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.layers.uout import Uout
from evenkeel.linting.context import Context
from evenkeel.linting.linter import examine, wanted
from evenkeel.linting.rule import GUIDELINES
from evenkeel.linting.rules import ALL
from evenkeel.linting.settings import Settings

X = torch.zeros(2, 8)


def made(run, **layers):
    return Made(run, p=0.5, **layers)


def linear():
    return nn.Linear(8, 8)


def norm():
    return nn.BatchNorm1d(8)


def found(model, *codes, example=X, guideline=None):
    """Code and path of the findings, without the shifts, which take longest."""
    return [(f.code, f.path) for f in examine(Context(model, example), wanted(guideline, codes, ()))]


# The laws


@pytest.mark.slow
@given(spec=specs)
@settings(max_examples=8)
def test_both_modes_have_the_same_findings(spec):
    model, x = spec.build(), spec.example()
    asked = Settings(ignore=("EK102", "EK103"))  # which take longest
    first, second = ([f.to_dict() for f in examine(Context(model.train(mode), x), asked)] for mode in (True, False))
    assert first == second


@pytest.mark.slow
def test_so_has_every_rules_example_shifts_included():
    for rule in ALL:
        model, example = rule.module.bad(), torch.zeros(rule.module.EXAMPLE)
        modes = (model.train(mode) for mode in (True, False))
        first, second = ([f.to_dict() for f in ek.lint(m, example, select=[rule.code])] for m in modes)
        assert first == second != []


@pytest.mark.slow
@given(spec=specs)
@settings(max_examples=5)
def test_nothing_changes(spec):
    model, x = spec.build(), spec.example()
    before, kept = Snapshot(model), x.clone()
    ek.lint(model, x)
    assert before.changes() == [] and torch.equal(x, kept)


@pytest.mark.parametrize("example", [X, (X,), {"x": X}], ids=["tensor", "tuple", "dict"])
def test_examples_of_every_form(example):
    model = made(lambda m, x: m.b(m.n(F.dropout(m.a(x), 0.5, m.training))), a=linear(), n=norm(), b=linear())
    assert found(model, "EK2", example=example) == [("EK201", "dropout")]


# EK201, for every way of calling


class OwnDropout(nn.Dropout):
    def forward(self, x):
        return F.dropout(x, self.p, self.training)


class MaskedDropout(nn.Dropout):
    def forward(self, x):
        return x * (torch.empty_like(x).bernoulli_(1 - self.p) / (1 - self.p)) if self.training else x


class NormThenDrop(nn.BatchNorm1d):
    def __init__(self):
        super().__init__(8)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(super().forward(x))


class DropThenNorm(NormThenDrop):
    def forward(self, x):
        return nn.BatchNorm1d.forward(self, self.drop(x))


def helper(x, training):
    return F.dropout(x, 0.5, training)


def mask(m, x):
    return x * (torch.empty_like(x).bernoulli_(0.5) / 0.5) if m.training else x


def functional(call):
    return lambda: made(lambda m, x: m.b(m.n(call(m, m.a(x)))), a=linear(), n=norm(), b=linear())


def between(*layers):
    return lambda: nn.Sequential(linear(), *layers, linear())


def hooked():
    model = nn.Sequential(linear(), norm(), linear())
    model[0].register_forward_hook(lambda module, args, output: F.dropout(output, 0.5, module.training))
    return model


def frozen(model):
    model[1].eval()
    return model


CALLS = {
    "in a sequence": (between(nn.Dropout(0.5), norm()), ["1"]),
    "as an attribute": (
        lambda: made(lambda m, x: m.b(m.n(m.d(m.a(x)))), a=linear(), d=nn.Dropout(0.5), n=norm(), b=linear()),
        ["d"],
    ),
    "in place": (between(nn.Dropout(0.5, inplace=True), norm()), ["1"]),
    "F.dropout": (functional(lambda m, x: F.dropout(x, 0.5, m.training)), ["dropout"]),
    "F.dropout by keyword": (functional(lambda m, x: F.dropout(input=x, training=m.training, p=m.p)), ["dropout"]),
    "torch.dropout": (functional(lambda m, x: torch.dropout(x, 0.5, m.training)), ["dropout"]),
    "in a helper": (functional(lambda m, x: helper(x, m.training)), ["dropout"]),
    "by a mask": (functional(mask), ["mul"]),
    "of channels": (
        lambda: nn.Sequential(
            linear(), nn.Unflatten(1, (8, 1, 1)), nn.Dropout2d(0.5), nn.BatchNorm2d(8), nn.Flatten(), linear()
        ),
        ["2"],
    ),
    "alpha": (between(nn.AlphaDropout(0.5), norm()), ["1"]),
    "a class of one's own": (between(OwnDropout(0.5), norm()), ["1"]),
    "a class of one's own, by a mask": (between(MaskedDropout(0.5), norm()), ["1"]),
    "nested in a norm, before it": (between(DropThenNorm()), ["1.drop"]),
    "nested in a norm, behind it": (between(NormThenDrop(), norm()), ["1.drop"]),
    "shared, called twice": (
        lambda: made(
            lambda m, x: m.c(m.n2(m.d(m.b(m.n1(m.d(m.a(x))))))),
            a=linear(), d=nn.Dropout(0.5), n1=norm(), b=linear(), n2=norm(), c=linear(),
        ),
        ["d", "d#2"],
    ),
    "a block called twice": (
        lambda: made(lambda m, x: m.b(m.f(m.f(x))), f=between(nn.Dropout(0.5), norm())(), b=linear()),
        ["f.1", "f.1#2"],
    ),
    "a hook": (hooked, ["0.dropout"]),
    "Uout": (between(Uout(0.5), norm()), []),
    "rate 0": (between(nn.Dropout(0.0), norm()), []),
    "frozen": (lambda: frozen(between(nn.Dropout(0.5), norm())()), []),
    "behind the norm": (between(norm(), nn.Dropout(0.5)), []),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_dropout_before_a_norm_is_found_whatever_the_call(name):
    build, paths = CALLS[name]
    assert found(build(), "EK201") == [("EK201", path) for path in paths]


@pytest.mark.parametrize("name", CALLS)
def test_a_finding_at_a_source_line_names_that_line(name):
    for finding in examine(Context(CALLS[name][0](), X), wanted(None, ["EK201"], ())):
        if finding.file is not None:
            assert finding.file == __file__
            assert re.search(r"drop|m\.d\(|bernoulli_|Dropout", linecache.getline(__file__, finding.line))


@pytest.mark.parametrize(
    ("layers", "codes"),
    [
        ((nn.Dropout(0.5), linear(), norm(), linear()), ["EK202"]),
        ((nn.Dropout(0.5), norm(), linear()), ["EK201"]),
        ((nn.Dropout(0.5), nn.LayerNorm(8), linear(), norm(), linear()), ["EK202"]),
        ((nn.Dropout(0.5), linear(), norm()), ["EK203"]),
        ((nn.Dropout(0.5), norm(), nn.ReLU()), ["EK203"]),
        ((nn.Dropout(0.5), nn.LayerNorm(8), linear()), []),
        ((linear(), norm(), nn.Dropout(0.5), linear()), []),
    ],
)
def test_of_the_three_rules_on_norms_each_dropout_breaks_one(layers, codes):
    assert [code for code, _ in found(nn.Sequential(linear(), *layers), guideline="li2018")] == codes


@pytest.mark.parametrize("between", [nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.RMSNorm(8)])
def test_through_a_layer_norm_the_finding_says_that_the_sign_may_turn(between):
    model = nn.Sequential(nn.Dropout(0.5), between, linear(), norm(), linear())
    (finding,) = examine(Context(model, X), wanted("li2018", (), ()))
    assert "through weights. 1 in between rescales signal and noise together" in finding.message
    assert "the norm may store too little" in finding.message


# EK101


def test_dropout_that_stays_on_is_found_and_what_is_switched_off_is_not():
    on = {
        "training=True": lambda m, x: F.dropout(x, 0.5, True),
        "by keyword": lambda m, x: F.dropout(x, p=0.5, training=True),
        "left out": lambda m, x: F.dropout(x),
        "torch.dropout": lambda m, x: torch.dropout(x, 0.5, True),
        "alpha": lambda m, x: F.alpha_dropout(x, 0.5, True),
        "mask": lambda m, x: x * torch.empty_like(x).bernoulli_(0.5),
        "mask by where": lambda m, x: x.masked_fill(torch.rand_like(x) > 0.5, 0.0),
        "built in the forward": lambda m, x: nn.Dropout(0.5)(x),
    }
    off = {
        "the mode": lambda m, x: F.dropout(x, 0.5, m.training),
        "the rate": lambda m, x: F.dropout(x, 0.5 * m.training),
        "a mask": mask,
    }
    for name, call in (on | off).items():
        model = made(lambda m, x, call=call: m.b(call(m, m.a(x))), a=linear(), b=linear())
        assert len(found(model, "EK101")) == (name in on), name


def attention(p):
    def run(m, x):
        y = m.a(x).view(2, 1, 2, 4)
        rate = p if p is not None else 0.1 if m.training else 0.0
        return F.scaled_dot_product_attention(y, y, y, dropout_p=rate).flatten(1)

    return made(run, a=linear())


@pytest.mark.parametrize(("p", "count"), [(0.1, 1), (0.0, 0), (None, 0)])
def test_attention_with_a_rate_that_ignores_the_mode_is_found(p, count):
    assert len(found(attention(p), "EK101")) == count


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = linear(), linear()

    def forward(self, x):
        return self.b(F.dropout(self.a(x), 0.5, self.training))


@pytest.mark.parametrize("training", [True, False])
def test_what_tracing_froze_is_found_alone_and_inside_another_model(training):
    traced = fx.symbolic_trace(Functional().train(training))
    for model, path in ((traced, "dropout"), (nn.Sequential(traced, nn.ReLU()), "0.dropout")):
        findings = examine(Context(model, X), wanted(None, ["EK101"], ()))
        assert [f.path for f in findings] == ([path] if training else [])
        assert all("frozen by tracing" in f.message for f in findings)


# EK105


@pytest.mark.parametrize(("p", "count"), [(0.0, 0), (0.79, 0), (0.8, 1), (0.9, 1), (1.0, 1)])
def test_rates_from_four_fifths_on_are_found_whatever_the_call(p, count):
    models = [
        nn.Sequential(linear(), nn.Dropout(p), linear()),
        made(lambda m, x: m.b(F.dropout(m.a(x), p=p, training=m.training)), a=linear(), b=linear()),
    ]
    for model in models:
        assert len(found(model, "EK105")) == count
    if 0 < p < 1:
        assert len(found(nn.LSTM(8, 8, 2, dropout=p), "EK105", example=torch.zeros(2, 4, 8))) == count


# EK106 to EK108: what norms store


def of_norms(model, code):
    return examine(Context(model, X), wanted(None, [code], ()))


def as_trained(*norms):
    """Their weights and biases differ between channels, and nothing is stored yet."""
    for one in norms:
        nn.init.normal_(one.weight), nn.init.normal_(one.bias)
    return nn.Sequential(linear(), *norms, linear())


def test_never_updated_norms_are_one_finding():
    model = as_trained(norm(), norm())
    (finding,) = of_norms(model, "EK106")
    assert finding.path == "1" and "2 of 2 norms" in finding.message
    model[1].train()(torch.randn(64, 8))
    (finding,) = of_norms(model, "EK106")
    assert finding.path == "2" and "1 of 2 norms" in finding.message


@pytest.mark.parametrize("touch", ["weight", "bias", None])
def test_norms_that_were_never_trained_are_none(touch):
    """DCGAN draws weights at random, others set biases: one of the two is no sign of training."""
    model = nn.Sequential(linear(), norm(), linear())
    if touch:
        nn.init.normal_(getattr(model[1], touch))
    assert not of_norms(model, "EK106")
    assert not of_norms(nn.Sequential(linear(), nn.BatchNorm1d(8, affine=False)), "EK106")


@pytest.mark.parametrize(
    ("momentum", "message"),
    [
        (0.0, "never updated"),
        (1.0, "last 1.0 batches"),
        (0.99, "momentum=0.01 if 0.99"),
        (0.9, "last 1.1 batches"),
        (0.5, ""),
        (0.01, ""),
        (None, ""),
    ],
)
def test_momentums(momentum, message):
    model = nn.Sequential(linear(), nn.BatchNorm1d(8, momentum=momentum), nn.BatchNorm1d(8, momentum=momentum))
    findings = of_norms(model, "EK107")
    assert [f.path for f in findings] == (["1"] if message else [])
    assert all(message in f"{f.message} {f.advice}" and "2 of 2 norms" in f.message for f in findings)
    assert not of_norms(nn.Sequential(linear(), nn.BatchNorm1d(8, momentum=momentum).eval()), "EK107")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_statistics_that_cannot_be_are_a_finding_each(value):
    model = nn.Sequential(linear(), nn.Dropout(), linear(), norm(), nn.Sequential(norm()))
    model[4][0].running_var[3] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ek.UnpredictedWarning)  # EK102 cannot predict it
        (finding,) = of_norms(model, "EK108")
    assert finding.path == "4.0" and "1 of 8 channels" in finding.message


@pytest.mark.parametrize("name", ["0.weight", "3.bias", "4.0.weight", "5.bias"])
def test_so_are_weights_that_are_not_finite(name):
    model = nn.Sequential(linear(), nn.Dropout(), linear(), norm(), nn.Sequential(norm()), linear())
    model.get_parameter(name).data.flatten()[1] = torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ek.UnpredictedWarning)
        (finding,) = of_norms(model, "EK108")
    assert finding.path == name.rpartition(".")[0] and "holds NaN in 1 of" in finding.message


class OfItsOwn(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(8))

    def forward(self, x):
        return x - self.running_mean


def test_norms_that_no_rule_looks_at_are_said_to_be_so():
    found = ek.lint(nn.Sequential(linear(), nn.Dropout(), OfItsOwn()), torch.zeros(2, 8))
    assert any("2 is of class OfItsOwn" in note and "no rule looks at it" in note for note in found.notes)
    assert not ek.lint(nn.Sequential(linear(), norm()), torch.zeros(2, 8)).notes


# EK4: residual branches


class Residual(nn.Module):
    """A stem, a block, and a norm behind it."""

    def __init__(self, run, project=False):
        super().__init__()
        self.run, self.drop, self.drop2 = run, nn.Dropout(0.3), nn.Dropout(0.2)
        self.stem, self.n, self.w, self.out = linear(), norm(), linear(), nn.Sequential(norm(), linear())
        self.w2, self.short = linear(), linear() if project else nn.Identity()

    def forward(self, x):
        return self.out(self.run(self, self.stem(x)))


def rows(x):
    return torch.rand(len(x), 1) > 0.3


BRANCHES = {
    "in place": (lambda m, x: x + m.w(m.drop(m.n(x).relu())), []),
    "before the norm": (lambda m, x: x + m.w(m.n(m.drop(m.w2(x))).relu()), [("EK401", "drop")]),
    "behind the weights": (lambda m, x: x + m.drop(m.w(m.n(x).relu())), [("EK401", "drop")]),
    "two": (lambda m, x: x + m.w(m.drop(m.n(m.drop2(m.w2(x))).relu())), [("EK402", "drop2")]),
    "on what comes out": (lambda m, x: m.drop(x + m.w(m.n(x).relu())), [("EK403", "drop")]),
    "on the shortcut": (lambda m, x: m.drop(x) + m.w(m.n(x).relu()), [("EK403", "drop")]),
    "on the shortcut's projection": (
        lambda m, x: m.drop(m.short(x)) + m.w(m.w2(m.n(x)).relu()),
        [("EK403", "drop")],
    ),
    "before both": (lambda m, x: (y := m.drop(x)) + m.w(m.n(y).relu()), [("EK403", "drop")]),
    "in the branch and behind the join": (
        lambda m, x: m.drop2(x + m.w(m.drop(m.n(x).relu()))),
        [("EK403", "drop2")],
    ),
    "stochastic depth": (lambda m, x: x + (y := m.w(m.n(x).relu())) * (rows(y) if m.training else 1.0), []),
    "no branch": (lambda m, x: m.w(m.n(m.drop(x)).relu()), []),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_dropout_on_branches_joins_and_shortcuts(name):
    run, expected = BRANCHES[name]
    assert found(Residual(run, project="projection" in name), guideline="kim2023") == expected


def test_stochastic_depth_is_exempt_from_placement_altogether():
    model = Residual(BRANCHES["stochastic depth"][0])
    assert found(model, guideline="li2018") == found(model, guideline="kim2023") == []


POOLS = {
    "nn.AdaptiveAvgPool2d(1)": (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 1),
    "F.adaptive_avg_pool2d": (made(lambda m, x: F.adaptive_avg_pool2d(x, 1).flatten(1)), 1),
    "mean": (made(lambda m, x: x.mean((2, 3))), 1),
    "average of full size": (made(lambda m, x: F.avg_pool2d(x, x.shape[-1]).view(len(x), -1)), 1),
    "nn.AdaptiveAvgPool2d(7)": (nn.Sequential(nn.AdaptiveAvgPool2d(7), nn.Flatten()), 0),
    "maximum": (nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()), 0),
    "no pool": (nn.Flatten(), 0),
    "hidden layers behind it": (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.ReLU()), 0),
}


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("call", ["module", "function"])
def test_dropout_behind_a_global_average_pool_is_found(name, call):
    pool, count = POOLS[name]
    drop = {"module": nn.Dropout(0.2), "function": made(lambda m, x: F.dropout(x, 0.2, m.training))}[call]
    features = {"nn.AdaptiveAvgPool2d(7)": 8 * 49, "no pool": 8 * 36}.get(name, 8)
    body = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
    model, example = nn.Sequential(*body, pool, drop, nn.Linear(features, 2)), torch.zeros(2, 3, 8, 8)
    assert len(found(model, "EK404", example=example)) == count
    before = nn.Sequential(*body, drop, pool, nn.Linear(features, 2))
    assert found(before, "EK404", example=example) == []


# What is asked for, and what is kept silent


def everything():
    """A model with findings of all guidelines."""
    return nn.Sequential(linear(), nn.Dropout(0.9), norm(), nn.ReLU(), linear())


ALL_CODES = ["EK105", "EK201", "EK301", "EK302"]


def test_without_a_guideline_all_are_asked():
    findings = ek.lint(everything(), X)
    assert [f.code for f in findings] == ALL_CODES
    for guideline in GUIDELINES:
        assert [str(f) for f in ek.lint(everything(), X, guideline=guideline)] or guideline == "kim2023"


@pytest.mark.parametrize(
    ("select", "ignore", "codes"),
    [
        ((), (), ALL_CODES),
        (["EK2"], (), ["EK201"]),
        (["EK1", "EK301"], (), ["EK105", "EK301"]),
        ((), ["EK3"], ["EK105", "EK201"]),
        (["EK3"], ["EK302"], ["EK301"]),
        (["EK302"], ["EK3"], ["EK302"]),
        (["EK2"], ["EK201"], []),
        ((), ["EK"], []),
    ],
)
def test_select_and_ignore_by_beginnings_of_codes(select, ignore, codes):
    assert [f.code for f in examine(Context(everything(), X), wanted(None, select, ignore))] == codes


def test_findings_at_a_path_can_be_ignored():
    asked = Settings(per_path_ignores={"1": ("EK2",), "[34]": ("EK",)})
    assert [f.code for f in examine(Context(everything(), X), asked)] == ["EK105", "EK301"]


class Commented(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = linear(), norm(), linear()

    def forward(self, x):
        x = F.dropout(self.a(x), 0.9, self.training)  # evenkeel: ignore[EK2] on purpose
        return self.b(self.n(x))


class CommentedWhole(Commented):
    def forward(self, x):
        x = F.dropout(  # evenkeel: ignore
            self.a(x),
            0.9,
            self.training,
        )
        return self.b(self.n(x))


class CommentedBelow(Commented):
    def forward(self, x):
        x = F.dropout(
            self.a(x), 0.9,  # evenkeel: ignore[EK105]
            self.training,
        )  # fmt: skip
        return self.b(self.n(x))


@pytest.mark.parametrize(("cls", "codes"), [(Commented, ["EK105"]), (CommentedWhole, []), (CommentedBelow, ["EK201"])])
def test_a_comment_on_the_line_keeps_a_rule_silent(cls, codes):
    assert [code for code, _ in found(cls(), "EK1", "EK2")] == codes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guideline": "li2019"}, "no guideline 'li2019': choose hendrycks2016, li2018, chen2019, kim2023"),
        ({"guideline": ""}, "no guideline ''"),
        ({"select": ["EK9"]}, "select: no code begins with 'EK9'"),
        ({"ignore": ["EK201", "KE"]}, "ignore: no code begins with 'KE'"),
        ({"select": [""]}, "select: no code begins with ''"),
    ],
)
@pytest.mark.parametrize("verb", [ek.lint, ek.fix])
def test_unknown_guidelines_and_codes_are_refused(verb, options, message):
    given = {"guideline": "li2018"} | options
    with pytest.raises(ek.EvenkeelError, match=message):
        verb(everything(), X, **given)


def test_shifts_are_those_predicted_where_the_finding_says():
    model = everything()
    (finding,) = ek.lint(model, X, guideline="li2018")
    (row,) = ek.predict_shift(model, X)
    assert finding.norm == row.path == "2"
    assert finding.shift == pytest.approx(row.ratio)


def test_what_could_not_be_predicted_is_said_and_does_not_hide_the_findings():
    model = everything()
    model[0].weight.data.fill_(float("nan"))
    with pytest.warns(ek.UnpredictedWarning, match="not finite"):
        (finding,) = ek.lint(model, X, guideline="li2018")
    assert finding.code == "EK201" and finding.shift is None


def test_wrong_shapes_are_a_trace_error():
    with pytest.raises(ek.TraceError, match="in layer '0'"):
        ek.lint(everything(), torch.zeros(2, 7))


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_what_wraps_a_model_does_not_hide_it():
    expected = found(everything())
    for wrap in (lambda m: torch.compile(m, backend="eager"), nn.DataParallel):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert [(f.code, f.path) for f in ek.lint(wrap(everything()), X)] == expected


def test_findings_go_into_json():
    text = json.dumps([f.to_dict() for f in ek.lint(everything(), X)])
    assert [item["code"] for item in json.loads(text)] == ALL_CODES


@torch.jit.script
def scripted_dropout(x: torch.Tensor, training: bool) -> torch.Tensor:
    return F.dropout(x, 0.5, training).relu()


@torch.jit.script
def scripted_activation(x: torch.Tensor) -> torch.Tensor:
    return x.relu() * 2


@pytest.mark.parametrize("guideline", ["li2018", "kim2023"])
def test_what_is_scripted_outside_of_the_tree_is_a_finding_by_itself(guideline):
    with pytest.warns(DeprecationWarning):
        held = [torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)))]
    insides = {
        "scripted function with dropout inside": lambda m, x: scripted_dropout(x, m.training),
        "scripted module that is no part": lambda m, x: held[0](x),
        "": lambda m, x: scripted_activation(x),
    }
    for words, inside in insides.items():
        model = nn.Sequential(nn.Linear(4, 4), Made(inside), nn.BatchNorm1d(4), nn.Linear(4, 2))
        found = ek.lint(model, torch.zeros(2, 4), guideline=guideline)
        assert [finding.code for finding in found] == ["EK104"] * bool(words)
        assert all(words in finding.message and "test_linter.py" in finding.where for finding in found)
        assert ek.lint(model, torch.zeros(2, 4), guideline=guideline, ignore=["EK104"]) == []


@torch.library.custom_op("evenkeel_tests::halved", mutates_args=())
def halved(x: torch.Tensor) -> torch.Tensor:
    return x / 2


halved.register_fake(torch.empty_like)


def ensemble(module, x):
    """The mean of three copies of a module with dropout inside, by torch.vmap."""
    weights = {name: torch.stack([weight] * 3) for name, weight in module.named_parameters()}
    called = torch.vmap(lambda own, x: torch.func.functional_call(module, own, (x,)), (0, None), randomness="different")
    return called(weights, x).mean(0)


@pytest.mark.parametrize("guideline", ["li2018", "kim2023"])
def test_what_is_done_out_of_sight_is_a_finding_by_itself(guideline):
    member = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    insides = {
        "torch.vmap is called": lambda m, x: torch.vmap(m.drop, randomness="different")(x),
        "torch.vmap": lambda m, x: ensemble(member, x),
        "custom operator": lambda m, x: halved(x),
        "leave torch": lambda m, x: torch.tensor(x.tolist()) * 1.0,
        "come back": lambda m, x: torch.from_numpy(x.detach().numpy() * 2),  # nothing of torch is called behind
    }
    for words, inside in insides.items():
        model = nn.Sequential(nn.Linear(4, 4), Made(inside, drop=nn.Dropout()), nn.BatchNorm1d(4), nn.Linear(4, 2))
        (found,) = ek.lint(model, torch.zeros(2, 4), guideline=guideline)
        assert found.code == "EK104" and words in found.message
        behind = nn.Sequential(model[0], model[2], model[1], model[3])  # behind the last norm only vmap may hide one
        codes = [finding.code for finding in ek.lint(behind, torch.zeros(2, 4), guideline=guideline)]
        assert codes == ["EK104"] * ("vmap" in words)
        assert ek.lint(model, torch.zeros(2, 4), guideline=guideline, ignore=["EK104"]) == []


def test_a_loop_over_time_is_one_finding_and_fix_still_mends_every_call():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)

        def forward(self, x):
            steps = [F.dropout(step, 0.3, self.training) for step in self.first(x).unbind(1)]
            return self.last(self.norm(torch.stack(steps, 2)).transpose(1, 2))

    model, x = Loop(), torch.zeros(2, 5, 8)
    (finding,) = ek.lint(model, x, guideline="li2018", ignore=["EK202"])
    assert finding.code == "EK201" and finding.message.endswith("So do 4 more calls there.") and len(finding.edits) == 5
    assert len(examine(Context(model, x), wanted("li2018", (), ()))) == 5


def test_calls_of_one_line_at_several_norms_stay_apart():
    class Stacked(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
            self.norms = nn.ModuleList(nn.BatchNorm1d(8) for _ in range(4))

        def forward(self, x):
            for weight, norm in zip(self.weights, self.norms, strict=True):
                x = norm(F.dropout(weight(x), 0.3, self.training))
            return x @ torch.ones(8, 8)

    assert len(ek.lint(Stacked(), torch.zeros(2, 8), guideline="li2018")) == 4
