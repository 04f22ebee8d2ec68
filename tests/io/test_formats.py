"""Files that are no weights files are called what they are, with the way to the weights."""

import numpy as np
import pytest
import torch
from torch import nn

from evenkeel.errors import EvenkeelError
from evenkeel.io.checkpoints import Checkpoint
from evenkeel.io.formats import foreign_format

ONNX = b"\x08\x08\x12\x07pytorch\x1a\x052.6.0" + bytes(20)


def scripted(path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


def exported(path):
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), path)


FILES = {
    "scripted.pt": (scripted, "a TorchScript file", "torch.jit.load('scripted.pt')"),
    "exported.pt2": (exported, "a file of torch.export", "torch.export.load('exported.pt2').module()"),
    "net.onnx": (lambda path: path.write_bytes(ONNX), "an ONNX file", "exported from"),
    "net.bin": (lambda path: path.write_bytes(ONNX), "an ONNX file", "exported from"),
    "net.gguf": (lambda path: path.write_bytes(b"GGUF" + bytes(30)), "a GGUF file", "save the model's state_dict()"),
    "net.h5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(30)), "an HDF5 file", "save the model's"),
    "net.npz": (lambda path: np.savez(path, a=np.ones(2)), "an archive of numpy arrays", "dictionary of tensors"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_file_of_another_format_is_not_called_damaged(tmp_path, name):
    make, what, remedy = FILES[name]
    make(tmp_path / name)
    with pytest.raises(EvenkeelError) as caught:
        Checkpoint.read(tmp_path / name)
    message = str(caught.value)
    assert f"{name} is {what}" in message and remedy in message
    assert "damaged" not in message and len(message.splitlines()) == 1


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_the_way_to_the_weights_of_a_scripted_file_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scripted(tmp_path / "net.pt")
    exec(foreign_format(tmp_path / "net.pt").partition("in Python, ")[2].partition(" gives")[0], {"torch": torch})
    assert set(Checkpoint.read("weights.pt").state) == {"weight", "bias"}


@pytest.mark.parametrize("content", [b"", b"PK", b"junk" * 9, b"\x80\x02}q\x00."])
def test_nothing_is_said_of_what_is_not_known(tmp_path, content):
    (tmp_path / "net.pt").write_bytes(content)
    assert foreign_format(tmp_path / "net.pt") == ""
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "weights.pt")
    assert foreign_format(tmp_path / "weights.pt") == foreign_format(tmp_path / "gone.pt") == ""
