"""repair --reference matches a merged checkpoint to those that it was merged from."""

import importlib
import json
import sys

import pytest
import torch
from commands import run

import evenkeel as ek

NETS = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

def batches():
    torch.manual_seed(1)
    return [(torch.randn(32, 6), torch.randint(0, 3, (32,))) for _ in range(3)]
"""
COMMAND = ("repair", "mergenets:net", "--weights", "merged.pt", "--data", "mergenets:batches")
BOTH = ("--reference", "a.pt", "--reference", "b.safetensors")


@pytest.fixture
def merged(nets, monkeypatch):
    """Checkpoints of two nets and of their mean, in the working directory."""
    from safetensors.torch import save_file

    (nets / "mergenets.py").write_text(NETS)
    module = importlib.import_module("mergenets")
    torch.manual_seed(0)
    a, b = module.net(), module.net()
    for x, _ in module.batches():
        a(x), b(x)
    torch.save({"state_dict": a.state_dict(), "epoch": 3}, "a.pt")
    save_file(b.state_dict(), "b.safetensors")
    other = b.state_dict()
    mean = {
        key: (value + other[key]) / 2 if value.is_floating_point() else value for key, value in a.state_dict().items()
    }
    torch.save({"state_dict": mean, "epoch": 5}, "merged.pt")
    model = module.net()
    model.load_state_dict(mean)
    yield model, [a, b], module.batches()
    sys.modules.pop("mergenets", None)


@pytest.mark.parametrize("share", [(), ("--share", "0.25", "--share", "0.75")])
def test_it_writes_what_match_gives(merged, capsys, share):
    model, points, batches = merged
    code, out, err = run(capsys, *COMMAND, *BOTH, *share, "--out", "new.pt")
    assert (code, err) == (0, "") and "matched to 2 end points, 96 samples" in out and "written: new.pt" in out
    assert "1 norm re-estimated" in out and "ratio before" in out
    new = torch.load("new.pt", weights_only=True)
    done = ek.match_(model, points, batches, weights=[0.25, 0.75] if share else None)
    assert new["epoch"] == 5 and [row.path for row in done] == ["0", "5"]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(new["state_dict"][name], value, msg=name)
    done.undo()
    old = torch.load("merged.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(old[name], value) for name, value in model.state_dict().items())


def test_as_data_and_as_a_page(merged, capsys):
    code, out, _ = run(capsys, *COMMAND, *BOTH, "--out", "new.safetensors", "--html", "page.html", "--json")
    found = json.loads(out)
    assert code == 0 and [row["path"] for row in found["rows"]] == ["0", "5"] and found["references"] == 2
    with open("page.html", encoding="utf-8") as page:
        assert "matched to 2 end points" in page.read()


def test_held_out_data_decide(merged, capsys, nets):
    held = ("--held-out", "mergenets:batches", "--score", "mergenets:worse")
    with open("mergenets.py", "a", encoding="utf-8") as file:
        file.write("\ncalls = []\n\ndef worse(outputs, targets):\n    calls.append(0)\n    return float(len(calls))\n")
    importlib.reload(sys.modules["mergenets"])
    code, _, err = run(capsys, *COMMAND, *BOTH, *held, "--out", "new.pt")
    assert code == 2 and "nothing is written: the held-out loss gets no lower" in err and not (nets / "new.pt").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((*COMMAND, "--share", "1"), "there is no --reference"),
        ((*COMMAND[:4], *BOTH), "--reference needs --data"),
        ((*COMMAND, *BOTH, "--prior", "3"), "--prior does not go with --reference"),
        ((*COMMAND, *BOTH, "--match", "mean"), "--match does not go with --reference"),
        ((*COMMAND, *BOTH, "--share", "1"), "one for each of the 2 references"),
        ((*COMMAND, "--reference", "none.pt"), "none.pt does not exist"),
    ],
)
def test_what_does_not_go_together_writes_nothing(merged, capsys, nets, given, words):
    code, _, err = run(capsys, *given, "--out", "new.pt")
    assert code == 2 and words in err and not (nets / "new.pt").exists()
