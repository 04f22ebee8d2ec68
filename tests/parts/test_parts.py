"""Files of parts and starts: read back as they were, and what is none refused."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import evenkeel as ek


def a_part(name="a", start=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.InstanceNorm1d(4, track_running_stats=True))

    def forward(model, batch):
        return model[2](model[1](model[0](batch))[:, :, None].expand(-1, -1, 3))

    return ek.measure_part(model, torch.randn(3, 16, 3), name=name, start=start, forward=forward)


def test_a_part_is_read_back_as_it_was(tmp_path):
    part = a_part()
    part.save(tmp_path / "a.part")
    read = ek.load_part(str(tmp_path / "a.part"))
    assert read.fingerprint == part.fingerprint and read.start.fingerprint == part.start.fingerprint
    assert {path: s.pooled for path, s in read.sums.items()} == {"1": True, "2": False}
    assert list(read.sums) == list(part.sums)
    for name in ("name", "batches", "samples", "found", "untouched", "entangled", "is_random"):
        assert getattr(read, name) == getattr(part, name)
    assert (read.start.weights, read.start.round, read.start.off) == (part.start.weights, 0, None)
    assert [path.name for path in tmp_path.iterdir()] == ["a.part"]


def test_a_start_is_read_back_as_it_was(tmp_path):
    start = ek.Start("w", 3, {"": (torch.zeros(2), torch.ones(2)), "bn": (torch.ones(2).half(), torch.ones(2))}, 0.5)
    start.save(tmp_path / "next")
    read = ek.load_start(tmp_path / "next")
    assert read.fingerprint == start.fingerprint and (read.weights, read.round, read.off) == ("w", 3, 0.5)


def test_a_part_holds_sums_and_no_samples(tmp_path):
    part = a_part()
    part.save(tmp_path / "a.part")
    shapes = {name.rpartition("/")[2]: tuple(t.shape) for name, t in load_file(tmp_path / "a.part").items()}
    assert set(shapes) == {"mean", "var", "center", "channels", "all"}
    assert shapes["channels"][1:] == (6, 4) and shapes["channels"][0] <= 4


def test_what_is_no_part_is_refused(tmp_path):
    def refusal(load, path):
        with pytest.raises(ek.EvenkeelError) as caught:
            load(path)
        return str(caught.value)

    assert "does not exist" in refusal(ek.load_part, tmp_path / "a")
    assert "is no file" in refusal(ek.load_part, tmp_path)
    (tmp_path / "a").write_bytes(b"PK nothing")
    assert "damaged" in refusal(ek.load_part, tmp_path / "a")
    save_file({"x": torch.ones(1)}, tmp_path / "weights")
    assert "other tensors are in it" in refusal(ek.load_part, tmp_path / "weights")
    part = a_part()
    part.save(tmp_path / "part")
    part.start.save(tmp_path / "start")
    assert "it is a start" in refusal(ek.load_part, tmp_path / "start")
    assert "it is a part" in refusal(ek.load_start, tmp_path / "part")
    tensors = load_file(tmp_path / "part")

    def written(tensors, **about):
        header = {"version": 1, "name": "", "batches": 1, "samples": 1, "found": "", "untouched": {}, "entangled": []}
        header |= {"is_random": False, "sums": {"1": True}, "start": {"weights": "", "round": 0, "off": None}} | about
        save_file(tensors, tmp_path / "made", {"evenkeel.part": json.dumps(header)})
        return tmp_path / "made"

    assert ek.load_part(written(tensors)).samples == 1
    assert "version 9" in refusal(ek.load_part, written(tensors, version=9))
    assert "damaged" in refusal(ek.load_part, written(tensors, sums={"9": True}))
    assert "damaged" in refusal(ek.load_part, written(tensors, start={}))
    assert "not finite" in refusal(ek.load_part, written(tensors | {"1/channels": tensors["1/channels"] * torch.nan}))
    assert "not finite" in refusal(ek.load_part, written(tensors | {"1/mean": tensors["1/mean"] * torch.inf}))


def test_no_folder_no_file(tmp_path):
    with pytest.raises(ek.EvenkeelError, match="there is no folder"):
        a_part().save(tmp_path / "none" / "a.part")


def test_a_file_that_was_changed_is_noticed(tmp_path):
    part = a_part()
    part.save(tmp_path / "a")
    part.start.save(tmp_path / "b")
    for path, load in ((tmp_path / "a", ek.load_part), (tmp_path / "b", ek.load_start)):
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            header = file.metadata()
        for name in tensors:
            save_file(tensors | {name: tensors[name] * 1.5 + 1}, tmp_path / "c", header)
            with pytest.raises(ek.EvenkeelError, match="damaged"):
                load(tmp_path / "c")


@pytest.mark.parametrize(
    "changed",
    [
        {"samples": -5},
        {"samples": "9"},
        {"name": None},
        {"untouched": [1]},
        {"untouched": {"1": 2}},
        {"is_random": 3},
        {"start": {"weights": "", "round": "x", "off": None}},
        {"start": {"weights": "", "round": 0, "off": "x"}},
    ],
)
def test_what_no_part_says_is_refused_when_it_is_read(tmp_path, changed):
    part = a_part()
    part.save(tmp_path / "a")
    with safe_open(tmp_path / "a", "pt") as file:
        header = json.loads(file.metadata()["evenkeel.part"])
    save_file(load_file(tmp_path / "a"), tmp_path / "b", {"evenkeel.part": json.dumps(header | changed)})
    with pytest.raises(ek.EvenkeelError, match="damaged"):
        ek.load_part(tmp_path / "b")
