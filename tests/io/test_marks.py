"""A repaired file is known as repaired, by the verbs, and is to torch and safetensors what it was before."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import evenkeel as ek
from evenkeel.errors import EvenkeelError
from evenkeel.io.checkpoints import Checkpoint
from evenkeel.io.marks import Marks
from evenkeel.model.buffers import is_as_written, is_mean_matched, trained_buffer


def build():
    hidden = [nn.Linear(8, 32), nn.Dropout(0.5), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4), nn.BatchNorm1d(4)]
    return nn.Sequential(*hidden, nn.Linear(4, 2))


EXAMPLE = torch.zeros(2, 8)


@pytest.fixture
def data():
    return [torch.randn(64, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


@pytest.fixture
def trained(data):
    torch.manual_seed(0)
    model = build()
    for _ in range(30):
        for batch in data:
            model(batch)
    return model


@pytest.fixture(params=["net.pt", "net.safetensors"])
def repaired(request, trained, data, tmp_path):
    """A repaired file, the model that was written to it, and what training had left."""
    torch.save({"model": trained.state_dict(), "epoch": 3}, tmp_path / "old.pt")
    checkpoint = Checkpoint.read(tmp_path / "old.pt")
    left = {key: value.clone() for key, value in trained.state_dict().items()}
    ek.reestimate_(trained, data, match="variance")
    checkpoint.write(tmp_path / request.param, trained)
    return tmp_path / request.param, trained, left


def plainly(path):
    """The state dict as torch or safetensors read it, without evenkeel."""
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)["model"]


def test_torch_loads_it_strictly_and_finds_no_key_of_ours(repaired):
    path, model, left = repaired
    state = plainly(path)
    assert set(state) == set(left) and all(isinstance(value, torch.Tensor) for value in state.values())
    loaded = build()
    assert str(loaded.load_state_dict(state, strict=True)) == "<All keys matched successfully>"
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
    )
    again = build()  # by assignment, and with the modules' own versions of their layouts
    again.load_state_dict(state, strict=True, assign=True)
    assert torch.equal(again.eval()(torch.ones(3, 8)), model.eval()(torch.ones(3, 8)))


def test_what_lies_beside_the_state_dict_stays(repaired):
    path, _, _ = repaired
    if path.suffix == ".pt":
        assert torch.load(path, weights_only=True)["epoch"] == 3
    else:
        with safe_open(path, "pt") as file:
            assert file.metadata()["format"] == "pt" and set(file.keys()) == set(build().state_dict())


def test_the_verbs_know_it_as_repaired(repaired, data):
    path, _, _ = repaired
    model = ek.load_(build(), path)
    assert all(is_as_written(model[i], "running_var") for i in (2, 5))
    assert ek.predict_shift(model, EXAMPLE).worst == 1
    assert any("repaired: they store what" in note for note in ek.variance_shift(model, data).notes)
    with pytest.raises(EvenkeelError, match="nothing is left to correct"):
        ek.correct_(model, EXAMPLE)
    findings = ek.lint(model, EXAMPLE, guideline="li2018")
    assert findings == [] and findings.notes[0].startswith("EK201 1 is no finding: the norm 2 is repaired")
    unmarked = build()
    unmarked.load_state_dict(plainly(path))
    assert [finding.code for finding in ek.lint(unmarked, EXAMPLE, guideline="li2018")] == ["EK201"]


def test_what_training_left_is_there_for_noise_and_for_undo(repaired, data):
    path, _, left = repaired
    model = ek.load_(build(), path)
    for index in (2, 5):
        for name in ("running_mean", "running_var"):
            assert torch.equal(trained_buffer(model[index], name), left[f"{index}.{name}"])
    torch.manual_seed(1)
    with ek.noisy(model), torch.no_grad():
        noisy = model(data[0])
    original = build()
    original.load_state_dict(left)
    torch.manual_seed(1)
    with ek.noisy(original), torch.no_grad():
        assert torch.equal(noisy, original(data[0]))
    assert ek.undo_(model) == ("2", "5")
    assert all(torch.equal(value, left[key]) for key, value in model.state_dict().items())
    assert not is_as_written(model[2]) and ek.undo_(model) == ()
    assert ek.predict_shift(model, EXAMPLE).worst > 1.2


def test_a_file_written_without_a_repair_has_no_mark(repaired, tmp_path):
    path, _, _ = repaired
    checkpoint, model = Checkpoint.read(path), build()
    checkpoint.apply_(model)
    ek.undo_(model)
    checkpoint.write(tmp_path / f"undone{path.suffix}", model)
    assert Checkpoint.read(tmp_path / f"undone{path.suffix}").marks == Marks()


def test_a_mark_over_other_numbers_has_no_effect(repaired):
    path, _, _ = repaired
    checkpoint, model = Checkpoint.read(path), build()
    checkpoint.apply_(model)
    model[2].running_var.mul_(2)
    Marks.in_state(checkpoint.state).apply_(model)
    assert not is_as_written(model[2]) and trained_buffer(model[2], "running_var").equal(model[2].running_var)


def test_matched_means_are_known_after_a_conversion(trained, data, tmp_path):
    ek.reestimate_(trained, data, match="mean")
    Checkpoint.of(trained).write(tmp_path / "net.pt", trained)
    model = ek.load_(build(), tmp_path / "net.pt")
    Checkpoint.read(tmp_path / "net.pt").write(tmp_path / "net.safetensors", model)
    assert is_mean_matched(ek.load_(build(), tmp_path / "net.safetensors")[5])


def test_files_of_earlier_versions_have_marks_but_not_what_training_left(trained, data, tmp_path):
    ek.reestimate_(trained, data, match="variance")
    marks = Marks(Marks.of(trained).written)
    torch.save(marks.beside(trained.state_dict()), tmp_path / "net.pt")
    model = ek.load_(build(), tmp_path / "net.pt")
    before = model[2].running_var.clone()
    assert is_as_written(model[2])
    with pytest.raises(ek.ModelError, match="what training left in '2' is not known, nor in 1 more"):
        ek.undo_(model)
    with pytest.raises(ek.ModelError, match="not known here"), ek.noisy(model):
        pass
    assert torch.equal(model[2].running_var, before)


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "{", '{"2": 3}', '{"2": {"running_var": "?"}}', '{"2": {"running_var": 3}}']
)
def test_marks_of_another_origin_are_passed_over(text):
    found = Marks.in_header({"evenkeel": json.dumps({"2": {"running_var": "x"}}), "evenkeel.trained": text})
    assert found == Marks()
    state = nn.Linear(2, 2).state_dict()
    state._metadata["evenkeel"] = state._metadata["evenkeel.trained"] = text
    assert Marks.in_state(state) == Marks()
