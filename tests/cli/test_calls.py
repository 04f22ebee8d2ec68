"""What a command was given is given to the next one, as far as that takes it."""

import itertools
import shlex

import typer

from evenkeel.cli.calls import Call
from evenkeel.cli.program import app

GIVEN = {
    "--out": "a b.pt",
    "--weights": "net.pt",
    "--data": "digits",
    "--input": "1x8x8",
    "--arg": "p=0.5",
    "--data-dir": "sets",
    "--batch-size": "32",
    "--max-batches": "4",
    "--mean": "0.1",
    "--std": "0.2",
    "--scale": "255",
    "--transform": "my.nets:crop",
    "--match": "mean",
    "--tolerance": "0.1",
    "--prior": "auto",
    "--held-out": "mnist",
    "--score": "my.nets:score",
    "--unsure": "write",
    "--html": "page.html",
    "--key": "ema",
    "--reference": "one.pt",
    "--share": "1.0",
    "--forward": "my.nets:run",
    "--device": "cpu",
}
FLAGS = ["--download", "--other-data", "--json"]


def call(command, *words):
    group = typer.main.get_command(app)
    root = group.make_context("evenkeel", [command, "my.nets:net", *words], resilient_parsing=True)
    chosen = group.get_command(root, command)
    return Call(chosen.make_context(command, ["my.nets:net", *words], parent=root))


def options_of(command):
    group = typer.main.get_command(app)
    return {name for parameter in group.commands[command].params for name in parameter.opts if name.startswith("--")}


def options(text):
    words = shlex.split(text)
    return dict(itertools.pairwise(words)), words


REPAIR = [word for pair in GIVEN.items() for word in pair] + FLAGS
OUTPUTS = {"--out", "--html", "--json"}


def test_every_option_goes_on_that_the_next_command_takes():
    given = call("repair", *REPAIR)
    for command in ("shift", "repair", "lint", "fix"):
        pairs, words = options(given.then(command))
        takes = options_of(command)
        assert words[:3] == ["evenkeel", command, "my.nets:net"]
        for name, value in GIVEN.items():
            assert (pairs.get(name) == value) is (name in takes - OUTPUTS), (command, name)
        for name in FLAGS:
            assert (name in words) is (name in takes - OUTPUTS), (command, name)
        assert {word for word in words if word.startswith("--")} <= takes


def test_this_test_knows_all_options_of_repair():
    assert options_of("repair") - {"--example", "--relative", "--help"} == {*GIVEN, *FLAGS}


def test_without_data_nothing_says_how_to_use_them():
    words = shlex.split(call("repair", *REPAIR).then("shift", data=None))
    assert not {"--forward", "--max-batches", "--mean", "--data-dir", "--batch-size", "--download"} & set(words)
    assert "--max-batches" not in call("shift", "--input", "3").then("repair", out="new.pt")


def test_what_is_as_without_it_is_left_out_and_changes_come_first():
    given = call("shift", "--batch-size", "128", "--input", "3", "--arg", "a=1", "--arg", "b=x y", "--device", "cpu")
    assert given.then("shift", device=None, fail_above=1.1) == (
        "evenkeel shift my.nets:net --input 3 --arg a=1 --arg 'b=x y' --fail-above 1.1"
    )
