"""The field report: its page is what its rows say, its pictures say the order, and its shifts are what they are."""

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import evenkeel as ek
from benchmarks.field import measurement, rows
from benchmarks.field.catalogue import DOMAINS, find
from benchmarks.field.model import FieldModel, dense
from benchmarks.field.page import page_of

ROOT = Path(__file__).parents[1]
MODELS = [model for models in DOMAINS.values() for model in models]

# Of blocks written anew, what is published of their order.
ORDERS = {
    "PointNet (yanx27)": "W D N A W o",
    "3d-pose-baseline": "i W N A D [[W N A D]x2 +]x2 W o",
    "VideoPose3D": "i W N A D [[W N A D]x2 +]x2 W o",
    "WRN-16-2, dropout before the norm": "N A W D N A W +",
    "WRN-16-2, dropout before the weights": "N A W N A D W +",
    "ArcFace head E": "N D W N o",
    "Jasper": "i W N [[A D W N]x3 W N +]x2 A D W o",
    "CREPE": "i [[W A N P D]x3]x2 W A o",
    "HeartENN": "i [[W A]x2 P N D]x2",
    "ConvE": "N D W N A D W D N A W o",
    "MLPLayers (RecBole)": "i [D W N A]x3 W o",
    "scVI encoder, three layers": "i [W N A D]x3 W o",
}


def saved():
    known = rows.read_rows(ROOT / rows.OUT)
    rows.judge_(known, rows.read_verdicts(ROOT / rows.VERDICTS))
    return known


def test_the_page_is_what_the_rows_say():
    page = (ROOT / "docs" / "field.md").read_text(encoding="utf-8")
    assert page == page_of(saved()), "run `python -m benchmarks.field --page docs/field.md`"


def test_the_catalogue():
    assert len({model.name for model in MODELS}) == len(MODELS) >= 60
    assert len({model.library for model in MODELS}) >= 25
    for model in MODELS:
        assert bool(model.anew) != bool(model.requires), model.name


def test_what_is_pinned_is_what_is_asked_for():
    lines = (ROOT / "benchmarks" / "requirements-field.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line}
    at_hand = {"torchvision", "timm", "transformers"}  # which the tests install
    assert {model.library for model in MODELS if model.requires} - at_hand <= pinned


def test_every_verdict_is_of_a_finding_that_there_is():
    known = saved()
    found = {(name, f["code"], f["path"]) for name, row in known.items() for f in row.get("findings", [])}
    for name, codes in rows.read_verdicts(ROOT / rows.VERDICTS).items():
        for code, paths in codes.items():
            assert set(paths.values()) <= {"right", "wrong"}
            assert name not in known or {(name, code, path) for path in paths} <= found


def test_a_verdict_survives_a_new_run(tmp_path):
    finding = {"guideline": "li2018", "code": "EK202", "path": "a.drop"}
    row = {"model": "DGCNN", "findings": [dict(finding), finding | {"path": "b.drop"}]}
    rows.save({"DGCNN": row}, {"DGCNN": {"EK202": {"a.drop": "wrong"}}}, tmp_path / "field.json")
    read = rows.read_rows(tmp_path / "field.json")["DGCNN"]
    assert [f["verdict"] for f in read["findings"]] == ["wrong", rows.UNREAD]


def test_rows_are_json_without_nan(tmp_path):
    rows.save({"DGCNN": {"model": "DGCNN", "ratio": float("nan")}}, {}, tmp_path / "field.json")
    assert "NaN" not in (tmp_path / "field.json").read_text(encoding="utf-8")
    assert rows.read_rows(tmp_path / "field.json")["DGCNN"]["ratio"] is None


def expanded(text):
    """A picture with every repeat written out."""
    while "[" in text:
        text = re.sub(r"\[([^][]*)\]x(\d+)", lambda m: " ".join([m[1]] * int(m[2])), text)
    return text


@given(st.lists(st.sampled_from("WNAD"), max_size=24))
def test_repeats_lose_nothing(letters):
    assert expanded(measurement.repeats(letters)) == " ".join(letters)


@pytest.mark.parametrize("name", ORDERS)
def test_the_order_is_the_published_one(name):
    net, example = find(name).build()
    assert ORDERS[name] in measurement.picture(ek.trace(net, example))


def test_ways_of_a_long_model_go_from_dropouts_to_their_norms():
    net = nn.Sequential(
        nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Dropout(0.5)
    )
    assert measurement.ways(ek.trace(net, torch.ones(2, 4))) == ["D W A N (1x)"]
    assert measurement.ways(ek.trace(net[4:], torch.ones(2, 4))) == ["no dropout reaches a norm"]


def test_settled_statistics_are_those_of_passes_with_dropout_on():
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(8, momentum=0.3))
    data = measurement.batches_like(nn.Identity(), torch.zeros(4096, 8))
    measurement.settle_(net, data)
    assert net[1].momentum == 0.3
    ratio = ek.variance_shift(net, data, forward=measurement.run)[0].ratio
    assert ratio == pytest.approx(0.5, abs=0.02)  # var x / (var x / keep)


def test_momenta_come_back_when_a_pass_raises():
    net = nn.Sequential(nn.BatchNorm1d(8, momentum=0.3), nn.Linear(5, 2))
    with pytest.raises(RuntimeError):
        measurement.settle_(net, [torch.zeros(2, 8)])
    assert net[0].momentum == 0.3


def test_batches_keep_what_are_no_floats():
    words, data = torch.arange(6), measurement.batches_like(nn.Bilinear(1, 1, 1), (torch.zeros(2, 3), torch.arange(6)))
    assert len({float(x.sum()) for x, _ in data}) == len(data)
    assert all(torch.equal(index, words) for _, index in data)


def test_a_model_that_cannot_be_built_is_a_row_with_the_reason():
    def build():
        raise ValueError("no such size")

    row = measurement.measure(FieldModel("x", "y", "", build, anew="z"), None)
    assert row["not built"] == "ValueError: no such size (test_field.py)"
    assert "order" not in row


@pytest.mark.slow
def test_a_row_holds_what_lint_fix_and_both_shifts_say():
    def build():
        return nn.Sequential(dense(20, 32, 32, p=0.5), nn.Linear(32, 2)), torch.zeros(64, 20)

    row = json.loads(json.dumps(measurement.measure(FieldModel("x", "y", ".5", build, anew="there:1"), None)))
    assert row["order"] == "i [W N A D]x2 W o"
    (finding,) = [f for f in row["findings"] if f["guideline"] == "li2018"]
    assert (finding["code"], finding["path"], finding["where"], finding["norm"]) == ("EK202", "0.3", "there:1", "0.5")
    assert row["fix"] == {"li2018": {"fixed": 1, "left": []}}
    measured, predicted = (row[name]["ratios"]["0.5"] for name in ("measured", "predicted"))
    assert measured == pytest.approx(predicted, rel=0.15) and measured < 0.8


def test_a_checkpoint_named_as_the_model_is_predicted(tmp_path):
    def build():
        return nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(8)), torch.zeros(16, 8)

    model = FieldModel("x", "y", ".5", build, anew="z")
    net, _ = build()
    net[1].running_var.fill_(2.0)
    net[1].num_batches_tracked.fill_(100)
    torch.save(net.state_dict(), tmp_path / "x.pt")
    assert measurement.trained(model, tmp_path)["predicted"]["ratios"]["1"] == pytest.approx(0.5, abs=0.02)
    assert measurement.trained(model, None) is None


def test_batches_are_larger_where_the_net_takes_that():
    torch.manual_seed(0)
    maps = measurement.batches_like(nn.BatchNorm2d(3), torch.zeros(2, 3, 16, 16))
    assert {tuple(x.shape) for x in maps} == {(32, 3, 16, 16)} and maps[0].std() == pytest.approx(1)
    rows = maps[0][..., 1:] - maps[0][..., :-1]
    assert rows.std() < 0.9  # smooth, where white noise has 1.4
    fixed = measurement.batches_like(nn.Unflatten(0, (2, 1)), torch.zeros(2, 3))
    assert {tuple(x.shape) for x in fixed} == {(2, 3)} and len(fixed) == 8
    (tokens, *_) = measurement.batches_like(nn.Embedding(9, 2), torch.tensor([[1, 2], [3, 3]]))
    assert tokens.shape == (32, 2) and {*map(tuple, tokens.tolist())} == {(1, 2), (3, 3)}
