"""What docs/command-line.md says of the command line is so: its options exist, and its inputs can be read."""

import re

import pytest
import torch
from paths import ROOT
from torch import nn
from typer import Context
from typer.main import get_command

import evenkeel as ek
from evenkeel import cli
from evenkeel.io.checkpoints import Checkpoint
from evenkeel.io.examples import parse_input

PAGE = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
COMMANDS = {name: {o for p in c.params for o in p.opts} for name, c in get_command(cli.app).commands.items()}


@pytest.mark.parametrize("name", ["shift", "repair", "lint", "fix", "reestimate-part", "merge"])
def test_the_options_of_each_line_are_those_of_the_command(name):
    line = next(line for line in PAGE.splitlines() if re.match(rf"evenkeel {name} +TARGET", line))
    assert set(re.findall(r"--[\w-]+", line)) <= COMMANDS[name]


def test_every_option_named_exists():
    program = get_command(cli.app)
    own = {name for p in program.get_params(Context(program)) for name in p.opts}  # with --help
    options = own.union(*COMMANDS.values())
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", PAGE)) <= options


def test_every_input_shown_can_be_read():
    shown = set(re.findall(r"--input ([\w=:-]+)", PAGE))
    assert len(shown) >= 5 and all(parse_input(text).shape for text in shown)


def test_the_python_shown_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))
    data = [torch.randn(64, 4) for _ in range(4)]
    for batch in data * 5:
        model(batch)
    torch.save(model, "whole.pt")
    left = model[2].running_var.clone()
    ek.reestimate_(model, data, match="variance")
    Checkpoint.of(model).write("repaired.pt", model)
    names = {}
    for block in re.findall(r"```py\n(.*?)```", PAGE[: PAGE.index("## Pages")], re.S):
        exec(block, names)
    assert torch.equal(names["model"][2].running_var, left)


@pytest.mark.parametrize("name", ["shift", "repair", "lint", "fix"])
def test_what_takes_any_model_takes_all_of_its_options(name):
    assert {"--input", "--example", "--arg", "--weights", "--key", "--device"} <= COMMANDS[name]
