"""opacity: what torch.jit and torch.export made is named, and refused where nothing can be done with it."""

import warnings

import pytest
import torch
from torch import fx, nn

import evenkeel as ek
from evenkeel.model.opacity import opaque_parts, require_readable

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
VERBS = {
    "trace": ek.trace,
    "lint": ek.lint,
    "fix": lambda model, x: ek.fix(model, x, guideline="li2018"),
    "predict_shift": ek.predict_shift,
    "variance_shift": lambda model, x: ek.variance_shift(model, [x]),
    "reestimate_": lambda model, x: ek.reestimate_(model, [x]),
    "correct_": ek.correct_,
    "check_signals": ek.check_signals,
    "init_": ek.init_,
}

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::FutureWarning")


def build():
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def exported(model):
    return torch.export.export(model.eval(), (X,)).module()


MADE = {
    "scripted": torch.jit.script,
    "traced": lambda model: torch.jit.trace(model.eval(), X),
    "frozen": lambda model: torch.jit.freeze(torch.jit.script(model.eval())),
    "exported": exported,
    "unflattened": lambda model: torch.export.unflatten(torch.export.export(model.eval(), (X,))),
    "in a wrapper": lambda model: nn.DataParallel(torch.jit.script(model)),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("made", MADE)
def test_every_verb_refuses_in_one_line(made, verb):
    model = MADE[made](build())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ek.ModelError, match=r"^the model is (scripted|exported).*afterwards$"):
        VERBS[verb](model, X)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model(X).isfinite().all()


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_no_module_is_refused(verb):
    with pytest.raises(ek.ModelError, match=r"of class ExportedProgram, not an nn.Module"):
        VERBS[verb](torch.export.export(build().eval(), (X,)), X)


@pytest.mark.parametrize("made", ["frozen", "exported", "unflattened"])
@pytest.mark.parametrize("verb", VERBS)
def test_parts_without_a_train_mode_are_refused_by_path(made, verb):
    model = nn.Sequential(nn.Linear(8, 8), MADE[made](build()))
    with pytest.raises(ek.ModelError, match=r"'1' is .* cannot be switched between train and eval mode"):
        VERBS[verb](model, X)


def test_the_outermost_are_named():
    inner = nn.Sequential(torch.jit.script(build()), nn.ReLU())
    assert list(opaque_parts(nn.Sequential(inner, torch.jit.trace(build().eval(), X)))) == ["0.0", "1"]
    assert list(opaque_parts(torch.jit.script(build()))) == [""]
    require_readable(inner)


def test_a_symbolic_trace_is_readable():
    model = fx.symbolic_trace(build())
    assert opaque_parts(model) == {}
    assert [finding.code for finding in ek.lint(model, X, guideline="li2018")] == ["EK201"]


@pytest.mark.parametrize("guideline", ["hendrycks2016", "li2018", "chen2019", "kim2023", None])
def test_lint_finds_scripted_parts_by_every_guideline(guideline):
    model = nn.Sequential(torch.jit.script(build()), nn.Sigmoid())
    found = [(f.code, f.path) for f in ek.lint(model, X, guideline=guideline)]
    assert found == [("EK104", "0")]
    assert [f.code for f in ek.lint(model, X, guideline=guideline, select=["EK201"] * (guideline == "li2018"))]
    assert ek.lint(model, X, guideline=guideline, ignore=["EK104"]) == []


def test_a_declared_kind_speaks_for_a_scripted_part():
    class Squash(nn.Module):
        evenkeel_kind = ek.Kind.ACTIVATION

        def __init__(self):
            super().__init__()
            self.inner = torch.jit.script(nn.Tanh())

        def forward(self, x):
            return self.inner(x)

    model = nn.Sequential(nn.Linear(8, 8), Squash(), nn.Linear(8, 2))
    assert str(ek.trace(model, X)) == "i W A W o"
    assert ek.lint(model, X, guideline="hendrycks2016") == []


def test_fix_leaves_scripted_parts_aloud():
    model = nn.Sequential(torch.jit.script(build()), nn.Dropout(0.5), nn.BatchNorm1d(2), nn.Linear(2, 2))
    with pytest.warns(ek.UnappliedWarning, match="EK104 0"):
        fixed = ek.fix(model, X, guideline="li2018")
    assert [(row.code, row.done) for row in fixed.evenkeel_fix] == [("EK201", True), ("EK104", False)]


def test_reports_name_scripted_parts():
    model = nn.Sequential(torch.jit.script(build()), nn.BatchNorm1d(2), nn.Linear(2, 2))
    for _ in range(20):
        model(torch.randn(32, 8))
    out_of_reach = "scripted, and out of reach: do this before torch.jit"
    done = ek.reestimate_(model, [X])
    assert done.untouched["0.2"] == out_of_reach
    done.undo()
    assert ek.correct_(model, X).untouched["0.2"] == out_of_reach
    assert ek.predict_shift(model, X).unsure["0.2"] == out_of_reach
    assert f"0.2: {out_of_reach}" in ek.variance_shift(model, [X]).notes
    assert "0 is scripted" in ek.check_signals(model, X).notes[0]
    assert {"0.0.weight", "0.4.weight"} <= set(ek.init_(model, X).untouched)


def test_a_model_without_scripted_parts_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ek.lint(build(), X)


@pytest.mark.parametrize(
    "name", ["variance_shift", "reestimate_", "predict_shift", "correct_", "lint", "trace", "init_"]
)
def test_a_state_dict_in_the_place_of_a_model_is_told_with_what_to_do(name):
    with pytest.raises(ek.ModelError, match=r"of class OrderedDict, a state dict perhaps, .*load_state_dict into it"):
        getattr(ek, name)(build().state_dict(), [X] if name in ("variance_shift", "reestimate_") else X)


def test_a_state_dict_is_neither_loaded_into_nor_undone():
    state = build().state_dict()
    with pytest.raises(ek.ModelError, match="a state dict perhaps"):
        ek.load_(state, "none.pt")
    with pytest.raises(ek.ModelError, match="a state dict perhaps"):
        ek.undo_(state)


def test_a_state_dict_has_no_noise():
    with pytest.raises(ek.ModelError, match="a state dict perhaps"), ek.noisy(dict(build().state_dict())):
        pass
