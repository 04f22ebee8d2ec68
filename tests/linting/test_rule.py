"""A rule, by what its file says."""

import torch
from torch import nn

import evenkeel as ek
from evenkeel.linting.context import Context
from evenkeel.linting.rule import GUIDELINES, Rule, rule
from evenkeel.linting.rules import ALL


def test_a_rule_puts_its_code_and_guideline_on_what_it_finds():
    @rule("EK999", guideline="li2018")
    def too_many_layers(context):
        yield ek.Finding("", f"there are {len(context.graph)} layers.", "Take some out.")

    assert isinstance(too_many_layers, Rule) and too_many_layers.name == "too-many-layers"
    (found,) = too_many_layers.findings(Context(nn.Linear(2, 2), torch.ones(1, 2)))
    assert str(found) == "EK999 : there are 3 layers. Take some out." and found.guideline == "li2018"
    assert too_many_layers.text == __doc__.strip()


def test_codes_and_names_of_rules_are_unique_and_guidelines_all_have_some():
    assert len({r.code for r in ALL}) == len({r.name for r in ALL}) == len(ALL)
    assert {r.guideline for r in ALL} == set(GUIDELINES)
    for r in ALL:
        assert r.text.startswith(f"{r.code}: {r.summary}")
