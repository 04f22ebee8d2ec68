"""shift with data names the dropouts that shift without data names."""

import json

import torch
from commands import run
from torch import nn

import evenkeel as ek
from evenkeel.cli.shifting import blamed, measured

TEXT = ("shift", "anynets:Text", "--weights", "text.pt")


def test_data_or_not_the_causes_are_the_same(nets, capsys):
    (nets / "clean.py").write_text(
        "import anynets\n\n\ndef batches():\n    return [{k: b[k] for k in ('tokens', 'mask')} for b in "
        "anynets.text_batches()]\n"
    )
    without = run(capsys, *TEXT, "--example", "anynets:text_example", "--json")[1]
    with_data = run(capsys, *TEXT, "--data", "clean:batches", "--json")[1]
    (one,), (other,) = (json.loads(text)["rows"] for text in (without, with_data))
    assert [c["name"] for c in one["causes"]] == [c["name"] for c in other["causes"]] == ["drop"]
    assert abs(one["causes"][0]["percent"] - other["causes"][0]["percent"]) < 1 and other["why"]
    code, out, _ = run(capsys, *TEXT, "--data", "clean:batches")
    assert code == 0 and "because of" in out and "dropout drop" in out and out.count("drop p=0.3") <= 1


def trained():
    torch.manual_seed(0)
    hidden = [nn.Linear(8, 32), nn.Dropout(0.5), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8)]
    model = nn.Sequential(*hidden, nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
    data = [torch.randn(64, 8) for _ in range(5)]
    for batch in data * 10:
        model(batch)
    return model, data


def test_of_a_pair_the_labels_are_no_example():
    model, data = trained()
    report = measured(model, [(batch, torch.zeros(64)) for batch in data])
    assert [[layer.name for layer, _ in row.causes] for row in report] == [["1"], ["1"]]
    assert [row.ratio for row in report] == [row.ratio for row in ek.variance_shift(model, data)]


def test_where_nothing_can_be_predicted_that_is_said():
    model, data = trained()
    report = measured(model, data, example=torch.zeros(2, 9))
    assert not any(row.causes for row in report) and "which dropouts cause a shift is not known" in report.notes[-1]
    assert measured(model, data, forward=lambda net, batch: net(batch)).notes == ek.variance_shift(model, data).notes


def test_the_blame_is_shared_out_over_all_norms():
    model, data = trained()
    assert blamed(measured(model, data)) == "1 p=0.5: 100 %"
    model[1].p = 0.0
    assert blamed(ek.predict_shift(model, data[0])) == ""
