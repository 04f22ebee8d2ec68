"""Operations carry out an edit as a whole or not at all; what is left to do by hand is named with its line."""

from __future__ import annotations

import copy
import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from widenets import PreActBasic, PreActBottleneck, PreResNet, WideResNet

import evenkeel as ek
from evenkeel.linting.edits import Correct, Initialize, Insert, Move, Remove, Swap
from evenkeel.rewriting.operations import Attach, EditError, EditPlan, Replace, Rewrite, Whole, carry_out_, recompute_

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Dropout before its norm; subclasses say how it is called."""

    def __init__(self, p=0.5):
        super().__init__()
        self.p = p
        self.a, self.d, self.n, self.b = nn.Linear(8, 8), nn.Dropout(p), nn.BatchNorm1d(8), nn.Linear(8, 8)

    def forward(self, x):
        return self.b(self.n(self.d(self.a(x))))


class Functional(Net):
    def forward(self, x):
        return self.b(self.n(F.dropout(self.a(x), self.p, self.training)))


class ByMethod(Net):
    def drop(self, x):
        return F.dropout(x, p=self.p, training=self.training)

    def forward(self, x):
        return self.b(self.n(self.drop(self.a(x))))


class TwoLines(Net):
    def forward(self, x):
        x = F.dropout(
            self.a(x),
            p=self.p,
            training=self.training,
        )
        return self.b(input=self.n(x))


class InPlace(Net):
    def forward(self, x):
        x = self.a(x)
        F.dropout(x, self.p, self.training, inplace=True)
        return self.b(self.n(x))


class Keywords(Net):
    def forward(self, *, signal, flag=True, extra=None):
        x = self.b(input=self.n(input=self.d(input=self.a(input=signal))))
        return {"out": x if extra is None else x + extra, "flag": flag}


class OneModule(Net):
    """The same dropout before and behind the norm: the first call is to go, the second is in place."""

    def forward(self, x):
        return self.b(self.d(self.n(self.d(self.a(x)))))


def sequence(*layers):
    return nn.Sequential(nn.Linear(8, 8), *layers, nn.Linear(8, 8))


def planned(model, *edits, graph=None):
    graph = graph or ek.trace(model, X)
    plan = EditPlan(model, graph, edits)
    return [operation for edit in edits for operation in plan.operations(edit)]


def fixed(model, guideline="li2018", example=X, **options):
    """What fix makes, and what it leaves, in words."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = ek.fix(model, example, guideline=guideline, **options)
    assert all(issubclass(w.category, ek.UnappliedWarning) for w in caught)
    return result, "\n".join(str(w.message) for w in caught)


def picture(model, example=X):
    return str(ek.trace(model, example))


# Edits to operations


def test_a_dropout_in_a_sequence_is_replaced_and_put_elsewhere_by_attachment():
    model = sequence(nn.Dropout2d(0.3), nn.BatchNorm1d(8))
    graph = ek.trace(model, torch.zeros(4, 8))
    replace, attach = planned(model, Move(graph["1"], graph["3"]), graph=graph)
    assert isinstance(replace, Replace) and replace.paths == ("1",) and isinstance(replace.module, nn.Identity)
    assert isinstance(attach, Attach) and (attach.path, attach.side) == ("3", "before")
    assert type(attach.module) is nn.Dropout, "of vectors channels are elements"
    assert attach.module.p == 0.3


def test_a_function_is_rewritten_where_it_is_called():
    model = Functional()
    graph = ek.trace(model, X)
    for edit, action in ((Remove(graph["dropout"]), "remove"), (Swap(graph["dropout"], nn.Dropout()), "replace")):
        (rewrite,) = planned(model, edit, graph=graph)
        assert isinstance(rewrite, Rewrite)
        assert (rewrite.path, rewrite.file, rewrite.action) == ("", __file__, action)
        assert rewrite.line == Functional.forward.__code__.co_firstlineno + 1


def test_a_block_that_only_drops_is_replaced_as_a_whole():
    class Drop(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5, self.training) if self.training else x

    model = sequence(Drop(), nn.BatchNorm1d(8))
    graph = ek.trace(model, X)
    (operation,) = planned(model, Remove(graph["1.dropout"]), graph=graph)
    assert isinstance(operation, Replace) and operation.paths == ("1",)


def test_a_shared_module_is_replaced_at_all_its_places_or_rewritten_at_one():
    shared = nn.Dropout(0.5)
    model = sequence(shared, nn.BatchNorm1d(8), shared)
    graph = ek.trace(model, X)
    first, second = graph.of(ek.Kind.DROPOUT)
    operations = planned(model, Remove(first), Remove(second), graph=graph)
    assert {operation.paths for operation in operations} == {("1", "3")}
    with pytest.raises(EditError):
        planned(model, Remove(first), graph=graph)  # the sequence's loop makes both calls
    model = OneModule()
    graph = ek.trace(model, X)
    (rewrite,) = planned(model, Remove(graph["d"]), graph=graph)
    assert isinstance(rewrite, Rewrite) and rewrite.target == "d"


def test_verbs_act_on_the_whole():
    assert [type(operation) for operation in planned(Net(), Correct(), Initialize())] == [Whole, Whole]


def test_of_noise_that_no_module_makes_there_is_no_move():
    class Masked(Net):
        def forward(self, x):
            return self.b(self.n(self.a(x) * torch.empty_like(x).bernoulli_(0.5)))

    model = Masked()
    graph = ek.trace(model, X)
    with pytest.raises(EditError, match="no module for what mul does"):
        planned(model, Move(graph["mul"], graph["b"]), graph=graph)


def test_a_module_with_layers_of_its_own_does_not_go_with_its_noise():
    class NoisyIdentity(nn.Dropout):
        def __init__(self):
            super().__init__(0.5)
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return super().forward(self.fc(x))

    model = sequence(NoisyIdentity(), nn.BatchNorm1d(8))
    result, left = fixed(model)
    assert "1.fc is inside 1" in left
    assert picture(result) == picture(model)


# Operations on a copy


def test_a_replaced_module_has_the_mode_of_the_old_one_and_is_one_module_everywhere():
    shared = nn.Dropout(0.5).eval()
    model = sequence(shared, nn.ReLU(), shared)
    carry_out_(model, [Replace(("1", "3"), nn.Dropout(0.1))])
    assert model[1] is model[3] and model[1].p == 0.1 and not model[1].training


def test_equal_operations_count_once_and_others_in_one_place_are_refused():
    model = sequence(nn.ReLU())
    carry_out_(model, [Attach("2", nn.Dropout(0.1), "before"), Attach("2", nn.Dropout(0.1), "before")])
    assert picture(model) == "i W A D W o"
    with pytest.raises(EditError, match=r"p=0\.1.*p=0\.2"):
        carry_out_(model, [Attach("2", nn.Dropout(0.1), "after"), Attach("2", nn.Dropout(0.2), "after")])


def test_the_model_itself_is_no_child():
    with pytest.raises(EditError, match="the model is no child"):
        carry_out_(nn.Dropout(), [Replace(("",), nn.Identity())])


def test_the_module_put_in_is_a_copy():
    module, models = nn.Dropout(0.5), [sequence(nn.ReLU()) for _ in range(2)]
    for model in models:
        carry_out_(model, [Attach("0", module, "after")])
    assert len({id(model[0].output_dropout) for model in models} | {id(module)}) == 3


def test_a_rewrite_that_fails_is_an_error_with_its_line():
    model = Functional()
    line = Functional.forward.__code__.co_firstlineno + 1
    operation = Rewrite("", __file__, line, torch.relu, "remove")
    with pytest.raises(EditError, match=rf"test_operations\.py:{line}"):
        carry_out_(model, [operation])


# The whole way: a Move is made as a whole


MOVED = [Net, Functional, ByMethod, TwoLines, InPlace]


@pytest.mark.parametrize("cls", MOVED)
@pytest.mark.parametrize("training", [True, False])
def test_a_moved_dropout_is_the_twin_written_by_hand(cls, training):
    class Twin(cls):
        def forward(self, x):
            return self.b(self.d(self.n(self.a(x))))

    model = cls().train(training)
    result, left = fixed(model)
    assert left == "" and picture(result) == "i W N D W o"
    assert all(module.training is training for module in result.modules())
    twin = Twin()
    twin.load_state_dict(model.state_dict())
    for mode in (True, False):
        outputs = []
        for net in (result.train(mode), twin.train(mode)):
            torch.manual_seed(0)
            outputs.append(copy.deepcopy(net)(X))
        assert torch.equal(*outputs)


@pytest.mark.parametrize("example", [{"signal": X}, {"signal": X, "flag": False}, {"signal": X, "extra": X}])
def test_signals_given_by_name_are_found(example):
    model = Keywords()
    result, left = fixed(model, example=example)
    assert left == "" and picture(result, example) == picture(model, example).replace("D N", "N D")
    assert torch.equal(result.eval()(**example)["out"], model.eval()(**example)["out"])


def test_a_shared_dropout_loses_one_call_and_keeps_the_other():
    result, left = fixed(OneModule())
    assert left == "" and picture(result) == "i W N D W o"


def helper(x, p, training):
    return F.dropout(x, p, training)


class Helper(Net):
    def forward(self, x):
        return self.b(self.n(helper(self.a(x), self.p, self.training)))


class HelperOfWeights(Net):
    def forward(self, x):
        return apply(self.b, self.n(self.d(self.a(x))))


def apply(layer, x):
    return F.linear(x, layer.weight, layer.bias)


class Static(Net):
    @staticmethod
    def drop(x, training):
        return F.dropout(x, 0.5, training)

    def forward(self, x):
        return self.b(self.n(self.drop(self.a(x), self.training)))


class Local(Net):
    def forward(self, x):
        drop = F.dropout
        return self.b(self.n(drop(self.a(x), self.p, self.training)))


class Hidden(Net):
    """A dropout that is no child."""

    def __init__(self):
        super().__init__()
        self.drops = [nn.Dropout(0.5)]

    def forward(self, x):
        return self.b(self.n(self.drops[0](self.a(x))))


class Loop(Net):
    """One call in the source makes two in the graph, and the second is in place."""

    def forward(self, x):
        for layer, norm in ((self.a, self.n), (nn.Identity(), nn.Identity())):
            x = norm(self.d(layer(x)))
        return self.b(x)


class FunctionalLoop(Net):
    def forward(self, x):
        for layer, norm in ((self.a, self.n), (nn.Identity(), nn.Identity())):
            x = norm(F.dropout(layer(x), self.p, self.training))
        return self.b(x)


class WeightLoop(Net):
    """The dropout is to go before one call of two."""

    def forward(self, x):
        x = self.n(self.d(self.a(x)))
        for _ in range(2):
            x = self.b(x).relu()
        return x


def hooked():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))
    model[0].register_forward_hook(lambda module, args, output: F.dropout(output, 0.5, module.training))
    return model


def twice():
    block = sequence(nn.BatchNorm1d(8), nn.Dropout(0.5))
    return nn.Sequential(block, block)


BY_HAND = {
    "a helper function": Helper,
    "a helper function that the target is called in": HelperOfWeights,
    "a static method": Static,
    "a local name": Local,
    "a dropout that is no child": Hidden,
    "a loop with one to go": Loop,
    "a loop of a function with one to go": FunctionalLoop,
    "a loop with one to put in": WeightLoop,
    "a lambda as hook": hooked,
    "a block called twice": twice,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_what_nothing_can_do_is_left_whole_and_said_with_its_line(name):
    model = BY_HAND[name]()
    result, left = fixed(model)
    assert picture(result) == picture(model), "no half of it is done"
    (first, *lines) = left.split("\n")
    assert first == f"{len(lines)} finding{'' if len(lines) == 1 else 's'} left to do by hand:"
    findings = ek.lint(result, X, guideline="li2018")
    assert len(lines) == len(findings)
    for line, finding in zip(lines, findings, strict=True):
        assert line.startswith(f"{finding.code} {finding.path}") and ", since " in line
        assert not finding.where or f"({finding.where})" in line
    if name != "a block called twice":  # whose sequence is torch's
        assert re.search(r"test_operations\.py:\d+", left)


def test_what_can_be_done_is_done_beside_what_cannot():
    model = nn.Sequential(Net(), Helper())
    result, left = fixed(model)
    assert len(left.split("\n")) == 2 and "1.dropout" in left
    assert picture(result) == "i W N W W D N D W o"


def test_a_loop_over_modules_of_their_own_loses_just_one():
    class Drops(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.n, self.w, self.b = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.drops = nn.ModuleList([nn.Dropout(0.2), nn.Dropout(0.3)])

        def forward(self, x):
            y = self.n(x := self.a(x))
            for drop in self.drops:
                y = drop(y)
            return self.b(x + self.w(y))

    result, left = fixed(Drops(), "kim2023")
    assert left == "" and picture(result) == "i W N D W + W o"


def test_generated_code_is_left():
    traced = torch.fx.symbolic_trace(Functional())
    result, left = fixed(traced)
    assert "a GraphModule runs code that was generated" in left
    assert picture(result) == picture(traced)


# Modes


def test_frozen_parts_stay_frozen_and_as_they_are():
    model = nn.Sequential(Functional(), nn.ReLU(), Functional())
    model[0].eval()
    result, left = fixed(model)
    assert left == "" and picture(result) == "i W D N W A W N D W o"
    flags = {path: module.training for path, module in result.named_modules()}
    assert flags == {path: not path.startswith("0") for path in flags}


def test_a_model_in_eval_mode_is_fixed_in_eval_mode():
    for build in (Net, Functional, OneModule):
        result, _ = fixed(build().eval())
        assert not any(module.training for module in result.modules())
        assert all(module.training for module in result.train().modules())


# One guideline after the other


@pytest.mark.parametrize("order", [("li2018", "kim2023"), ("kim2023", "li2018"), ("hendrycks2016", "li2018")])
@pytest.mark.parametrize(
    "build", [WideResNet, lambda: PreResNet(PreActBasic), lambda: PreResNet(PreActBottleneck)],
    ids=["wide", "basic", "bottleneck"],
)  # fmt: skip
def test_two_guidelines_one_after_the_other(build, order):
    torch.manual_seed(0)
    model, x = build(), torch.randn(2, 3, 16, 16)
    result = model
    for guideline in order:
        given = picture(result, x)
        result, left = fixed(result, guideline, x, ignore=["EK102", "EK103"] if guideline == "hendrycks2016" else ())
        assert left == ""
        assert guideline != "hendrycks2016" or picture(result, x) == given
    again, _ = fixed(result, order[-1], x)
    assert picture(again, x) == picture(result, x)
    assert list(result.state_dict()) == list(model.state_dict())
    assert torch.equal(result.eval()(x), model.eval()(x))


def test_a_layer_put_in_by_hand_is_moved_on_by_the_next_fix():
    result, _ = fixed(Net())
    wider = nn.Sequential(result, nn.BatchNorm1d(8), nn.Linear(8, 2))
    again, left = fixed(wider)
    assert left == "" and picture(again) == "i W N W N D W o"


# What fix refuses


def test_a_model_that_cannot_be_copied_is_refused_in_words():
    class Locked(Net):
        def __deepcopy__(self, memo):
            raise TypeError("not this one")

    with pytest.raises(ek.EvenkeelError, match=r"Locked cannot be copied .*not this one"):
        ek.fix(Locked(), X, guideline="li2018")


def test_if_all_findings_need_unsafe_that_is_an_error():
    model = sequence(nn.ReLU())
    with pytest.raises(ek.EvenkeelError, match=r"EK302 at 2 .*unsafe=True"):
        ek.fix(model, X, guideline="chen2019")
    result, left = fixed(model, "chen2019", unsafe=True)
    assert left == "" and picture(result) == "i W A N D W o"


def test_select_and_ignore_leave_findings_without_a_word():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.BatchNorm1d(8), nn.Linear(8, 8))
    for options in ({"select": ["EK202"]}, {"ignore": ["EK201"]}):
        result, left = fixed(model, **options)
        assert left == "" and picture(result) == picture(model)


def test_what_another_dropout_makes_superfluous_stays_with_it():
    model = nn.Sequential(
        nn.Linear(8, 8), nn.Dropout(0.3), nn.Linear(8, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 8)
    )
    for options in ({"select": ["EK201"]}, {"ignore": ["EK202"]}):
        result, left = fixed(model, **options)
        assert "remove 3, since 1, which is to take its place, stays where it is" in left
        assert picture(result) == picture(model)


def test_an_insert_on_both_sides_keeps_its_order():
    model = sequence(nn.ReLU())
    graph = ek.trace(model, X)
    edits = [Insert(nn.Dropout(0.1), graph["2"]), Insert(nn.Dropout(0.2), graph["2"], "after")]
    operations = planned(model, *edits, graph=graph)
    carry_out_(model, operations)
    recompute_(model, operations, X)
    assert [layer.p for layer in ek.trace(model, X).of(ek.Kind.DROPOUT)] == [0.1, 0.2]
    assert picture(model) == "i W A D W D o"
