"""The command line takes any model: with tokens, several inputs, a graph, a forward of one's own, or pickled whole."""

import json
import sys

import pytest
import torch
from commands import run

TEXT = ("anynets:Text", "--weights", "text.pt")
WAYS = {
    "in order": ("--input", "int64:12:0-99", "--input", "12"),
    "with the embedding's range": ("--input", "int64:12", "--input", "12"),
    "by name": ("--input", "tokens=int64:12:0-99", "--input", "mask=12"),
    "by a function": ("--example", "anynets:text_example"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_model_with_tokens_and_two_inputs(nets, capsys, way):
    code, out, err = run(capsys, "shift", *TEXT, *WAYS[way], "--json")
    (row,) = json.loads(out)["rows"]
    assert code == 0 and err == "" and row["path"] == "norm" and row["causes"][0]["name"] == "drop"
    code, out, _ = run(capsys, "lint", *TEXT, *WAYS[way], "--guideline", "li2018")
    assert code == 1 and "EK201 drop (anynets.py:" in out
    code, out, _ = run(capsys, "repair", *TEXT, *WAYS[way], "--out", "new.pt")
    assert code == 0 and "written: new.pt" in out


def test_a_graph_by_an_example_and_by_data(nets, capsys):
    graph = ("anynets:Graph", "--weights", "graph.pt")
    code, out, _ = run(capsys, "shift", *graph, "--example", "anynets:graph_example", "--json")
    assert code == 0 and json.loads(out)["rows"][0]["ratio"] < 0.8
    code, out, _ = run(capsys, "shift", *graph, "--data", "anynets:graph_batches", "--json")
    (row,) = json.loads(out)["rows"]
    assert code == 0 and row["ratio"] < 0.8 and row["causes"][0]["name"] == "drop"
    code, out, err = run(capsys, "repair", *graph, "--data", "anynets:graph_batches", "--out", "new.pt")
    assert code == 0 and err == "" and "written: new.pt" in out


def test_a_forward_runs_the_batches(nets, capsys):
    (nets / "anynets.py").write_text((nets / "anynets.py").read_text())
    text = (*TEXT, "--data", "anynets:text_batches")
    code, _, err = run(capsys, "shift", *text)  # called with labels, too
    assert code == 2 and "labels" in err and err.count("\n") == 1
    code, out, err = run(capsys, "shift", *text, "--forward", "anynets:run_text")
    assert code == 0 and err == "" and "because of" not in out
    code, out, _ = run(
        capsys, "shift", *text, "--forward", "anynets:run_text", "--example", "anynets:text_example", "--json"
    )
    assert code == 0 and json.loads(out)["rows"][0]["causes"][0]["name"] == "drop"
    code, out, _ = run(
        capsys, "repair", *text, "--forward", "anynets:run_text", "--out", "new.pt", "--match", "variance"
    )
    assert code == 0 and "x1.00 after" in out


def test_held_out_data_are_judged_by_a_score_of_ones_own(nets, capsys):
    text = ("repair", *TEXT, "--example", "anynets:text_example", "--out", "new.pt")
    judged = (*text, "--held-out", "anynets:text_batches", "--forward", "anynets:run_text")
    code, _, err = run(capsys, *judged, "--score", "anynets:no_loss")
    assert code == 2 and "the held-out loss gets no lower: no_loss 64 to 64" in err
    assert not (nets / "new.pt").exists()
    code, _, err = run(capsys, *text, "--score", "anynets:no_loss")
    assert code == 2 and "--score says how to judge held-out data, and there is no --held-out" in err
    data = ("repair", *TEXT, "--data", "anynets:text_batches", "--forward", "anynets:run_text", "--out", "new.pt")
    code, _, err = run(capsys, *data, "--held-out", "anynets:text_batches", "--score", "anynets:no_loss")
    assert code == 2 and "no_loss" in err


def test_options_of_repair_go_together_on_data_of_any_kind(nets, capsys):
    data = ("repair", *TEXT, "--data", "anynets:text_batches", "--forward", "anynets:run_text", "--out", "new.pt")
    for options in (("--prior", "100"), ("--match", "mean"), ("--match", "variance", "--device", "cpu")):
        code, out, err = run(capsys, *data, *options)
        assert code == 0 and err == "" and "written: new.pt" in out


def test_a_device(nets, capsys):
    text = (*TEXT, "--example", "anynets:text_example")
    assert run(capsys, "shift", *text, "--device", "cpu")[0] == 0
    assert run(capsys, "lint", *text, "--device", "cpu", "--guideline", "kim2023")[0] == 0
    for device in ("gpu", "cuda:99", "meta", "cpu:x"):
        code, out, err = run(capsys, "shift", *text, "--device", device)
        assert (
            code == 2 and out == "" and err.startswith(f"evenkeel: --device {device}: ") and "devices here: cpu" in err
        )
        assert err.count("\n") == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu(nets, capsys):
    data = (*TEXT, "--data", "anynets:text_batches", "--forward", "anynets:run_text", "--device", "cuda")
    assert run(capsys, "shift", *data)[0] == 0
    assert run(capsys, "repair", *data, "--out", "new.pt")[0] == 0
    assert torch.load(nets / "new.pt")["norm.running_var"].device.type == "cpu"


def test_a_model_pickled_whole_comes_by_a_target(nets, capsys):
    example = ("--example", "anynets:text_example")
    code, out, _ = run(capsys, "shift", "anynets:whole", *example)
    assert code == 0 and "drop p=0.3" in out
    code, out, err = run(capsys, "repair", "anynets:whole", *example, "--out", "new.pt")
    assert code == 0 and err == "" and list(torch.load(nets / "new.pt")) == list(torch.load(nets / "text.pt"))
    code, _, err = run(capsys, "shift", "anynets:Text", *example, "--weights", "whole.pt")
    assert code == 2 and "a whole model is no weights file" in err and "returns torch.load('whole.pt'" in err
    code, _, err = run(capsys, "repair", "anynets:Text", *example, "--out", "new2.pt")
    assert code == 2 and "none of the 1 norms was ever updated: name the checkpoint to repair by --weights" in err


def test_one_of_several_nets_in_a_file(nets, capsys):
    state = torch.load(nets / "text.pt")
    torch.save({"state_dict": state, "ema": {key: value.clone() for key, value in state.items()}}, nets / "two.pt")
    text = ("anynets:Text", "--weights", "two.pt", "--example", "anynets:text_example")
    code, _, err = run(capsys, "shift", *text)
    assert code == 2 and "two.pt holds 2 state dicts: state_dict (" in err and "--key state_dict" in err
    assert "in Python" not in err
    assert run(capsys, "shift", *text, "--key", "ema")[0] == 0
    assert run(capsys, "lint", *text, "--key", "ema", "--guideline", "li2018")[0] == 1
    assert run(capsys, "repair", *text, "--key", "ema", "--out", "new.pt")[0] == 0
    old, new = torch.load(nets / "two.pt"), torch.load(nets / "new.pt")
    assert torch.equal(old["state_dict"]["norm.running_var"], new["state_dict"]["norm.running_var"])
    assert not torch.equal(old["ema"]["norm.running_var"], new["ema"]["norm.running_var"])


def test_arguments_of_a_target(nets, capsys):
    example = ("--example", "anynets:text_example")
    assert run(capsys, "shift", "anynets:Text", "--arg", "classes=5", *example)[0] == 0
    code, _, err = run(capsys, "shift", *TEXT, "--arg", "classes=5", *example)
    assert code == 2 and "of another shape (out.weight" in err
    assert "--arg gives it arguments" in " ".join(run(capsys, "shift", "--help")[1].replace("│", " ").split())


BAD = {
    "both": (("--example", "anynets:text_example", "--input", "8"), "--example and --input both say"),
    "no function": (("--example", "anynets:number"), "returned a int, without a tensor"),
    "no shape": (("--input", "int64:axb"), "is no shape"),
    "too large": (("--input", "int64:12:0-99", "--input", "9999999999999"), "this machine has"),
    "not a token": (("--input", "int64:12:0-999", "--input", "12"), "index out of range in self in layer 'embed'"),
    "a key without weights": (("--example", "anynets:text_example", "--key", "ema"), "--key ema says which state dict"),
    "a forward without data": (
        ("--example", "anynets:text_example", "--forward", "anynets:run_text"),
        "--forward says how to use data, and there is no --data",
    ),
    "a forward that is none": (("--data", "anynets:text_batches", "--forward", "anynets:number"), "is of type int"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_inputs_cost_one_line(nets, capsys, case):
    options, message = BAD[case]
    code, out, err = run(capsys, "shift", "anynets:Text", *options)
    assert code == 2 and out == "" and err.startswith("evenkeel: ") and err.count("\n") == 1 and message in err


REPAIR = ("repair", *TEXT, "--data", "anynets:text_batches", "--forward", "anynets:run_text", "--out", "new.pt")
HELD_OUT = ("--held-out", "anynets:text_batches")
UNCLEAR = {
    "a score that raises": ((*REPAIR, *HELD_OUT, "--score", "anynets:bad_score"), "--score raised ValueError"),
    "a score of text": ((*REPAIR, *HELD_OUT, "--score", "anynets:text_score"), "--score must return a number"),
    "no such score": ((*REPAIR, *HELD_OUT, "--score", "anynets:gone"), "--score 'anynets:gone': anynets has no 'gone'"),
    "held-out data that are not there": (
        (*REPAIR, "--held-out", "folder:gone"),
        "--held-out: folder:gone: there is no",
    ),
    "held-out data of another kind": ((*REPAIR, "--held-out", "digits"), "held-out data: the forward pass on batch 1"),
    "data that are not there": ((*REPAIR, *HELD_OUT, "--data", "folder:gone"), "evenkeel: folder:gone: there is no"),
    "a prior below 0": ((*REPAIR, "--prior", "-3"), "--prior must be a number of samples, at least 0, or"),
    "no tolerance": ((*REPAIR, "--tolerance", "0"), "--tolerance must be above 0"),
    "no batches": (("shift", *TEXT, "--data", "anynets:empty"), "the data are empty"),
    "pairs of inputs": (
        ("shift", *TEXT, "--data", "anynets:pairs"),
        "yield mappings of arguments by name, or name what",
    ),
    "two means": (
        ("shift", "anynets:Text", "--data", "digits", "--mean", "0.5,0.5"),
        "--mean has 2 numbers, and the images have 1 channel",
    ),
    "a missing input": (("lint", *TEXT, "--input", "int64:12"), "check that --input, repeated for each input, or what"),
    "a page on standard output": (
        ("shift", *TEXT, "--example", "anynets:text_example", "--html", "-"),
        "--html - is no file",
    ),
    "a checkpoint on standard output": ((*REPAIR[:-1], "-"), "--out - is no file"),
    "a report on standard output": (("report", ".", "--markdown", "-"), "--markdown - is no file"),
    "lint and JSON": (("lint", *TEXT, "--json"), "lint prints JSON by --format json"),
    "lint and data": (("lint", *TEXT, "--data", "digits"), "lint needs no data, but the shape of one input"),
    "no choice": (
        (*REPAIR, "--match", "median"),
        "'median' is not one of 'variance', 'mean': `evenkeel repair --help`",
    ),
    "no command": (("shft",), "No such command 'shft'. Did you mean 'shift'? `evenkeel --help` lists the commands"),
    "no target": (("shift",), "Missing argument 'TARGET': `evenkeel shift --help` lists what it takes"),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_messages_name_options_and_what_to_do(nets, capsys, case):
    (nets / "anynets.py").write_text(
        (nets / "anynets.py").read_text()
        + "\n\ndef bad_score(outputs, targets):\n    raise ValueError('no idea')\n\n\n"
        "def text_score(outputs, targets):\n    return 'good'\n\n\ndef empty():\n    return []\n\n\n"
        "def pairs():\n    return [tuple(text_example().values())]\n"
    )
    sys.modules.pop("anynets")
    arguments, message = UNCLEAR[case]
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and err.startswith("evenkeel: ") and err.count("\n") == 1
    assert message in err and "Value error" not in err
    assert not (nets / "new.pt").exists() and not (nets / "-").exists()


def test_findings_go_to_standard_output_by_a_dash(nets, capsys):
    lint = ("lint", *TEXT, "--example", "anynets:text_example", "--format", "json")
    assert run(capsys, *lint, "--output", "-") == run(capsys, *lint) and not (nets / "-").exists()


def test_memory_that_ends_costs_one_line(nets, capsys, monkeypatch):
    from evenkeel.prediction import shift_prediction

    def greedy(*_, **__):
        torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr(shift_prediction, "predict_shift", greedy)
    code, out, err = run(capsys, "shift", *TEXT, "--example", "anynets:text_example")
    assert code == 2 and out == "" and err.count("\n") == 1 and "ask for smaller sizes by --input" in err


def test_initial_weights_are_the_same_in_every_run(nets, capsys):
    lint = ("lint", "anynets:Text", "--example", "anynets:text_example", "--format", "json")
    first = run(capsys, *lint)[1]
    torch.rand(7)
    assert run(capsys, *lint)[1] == first and json.loads(first)[0]["shift"] is not None


def test_help_shows_brackets_and_nothing_is_swallowed(nets, capsys):
    text = " ".join(run(capsys, "lint", "--help")[1].split())
    assert "[tool.evenkeel]" in text and "ignore[EK201]" in text
