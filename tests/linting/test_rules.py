"""Every rule: its bad example gives its code and nothing else, its good one nothing, and its fix leaves nothing."""

import ast
import re
from pathlib import Path

import pytest
import torch

import evenkeel as ek
from evenkeel.linting import rules
from evenkeel.linting.rule import GUIDELINES
from evenkeel.linting.rules import ALL

FOLDER = Path(rules.__file__).parent
HEADINGS = ["What it does", "Why it matters", "Who disagrees", "Known limits", "References"]

BY_HAND = ("EK106", "EK107", "EK108", "EK109")  # no edit mends what these find
each = pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.code)
each_with_edits = pytest.mark.parametrize(
    "rule", [rule for rule in ALL if rule.code not in BY_HAND], ids=lambda rule: rule.code
)


@each
@pytest.mark.parametrize("training", [True, False])
def test_bad_gives_the_code_and_good_none(rule, training):
    example = torch.zeros(rule.module.EXAMPLE)
    bad = ek.lint(rule.module.bad().train(training), example, guideline=rule.guideline)
    assert [finding.code for finding in bad] == [rule.code]
    assert ek.lint(rule.module.good().train(training), example, guideline=rule.guideline) == []


@pytest.mark.parametrize("rule", [rule for rule in ALL if rule.code in BY_HAND], ids=lambda rule: rule.code)
def test_what_no_edit_mends_is_left_and_said(rule):
    with pytest.warns(ek.UnappliedWarning, match=rule.code):
        fixed = ek.fix(rule.module.bad(), torch.zeros(rule.module.EXAMPLE), guideline=rule.guideline, unsafe=True)
    assert len(fixed.evenkeel_fix.left) == 1


@each_with_edits
def test_fixing_bad_gives_a_clean_lint(rule):
    model, example = rule.module.bad(), torch.zeros(rule.module.EXAMPLE)
    fixed = ek.fix(model, example, guideline=rule.guideline, unsafe=True)
    assert ek.lint(fixed, example, guideline=rule.guideline) == []
    assert len(ek.lint(model, example, guideline=rule.guideline)) == 1, "fix edits a copy"


@each_with_edits
def test_what_is_safe_is_exact_in_eval_mode(rule):
    model, example = rule.module.bad(), torch.randn(rule.module.EXAMPLE)
    (finding,) = ek.lint(model, example, guideline=rule.guideline)
    if all(edit.safe for edit in finding.edits):
        fixed = ek.fix(model, example, guideline=rule.guideline)
        assert torch.equal(fixed.eval()(example), model.eval()(example))
    else:
        with pytest.raises(ek.EvenkeelError, match="unsafe=True"):
            ek.fix(model, example, guideline=rule.guideline)


@each
def test_a_finding_says_what_where_and_what_to_do(rule):
    (finding,) = ek.lint(rule.module.bad(), torch.zeros(rule.module.EXAMPLE), guideline=rule.guideline)
    assert finding.guideline == rule.guideline
    assert re.fullmatch(r"[^.\n]([^\n]*[^.\n])?\.", finding.message), "one sentence"
    assert re.fullmatch(r"[A-Z][^\n]*\.", finding.advice)
    assert bool(finding.edits) == (rule.code not in BY_HAND)
    assert finding.where is None or finding.where.startswith(Path(rule.module.__file__).name)


@each
def test_a_finding_in_a_class_knows_its_line(rule):
    (finding,) = ek.lint(rule.module.bad(), torch.zeros(rule.module.EXAMPLE), guideline=rule.guideline)
    if finding.line is not None and finding.file == rule.module.__file__:
        line = Path(finding.file).read_text(encoding="utf-8").splitlines()[finding.line - 1]
        assert re.search(r"drop|fft", line)


# The pattern of a rule's file


@each
def test_a_rule_is_one_file_named_by_its_code(rule):
    name = rule.name.replace("-", "_")
    assert Path(rule.module.__file__) == FOLDER / f"{rule.code.lower()}_{name}.py"
    assert rule.guideline in GUIDELINES
    assert rule.code[2] == str(1 + list(GUIDELINES).index(rule.guideline))


def test_every_file_is_registered_once_in_the_order_of_codes():
    assert [Path(rule.module.__file__) for rule in ALL] == sorted(FOLDER.glob("ek*.py"))


@each
def test_its_text_has_all_headings(rule):
    title = rule.text.partition("\n")[0]
    assert re.fullmatch(rf"{rule.code}: [a-z].+\.", title)
    assert re.findall(r"^## (.+)$", rule.text, re.MULTILINE) == HEADINGS


@each
def test_its_text_names_its_paper_and_who_disagrees(rule):
    _, *sections = re.split(r"^## .+\n", rule.text, flags=re.MULTILINE)
    others, references = sections[2], sections[4]
    name = {"hendrycks2016": "Hendrycks", "li2018": "Li et al.", "chen2019": "Chen et al.", "kim2023": "Kim et al."}
    traps = rule.guideline == "hendrycks2016"  # which all the papers show
    assert any(name[guideline] in references for guideline in (GUIDELINES if traps else [rule.guideline]))
    named = [other for other in GUIDELINES if other in others and other != rule.guideline]
    assert named or traps


@each
def test_codes_that_its_text_mentions_exist(rule):
    assert set(re.findall(r"EK\d{3}", rule.text)) <= {other.code for other in ALL}


@each
def test_its_examples_are_functions_without_arguments(rule):
    tree = ast.parse(Path(rule.module.__file__).read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for name in ("bad", "good"):
        assert ast.get_docstring(functions[name])
        assert not functions[name].args.args
