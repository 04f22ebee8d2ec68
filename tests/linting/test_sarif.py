"""SARIF logs are valid by the official schema, take what GitHub takes, and say what the findings say."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.parse import unquote, urlsplit

import jsonschema
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from schemas import SARIF, SCHEMA_STORE, schema
from torch import nn

import evenkeel as ek
from evenkeel.errors import EvenkeelError
from evenkeel.linting.edits import Move, Remove
from evenkeel.linting.findings import Finding
from evenkeel.linting.rule import Rule
from evenkeel.linting.sarif import to_sarif

TEXT = """EK201: dropout before a norm.

## What it does
Finds dropouts that feed a norm,
however far.

## Why it matters
Größer is not better.
"""


def make_rule(code="EK201", name="dropout_before_norm", guideline="li2018", text=TEXT):
    module = ModuleType(name)
    module.__doc__ = text

    def check(context):
        return ()

    check.__name__ = name
    return Rule(code, guideline, check, module)


RULES = (make_rule("EK101", "dropout_stays_on", "hendrycks2016"), make_rule(), make_rule("EK302", "ic", "chen2019"))
FINDING = Finding(
    "layer1.0.drop",
    "dropout p=0.5 feeds layer1.0.bn.",
    "Move it.",
    code="EK201",
    guideline="li2018",
    file="net.py",
    line=7,
    norm="layer1.0.bn",
    shift=0.8,
)


def valid(findings, rules=RULES, root=Path()):
    """The log's run after a way through JSON, valid by the schema and by what GitHub asks beyond it."""
    log = json.loads(json.dumps(to_sarif(findings, rules, root=root, version="1.2.3"), allow_nan=False))
    assert [error.message for error in SARIF.iter_errors(log)] == []
    assert log["version"] == "2.1.0" and log["$schema"] == SCHEMA_STORE + "sarif-2.1.0.json"
    (run,) = log["runs"]
    for descriptor in run["tool"]["driver"]["rules"]:
        assert 0 < len(descriptor["shortDescription"]["text"]) <= 1024
        assert 0 < len(descriptor["fullDescription"]["text"]) <= 1024
        assert descriptor["help"]["text"] and descriptor["help"]["markdown"]
        assert len(descriptor["name"]) <= 255
    for result in run["results"]:
        assert result["message"]["text"] and result["partialFingerprints"]
        (location,) = result["locations"]
        assert location["physicalLocation"]["region"]["startLine"] >= 1
        uri = urlsplit(location["physicalLocation"]["artifactLocation"]["uri"])
        assert uri.path and not (uri.query or uri.fragment) and uri.geturl().isascii() and " " not in uri.geturl()
        assert (uri.scheme == "file") is ("uriBaseId" not in location["physicalLocation"]["artifactLocation"])
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
    return run


def result(finding, **places):
    (only,) = valid([finding], **places)["results"]
    return only


def artifact(file, root=Path()):
    return result(replace(FINDING, file=file), root=root)["locations"][0]["physicalLocation"]["artifactLocation"]


def test_the_schema_is_the_official_one_and_would_notice():
    assert SARIF.schema["title"] == "Static Analysis Results Format (SARIF) Version 2.1.0 JSON Schema"
    jsonschema.Draft7Validator.check_schema(SARIF.schema)
    log = to_sarif([FINDING], RULES, root=Path(), version="1")
    for spoil in (
        lambda run: run.update(results={}),
        lambda run: run["results"][0].update(level="fatal"),
        lambda run: run["results"][0].pop("message"),
        lambda run: run["results"][0].update(ruleIndex="0"),
        lambda run: run["tool"]["driver"].update(surname="x"),
    ):
        spoilt = json.loads(json.dumps(log))
        spoil(spoilt["runs"][0])
        assert not SARIF.is_valid(spoilt)


def test_no_network_is_needed_for_the_schema(monkeypatch):
    monkeypatch.setattr("socket.socket", None)
    assert schema("sarif-2.1.0.json") == SARIF.schema


def test_no_findings_and_no_rules_are_a_log_as_well():
    assert valid([])["results"] == []
    assert valid([], rules=())["tool"]["driver"]["rules"] == []


def test_the_driver_names_the_tool_and_all_rules():
    driver = valid([])["tool"]["driver"]
    assert (driver["name"], driver["version"]) == ("evenkeel", "1.2.3")
    assert [rule["id"] for rule in driver["rules"]] == ["EK101", "EK201", "EK302"]
    command_line = (
        "\n\n## On the command line\n`evenkeel explain EK201` shows this with a bad and a good example. `evenkeel fix "
        "TARGET --input SHAPE --guideline li2018 --diff` prints the edits as a patch, or in words, with TARGET and "
        "SHAPE as for `evenkeel lint`."
    )
    assert driver["rules"][1] == {
        "id": "EK201",
        "name": "DropoutBeforeNorm",
        "shortDescription": {"text": "dropout before a norm."},
        "fullDescription": {"text": "Finds dropouts that feed a norm, however far."},
        "help": {"text": f"{TEXT.strip()}{command_line}", "markdown": f"{TEXT.strip()}{command_line}"},
        "defaultConfiguration": {"level": "warning"},
        "properties": {"tags": ["li2018"]},
    }


@pytest.mark.parametrize(
    "text", [None, "", "EK201", "EK201: short.", "EK201: long.\n\n" + "word " * 999, "EK201:\n\n## A"]
)
def test_a_rule_with_any_documentation_is_described(text):
    (rule,) = valid([], rules=[make_rule(text=text)])["tool"]["driver"]["rules"]
    assert rule["shortDescription"]["text"] in ("short.", "long.", "dropout-before-norm")


def test_all_rules_of_evenkeel_are_described():
    from evenkeel.linting.rules import ALL

    described = valid([], rules=ALL)["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in described] == [rule.code for rule in ALL]
    assert [rule["id"] for rule in described if "#" in rule["fullDescription"]["text"][:1]] == []


def test_a_result_says_what_the_finding_says():
    said = result(FINDING)
    assert (said["ruleId"], said["ruleIndex"]) == ("EK201", 1)
    assert said["message"]["text"] == "layer1.0.drop: dropout p=0.5 feeds layer1.0.bn. Move it."
    assert said["properties"] == {
        "shift": 0.8,
        "inherited": None,
        "norm": "layer1.0.bn",
        "guideline": "li2018",
        "edits": [],
    }
    (location,) = said["locations"]
    assert location["physicalLocation"] == {
        "artifactLocation": {"uri": "net.py", "uriBaseId": "%SRCROOT%"},
        "region": {"startLine": 7},
    }
    assert location["logicalLocations"] == [{"fullyQualifiedName": "layer1.0.drop", "kind": "module"}]


def test_edits_are_told_in_words():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.BatchNorm1d(2))
    graph = ek.trace(model, torch.ones(2, 2))
    edits = (Move(graph["1"], graph["2"], "after"), Remove(graph["1"]))
    said = result(replace(Finding.at(graph["1"], "A.", "B.", *edits), code="EK201"))
    assert said["properties"]["edits"] == [str(edit) for edit in edits]
    assert said["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] == "1"


@pytest.mark.parametrize(
    ("guideline", "shift", "level"),
    [
        ("li2018", None, "warning"),
        ("li2018", 1.0, "warning"),
        ("li2018", 1.5, "warning"),
        ("li2018", 1.51, "error"),
        ("li2018", 1 / 1.49, "warning"),
        ("kim2023", 1 / 1.51, "error"),
        ("hendrycks2016", 0.0, "error"),
        ("hendrycks2016", math.inf, "error"),
        ("hendrycks2016", math.nan, "warning"),
        ("chen2019", None, "note"),
        ("chen2019", 9.0, "note"),
    ],
)
def test_the_level_follows_the_folded_shift(guideline, shift, level):
    said = result(replace(FINDING, guideline=guideline, shift=shift))
    assert said["level"] == level
    assert said["properties"]["shift"] == (shift if shift is not None and math.isfinite(shift) else None)


def test_a_rule_that_was_not_given_is_told():
    with pytest.raises(EvenkeelError, match=r"layer1.0.drop: EK999 is of none of the 3 rules given: give its rule"):
        to_sarif([replace(FINDING, code="EK999")], RULES, root=Path(), version="1")


@pytest.mark.parametrize("name", ["net.py", "a b/größe #1.py", "100%/a?b.py", "c:/net.py", "~/net.py", "a\\b.py"])
def test_a_file_under_the_root_is_relative_to_it(tmp_path, name):
    if os.name == "nt" and set(name) & set('?:"\\'):
        pytest.skip("no name for a file on Windows")
    said = artifact(str(tmp_path / name), root=tmp_path)
    assert unquote(said["uri"]) == name and said["uriBaseId"] == "%SRCROOT%"
    assert ":" not in said["uri"], "what stands before a colon would be a scheme"


def test_a_file_elsewhere_has_an_absolute_address(tmp_path):
    said = artifact(str(tmp_path / "other root" / "nét.py"), root=tmp_path / "root")
    assert said == {"uri": (tmp_path / "other root" / "nét.py").resolve().as_uri()}
    assert "uriBaseId" not in artifact(str(tmp_path / "rooted" / "net.py"), root=tmp_path / "root")
    assert "uriBaseId" not in artifact(str(tmp_path / "root" / ".." / "net.py"), root=tmp_path / "root")


def test_relative_names_roots_and_links_are_followed(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "net.py").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    for file in ("real/net.py", "link/net.py", str(tmp_path / "link" / "net.py")):
        assert artifact(file)["uri"] == "real/net.py"
        assert artifact(file, root=Path("link"))["uri"] == "net.py"


@pytest.mark.skipif(os.name == "nt", reason="there, such a name is looked up")
@pytest.mark.parametrize(
    ("file", "uri"),
    [
        (r"C:\code\my nets\net.py", "file:///C:/code/my%20nets/net.py"),
        ("d:/größe.py", "file:///d:/gr%C3%B6%C3%9Fe.py"),
    ],
)
def test_a_name_from_windows_is_an_absolute_address(file, uri):
    assert artifact(file) == {"uri": uri}


@pytest.mark.parametrize("file", [None, "<stdin>", "<eval_with_key>.3"])
def test_what_no_file_holds_is_located_all_the_same(file):
    said = result(replace(FINDING, path="0.drop#2", file=file, line=None))
    assert said["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "layers/0.drop%232", "uriBaseId": "%SRCROOT%"},
        "region": {"startLine": 1},
    }
    assert said["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] == "0.drop#2"


def test_fingerprints_survive_moves_of_lines_and_tell_findings_apart():
    base = result(FINDING)["partialFingerprints"]
    moved = replace(FINDING, line=99, message="dropout p=0.5 feeds layer1.0.bn.", file="other.py", shift=0.7)
    assert result(moved)["partialFingerprints"] == base
    here, there = (replace(FINDING, message=f"it feeds bn (net.py:{line}), see line {line}.") for line in (7, 1234))
    assert result(here)["partialFingerprints"] == result(there)["partialFingerprints"] != base
    others = [
        replace(FINDING, code="EK101"),
        replace(FINDING, path="layer2.0.drop"),
        replace(FINDING, message="dropout p=0.5 feeds layer2.0.bn."),
    ]
    prints = {result(other)["partialFingerprints"]["evenkeel/v1"] for other in [FINDING, *others]}
    assert len(prints) == 4


def test_githubs_own_fingerprint_is_given_only_where_its_uploader_has_no_line_to_hash(tmp_path):
    """It warns of every other hash of a line that it can read."""
    assert set(result(FINDING)["partialFingerprints"]) == {"evenkeel/v1"}
    for file in (None, str(tmp_path / "net.py")):
        prints = result(replace(FINDING, file=file))["partialFingerprints"]
        assert prints["primaryLocationLineHash"] == prints["evenkeel/v1"]


def test_the_log_is_the_same_on_every_machine(tmp_path):
    logs = []
    for root in (tmp_path / "a", tmp_path / "b"):
        (root / "pack").mkdir(parents=True)
        finding = replace(FINDING, file=str(root / "pack" / "net.py"))
        logs.append(to_sarif([finding], RULES, root=root, version="1"))
    assert logs[0] == logs[1]
    assert str(tmp_path) not in json.dumps(logs)


words = st.text(st.characters(), max_size=12)
files = st.none() | st.just("<stdin>") | st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=12)


@given(
    st.builds(
        Finding,
        words,
        words.map("x".__add__),
        words,
        code=st.sampled_from(["EK101", "EK201", "EK302"]),
        guideline=st.sampled_from(["li2018", "chen2019"]),
        file=files,
        line=st.none() | st.integers(1, 10**6),
        norm=st.none() | words,
        shift=st.none() | st.floats(min_value=0),
    )
)
def test_any_finding_gives_a_valid_log(finding):
    valid([finding])


def test_paths_that_no_encoding_holds_do_no_harm():
    finding = replace(FINDING, path="b\udcff", file=os.fsdecode(b"/tmp/\xff.py") if os.name != "nt" else None)
    assert result(finding)["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert result(replace(finding, file=None))["partialFingerprints"]


def test_a_finding_of_a_real_model_points_at_its_source():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(x)

    graph = ek.trace(Net(), torch.ones(2, 2))
    said = result(replace(Finding.at(graph["drop"], "A.", "B."), code="EK201"), root=Path(__file__).parent)
    place = SimpleNamespace(**said["locations"][0]["physicalLocation"])
    assert place.artifactLocation["uri"] == Path(__file__).name
    line = Path(__file__).read_text(encoding="utf-8").splitlines()[place.region["startLine"] - 1]
    assert line.strip() == "return self.drop(x)"
