"""Which call is meant, and its source edited: the text is what the same edit, written by hand, parses to."""

import ast
import itertools
import linecache

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from marked import ACTIONS, plain, twin
from torch import nn
from torch.nn import functional as F

from evenkeel.rewriting.source_calls import Change, RewriteError, Scope, SourceCode, edited, quiet

NUMBERS = itertools.count()
NOTE = torch.ones(2)


def edit(text, action="remove", target=F.dropout, line=2, child="new"):
    """A method's text with one call in a line edited."""
    file = f"<edited {next(NUMBERS)}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    names = {"F": F, "torch": torch, "nn": nn, "NOTE": NOTE}
    with quiet():
        exec(compile(text, file, "exec"), names)
    module = nn.ModuleDict({"drop": nn.Dropout(), "other": nn.Dropout()})
    target = module["drop"] if target == "drop" else target
    source, function = SourceCode("forward", file, 1, text), names["forward"]
    return edited(source, Scope(module, function), Change(file, line, target, action, child)).text


def tree(text):
    return ast.dump(ast.parse(text))


LEAVES = (
    "x",
    "(x)",
    "x[0]",
    "x . data",
    "2.5",
    "[x, x]",
    "(x, 'é漢')",
    "(  # x\n  x)",
    "x[\n0]",
    '"""\n"""',
)
UNARY = ("-{}", "not {}", "(({}))", "({}\n)", "F.relu({})", "({}).sum(1)", "(\n{}\n).abs(\n)", "[{} for _ in x]")
BINARY = ("{} + {}", "({}\n  * {})", "{} if x else {}", "[{}, {}]", "F.add({}, {})", "(lambda: {})({})", "({})[{}]")
AROUND = (
    "{}",
    "1+{}",
    "F.relu({})",
    "({}).sum()",
    "{}.sum()",
    "[{}, x]",
    "not{}",
    "f'é{{x}}' or {}",
    "'漢' + {} + '字'",
    "{}\n + x",
    "x if x else{}if x else x",
    "{}[0]",
    "x[{}]",
    "lambda: {}",
    "(y := {})",
    "**{}",
    "{}\n .sum(\n)",
    "# (\n{}  # )\n",
    "{}\\\n  + x",
)
expressions = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        st.builds(str.format, st.sampled_from(UNARY), inner),
        st.builds(str.format, st.sampled_from(BINARY), inner, inner),
    ),
    max_leaves=5,
)
spaces = st.sampled_from(["", " ", "\n", "  # F.dropout(x)\n\t", "\\\n "])


def names_and_lines(text):
    names = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name) and n.id in ("x", "y")]
    return sorted((n.id, n.lineno) for n in names)


@settings(max_examples=100)
@given(expressions, st.sampled_from(AROUND), spaces, spaces, st.booleans(), st.sampled_from(ACTIONS))
@example("x", "not{}", "", "", True, "replace")
def test_an_edit_is_the_twin_written_by_hand_and_moves_no_line(signal, around, space, last, wrapped, action):
    wrapped = wrapped or around.startswith(("not{", "x if"))  # nothing else may follow a keyword at once
    call = f"{'(F.dropout)' if wrapped else 'F.dropout'}({space}⟨{signal}⟩{space},{last} p=0.5{last})"
    marked = around.replace("{{x}}", "{x}").replace("{}", f"⟦{call}⟧")
    marked = marked.replace("**", "2 **") if around == "**{}" else marked
    marked = f"def forward(self, x):\n    return ({marked})\n"
    try:
        with quiet():
            compile(plain(marked), "", "exec")
        expected = tree(twin(marked, action))
    except SyntaxError:  # such as of a backslash before a comment
        return
    line = 1 + marked[: marked.index("⟦")].count("\n")
    text = edit(plain(marked), action, line=line)
    assert tree(text) == expected
    assert text.count("\n") == plain(marked).count("\n")
    assert names_and_lines(text) == names_and_lines(plain(marked))
    before, after = marked.split("⟦")[0], marked.split("⟧")[1]
    assert text.startswith(before) and text.endswith(after)


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("remove", "x"),
        ("replace", "self.new(x)"),
        ("before", "F.dropout(self.new(x), 0.5)"),
        ("after", "self.new(F.dropout(x, 0.5))"),
    ],
)
def test_the_text_looks_as_if_written_by_hand(action, expected):
    text = "def forward(self, x):\n    return {}  # noqa\n"
    assert edit(text.format("F.dropout(x, 0.5)"), action) == text.format(expected)


CALLS = {  # in the same line: one of them is meant
    "F.dropout(self['drop'](x))": (F.dropout, "drop"),
    "torch.relu(F.relu(x)).relu()": (torch.relu, F.relu, torch.Tensor.relu),
    "torch.mean(x, 1).mean(0)": (torch.mean, torch.Tensor.mean),
    "self['drop'](self['other'](x))": ("drop",),
    "NOTE.mul(x).mean()": (torch.Tensor.mul, torch.Tensor.mean),
}


@pytest.mark.parametrize("expression", CALLS)
def test_of_calls_in_one_line_the_one_of_the_target_changes(expression):
    text = f"def forward(self, x):\n    return {expression}\n"
    results = [edit(text, "after", target) for target in CALLS[expression]]
    assert len({text, *results}) == len(results) + 1
    assert all(result.count("self.new") == 1 for result in results)


REFUSED = {
    "two in a line": ("return F.dropout(x) + F.dropout(x)", "2 calls in .*:2 can be"),
    "one in the other": ("return F.dropout(F.dropout(x))", "2 calls"),
    "none": ("return F.relu(x)", "no calls"),
    "other line": ("\n    return F.dropout(x)", "no calls"),
    "a local name": ("F = x; return F.dropout(x)", "no calls"),
    "a name of a function inside": ("return (lambda F: F.dropout(x))(torch)", "no calls"),
    "a local alias": ("f = F.dropout; return f(x)", "no calls"),
    "by name": ("return getattr(F, 'drop' + 'out')(x)", "no calls"),
    "in an f-string": ("return f'{F.dropout(x)}'", "is in an f-string"),
    "in an f-string, too": ("return f'{F.dropout(x)}', F.dropout(x)", "2 calls"),
    "as a default": ("return x", "no calls"),
    "no operand": ("return F.dropout()", "does not show which"),
    "starred": ("return F.dropout(*x)", "does not show which"),
    "two stars": ("return F.dropout(**x)", "does not show which"),
    "a generator": ("return F.dropout(y for y in x)", "does not show which"),
    "other keywords": ("return F.dropout(values=x)", "does not show which"),
    "assigns": ("return F.dropout(x, p := 0.5) + p", "assigns or waits"),
    "waits": ("return F.dropout(x, (yield))", "assigns or waits"),
    "self is bound": ("self = x; return F.dropout(x)", "gives the name self to something else"),
    "self is bound inside": ("return (lambda self: F.dropout(x))(x)", "gives the name self"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_certain_is_refused(case):
    body, reason = REFUSED[case]
    header = "def forward(self, x, y=F.dropout(torch.ones(1))):" if case == "as a default" else "def forward(self, x):"
    line = 1 if case == "as a default" else 2
    with pytest.raises(RewriteError, match=reason):
        edit(f"{header}\n    {body}\n", line=line)


@pytest.mark.parametrize("action", ["replace", "before", "after"])
def test_what_works_in_place_is_only_removed(action):
    text = "def forward(self, x):\n    F.dropout(x, 0.5, True, True)\n    return x\n"
    with pytest.raises(RewriteError, match="works in place"):
        edit(text, action)
    assert edit(text) == "def forward(self, x):\n    x\n    return x\n"


@pytest.mark.parametrize("index", ["i", "1:", "x", "'other'", "7"])
def test_a_child_by_an_index_that_is_not_known_is_refused(index):
    text = f"def forward(self, x, i=0):\n    return self[{index}](x)\n"
    with pytest.raises(RewriteError, match="no calls"):
        edit(text, target="drop")


def test_without_a_name_for_the_module_nothing_is_known():
    with pytest.raises(RewriteError, match="no name for its module"):
        edit("def forward(*args):\n    return F.dropout(args[1])\n")


def test_attributes_that_raise_are_unknown():
    class Net(nn.Module):
        @property
        def drop(self):
            raise RuntimeError("not now")

        def forward(self, x):
            return self.drop(x)

    with pytest.raises(LookupError):
        Scope(Net(), Net.forward).value(ast.parse("x.y", mode="eval").body)
    text = "def forward(self, x):\n    return self.drop(x)\n"
    with pytest.raises(RewriteError, match="no calls"):
        edited(SourceCode("forward", "f", 1, text), Scope(Net(), Net.forward), Change("f", 2, F.dropout, "remove"))


def test_edits_of_the_same_text_share_a_label_and_others_do_not():
    source = SourceCode("forward", "/home/a/net.py", 7, "    def forward(self, x):\n        return x\n")
    assert source.label == SourceCode(*source).label and source.label.startswith("<net.py rewritten ")
    others = [source._replace(**change) for change in ({"text": "x"}, {"first": 8}, {"file": "/home/b/net.py"})]
    assert len({source.label, *(other.label for other in others)}) == 4
