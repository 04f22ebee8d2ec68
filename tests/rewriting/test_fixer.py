"""The eval law: what fix makes computes the same bits in eval mode, and behaves in every way as the model did."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from hypothesis import Phase, given, seed, settings
from residuals import dropouts_of, specs
from torch import nn
from torch.nn import functional as F
from widenets import PreActBasic, PreActBottleneck, PreResNet, WideResNet

import evenkeel as ek
from benchmarks.torchvision_cpu import import_torchvision
from evenkeel.linting.context import Context
from evenkeel.linting.linter import examine, wanted
from evenkeel.model.nested import tensors
from evenkeel.rewriting import fixer
from evenkeel.rewriting.halves import Halves

PLACEMENT = ("li2018", "kim2023")


def torchvision(name, **options):
    return lambda: import_torchvision().models.get_model(name, weights=None, **options)


def timm(name, **rates):
    def build():
        import_torchvision()
        import timm

        return timm.create_model(name, **rates)

    return build


RATES = {"drop_rate": 0.2, "drop_path_rate": 0.1}
# Each with the size of its images, and how many findings each guideline has.
NETS = {
    "torchvision densenet121": (torchvision("densenet121", drop_rate=0.2), 64, {"li2018": 58, "kim2023": 58}),
    "torchvision efficientnet_b0": (torchvision("efficientnet_b0"), 64, {"kim2023": 1}),
    "torchvision googlenet": (torchvision("googlenet", init_weights=False), 64, {"kim2023": 1}),
    "timm resnetv2_50": (timm("resnetv2_50", **RATES), 64, {"kim2023": 1}),
    "timm efficientnet_b0": (timm("efficientnet_b0", **RATES), 64, {"kim2023": 1}),
    "timm regnety_002": (timm("regnety_002", **RATES), 64, {"kim2023": 1}),
    "timm convnext_atto": (timm("convnext_atto", **RATES), 64, {}),
    "hand-written WRN": (WideResNet, 16, {"li2018": 3, "kim2023": 4}),
    "hand-written PreResNet, basic": (lambda: PreResNet(PreActBasic), 16, {"li2018": 5, "kim2023": 4}),
    "hand-written PreResNet, bottleneck": (lambda: PreResNet(PreActBottleneck), 16, {"li2018": 3, "kim2023": 4}),
}
COMPILED = ("timm regnety_002", "hand-written WRN", "hand-written PreResNet, bottleneck")


def check_laws(model: nn.Module, fixed: nn.Module, x: torch.Tensor) -> None:
    """All that holds of a fixed model, whatever was fixed."""
    expected = evaluated(model, x)
    assert torch.equal(evaluated(fixed, x), expected)
    assert list(fixed.state_dict()) == list(model.state_dict())
    fixed.load_state_dict(model.state_dict())
    for training in (True, False):
        fixed.train(training)
        assert all(dropout.training is training for dropout in dropouts_of(fixed))
    for twin in (copy.deepcopy(fixed), pickle.loads(pickle.dumps(fixed))):
        assert torch.equal(evaluated(twin, x), expected)
        assert same_in_training(fixed, twin, x)


def check_compiled(model: nn.Module, fixed: nn.Module, x: torch.Tensor) -> None:
    torch.compiler.reset()
    compiled = torch.compile(fixed.eval(), backend="eager")
    assert torch.equal(evaluated(compiled, x), evaluated(model, x))


def codes(model: nn.Module, x: torch.Tensor | ek.LayerGraph, guideline: str) -> list[str]:
    """The codes of the findings; what lint predicts for them is not needed."""
    return [finding.code for finding in examine(Context(model, x), wanted(guideline, (), ()))]


def evaluated(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(x)


def same_in_training(first: nn.Module, second: nn.Module, x: torch.Tensor) -> bool:
    outputs = []
    for model in (first, second):
        torch.manual_seed(0)
        with torch.no_grad():
            outputs.append(next(iter(tensors(copy.deepcopy(model).train()(x)))))
    return torch.equal(*outputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_the_eval_law_on_nets_in_use(name):
    build, size, expected = NETS[name]
    torch.manual_seed(0)
    model, x = build(), torch.randn(2, 3, size, size)
    graph = ek.trace(model, x)
    for guideline in PLACEMENT:
        model.train()
        assert len(codes(model, graph, guideline)) == expected.get(guideline, 0)
        fixed = ek.fix(model, graph, guideline=guideline)
        if expected.get(guideline):
            assert codes(fixed, x, guideline) == []
            check_laws(model, fixed, x)
        else:
            assert torch.equal(evaluated(fixed, x), evaluated(model, x))
    if name in COMPILED:
        check_compiled(model, ek.fix(model.train(), graph, guideline="kim2023"), x)


@pytest.mark.parametrize("guideline", PLACEMENT)
@pytest.mark.parametrize("form", ["vector", "image"])
def test_a_net_without_dropout_stays_as_it_is(guideline, form):
    layers = {"vector": (nn.Linear(4, 4), nn.BatchNorm1d(4)), "image": (nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))}[form]
    model, x = nn.Sequential(*layers), torch.ones(2, 4, *([3, 3] if form == "image" else []))
    fixed = ek.fix(model, x, guideline=guideline)
    assert repr(fixed) == repr(model)


# By hypothesis: 60 residual nets, in two parts that can run side by side


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_the_laws_on_residual_nets(part):
    @seed(part)
    @settings(max_examples=30, phases=[Phase.explicit, Phase.generate])  # shrinking takes minutes: the spec is printed
    @given(spec=specs)
    def check(spec):
        model, x = spec.build(), spec.example()
        before = ek.trace(model, x)
        for guideline in PLACEMENT:
            fixed = ek.fix(model.train(), before, guideline=guideline)
            after = ek.trace(fixed, x)
            assert codes(fixed, after, guideline) == []
            check_laws(model, fixed, x)
        assert str(ek.trace(ek.fix(fixed, after, guideline=guideline), x)) == str(after)

    check()


@pytest.mark.slow
@settings(max_examples=8, phases=[Phase.explicit, Phase.generate])
@given(spec=specs)
def test_what_is_fixed_compiles(spec):
    model, x = spec.build(), spec.example()
    check_compiled(model, ek.fix(model.train(), x, guideline="li2018"), x)


# What looks like one dropout moved, and would be none or two


class Chained(nn.Sequential):
    """Runs its children in a chain, and so any new child, too."""

    def forward(self, x):
        return F.dropout(super().forward(x).mean((2, 3)), 0.5, self.training)


class TwoReaders(nn.Module):
    """Hands out what its pool returns, beside dropout of it."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.drop = nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5)

    def forward(self, x):
        x = self.pool(self.conv(x)).flatten(1)
        return self.drop(x), x


@pytest.mark.parametrize("build", [lambda: Chained(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), TwoReaders])
def test_a_dropout_that_would_multiply_or_reach_others_stays(build):
    model, x = build(), torch.randn(2, 3, 8, 8)
    with pytest.warns(ek.UnappliedWarning, match=r"EK404 .*\(test_fixer.py:\d+\)"):
        fixed = ek.fix(model, x, guideline="kim2023")
    assert repr(fixed) == repr(model)


def test_a_copy_that_would_run_the_original_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model.again = lambda x: model[0](x).relu()
    with pytest.raises(ek.EvenkeelError, match=r"again is a function \(test_fixer.py:\d+\) that holds the module"):
        ek.fix(model, torch.randn(2, 4), guideline="li2018")


def test_what_is_inserted_has_the_model_s_dtype():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    assert ek.fix(model, x, guideline="chen2019", unsafe=True)(x).dtype == torch.float64


def test_reading_a_model_leaves_what_it_keeps_of_earlier_passes():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4))
    model.kept = model[0](torch.randn(2, 4))
    origin = model.kept.grad_fn
    ek.lint(model, torch.randn(2, 4))
    assert model.kept.grad_fn is origin


def helper(x, training):
    return F.dropout(x, 0.5, training)


class Helped(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.drop, self.norm, self.head = (
            nn.Linear(4, 8),
            nn.Dropout(0.3),
            nn.BatchNorm1d(8),
            nn.Linear(8, 2),
        )

    def forward(self, x):
        return self.head(self.norm(self.drop(helper(self.first(x), self.training))))


def test_the_copy_says_what_was_done():
    model, x = small(), torch.zeros(2, 4)
    fixed = ek.fix(model, x, guideline="li2018")
    (row,) = fixed.evenkeel_fix
    assert (row.code, row.path, row.edit, row.done, row.reason) == ("EK201", "1", "move 1 to before 3", True, "")
    assert not hasattr(model, "evenkeel_fix") and list(fixed.state_dict()) == list(model.state_dict())
    assert repr(fixed.evenkeel_fix) == "FixReport(li2018: 1 fixed, 0 left)"
    assert fixed.evenkeel_fix.to_dict()["guideline"] == "li2018"
    for copied in (copy.deepcopy(fixed), pickle.loads(pickle.dumps(fixed))):
        assert list(copied.evenkeel_fix) == [row]


def test_the_copy_says_what_was_left_and_why():
    with pytest.warns(ek.UnappliedWarning) as caught:
        fixed = ek.fix(Helped(), torch.zeros(2, 4), guideline="li2018")
    assert fixed.evenkeel_fix.left and all(row.reason and not row.done for row in fixed.evenkeel_fix.left)
    assert all(str(row) in str(caught[0].message) for row in fixed.evenkeel_fix.left)


def small():
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))


def test_what_cannot_run_in_eval_mode_is_refused():
    class NoEval(nn.Sequential):
        def forward(self, x):
            if not self.training:
                raise AttributeError("no eval mode")
            return super().forward(x)

    model = NoEval(nn.Linear(4, 4), nn.Dropout(0.3), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with pytest.raises(ek.TraceError, match=r"eval mode.* no eval mode"):
        ek.fix(model, torch.zeros(4, 4), guideline="li2018")


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda model: model])
def test_a_wrapper_that_the_copy_has_not_is_named(wrap):
    model = wrap(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    report = ek.fix(model, torch.zeros(4, 4), guideline="li2018").evenkeel_fix
    assert len(report.notes) == isinstance(model, (nn.DataParallel, torch._dynamo.OptimizedModule))
    text = " ".join(str(report).split())
    assert all(type(model).__name__ in note and note in text for note in report.notes)


def test_without_findings_a_copy_comes_back_with_an_empty_report():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    fixed = ek.fix(model, torch.zeros(2, 4), guideline="li2018")
    assert fixed is not model and len(fixed.evenkeel_fix) == 0


# When some of many edits go wrong


class Block(nn.Module):
    """Weights, dropout and a norm; a touchy one computes something else once its dropout is gone."""

    def __init__(self, touchy):
        super().__init__()
        self.touchy, self.weights, self.drop, self.norm = touchy, nn.Linear(4, 4), nn.Dropout(0.1), nn.BatchNorm1d(4)

    def forward(self, x):
        changed = self.touchy and not isinstance(self.drop, nn.Dropout)
        return self.norm(self.drop(self.weights(x))) * (2 if changed else 1)


class OneByOne(Halves):
    """The slow, obvious way."""

    def keep(self, items):
        self.reasons += [(item, reason) for item in items if (reason := self._refused([item]))]


@pytest.mark.parametrize("touchy", [set(), {5}, {1, 2, 6}, {0}, set(range(8))])
def test_what_is_fixed_beside_edits_that_go_wrong_is_what_would_be_one_by_one(monkeypatch, touchy):
    model, x = nn.Sequential(*(Block(i in touchy) for i in range(8)), nn.Linear(4, 2)), torch.randn(2, 4)
    attempts = []
    monkeypatch.setattr(fixer, "_attempt", lambda *given, way=fixer._attempt: attempts.append(given) or way(*given))
    fixed, attempted = fix_quietly(model, x), len(attempts)
    monkeypatch.setattr(fixer, "Halves", OneByOne)
    expected = fix_quietly(model, x)
    assert repr(fixed) == repr(expected) and set(fixed.evenkeel_fix) == set(expected.evenkeel_fix)
    assert len(fixed.evenkeel_fix.left) == (8 if 0 in touchy else len(touchy))  # the first one is moved for the others
    assert attempted <= 1 + len(touchy) * (3 + 2)


def fix_quietly(model, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ek.UnappliedWarning)
        return ek.fix(model, x, guideline="li2018")


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(F.dropout(self.weights(x), 0.1, self.training))


class Decorated(Functional):
    @torch.no_grad()
    def forward(self, x):
        return self.norm(F.dropout(self.weights(x), 0.1, self.training))


def test_what_cannot_be_done_to_the_source_is_known_without_an_attempt(monkeypatch):
    attempts = []
    monkeypatch.setattr(fixer, "_attempt", lambda *given, way=fixer._attempt: attempts.append(given) or way(*given))
    model = nn.Sequential(*(Decorated() if i % 3 == 1 else Functional() for i in range(9)), nn.Linear(4, 2))
    left = fix_quietly(model, torch.randn(2, 4)).evenkeel_fix.left
    assert [row.path for row in left] == ["1.dropout", "4.dropout", "7.dropout"]
    assert all("a decorator wraps" in row.reason for row in left) and len(attempts) == 1
