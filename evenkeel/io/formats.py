"""Files that hold a network, and are no weights file: what they are, and how to get the weights out of them."""

from __future__ import annotations

import re
import zipfile
from contextlib import suppress
from pathlib import Path

_ONNX = re.compile(rb"\x08[\x01-\x14](\x12|\x1a|\x22|\x28|\x32|\x3a|\x42)")  # its version, then another field of it
_PROGRAM = "torch.save(m.state_dict(), 'weights.pt')"
_IN_PYTHON = f"in Python, m = {{}}; {_PROGRAM} gives a weights file"
_SCRIPTED = _IN_PYTHON.format("torch.jit.load({name!r})")
_EXPORTED = _IN_PYTHON.format("torch.export.load({name!r}).module()")
_ELSEWHERE = "read it with the library that wrote it, and save the model's state_dict() with torch.save"


def foreign_format(path: Path) -> str:
    """What a file is that is no weights file of torch's, and what to do about it; "" if that is not known.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "net.bin").write_bytes(b"GGUF" + bytes(8))
    ...     foreign_format(Path(folder, "net.bin")).partition(":")[0]
    'a GGUF file, no weights file of torch'
    """
    with suppress(OSError, zipfile.BadZipFile):
        if zipfile.is_zipfile(path):
            return _of_archive(path)
        with path.open("rb") as file:
            return _of_bytes(file.read(16), path.suffix.lower())
    return ""


def _of_archive(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    parts = {part for name in names for part in name.split("/")}
    if "constants.pkl" in parts and "code" in parts:
        advice = _SCRIPTED.format(name=path.name)
        return f"a TorchScript file, which holds code beside the weights: {advice}"
    if any("exported_program" in part or part == "archive_format" for part in parts) or path.suffix == ".pt2":
        return f"a file of torch.export, which holds a program beside the weights: {_EXPORTED.format(name=path.name)}"
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of numpy arrays, no weights file of torch: torch.save a dictionary of tensors made of them"
    return ""


def _of_bytes(begin: bytes, suffix: str) -> str:
    if begin.startswith(b"GGUF"):
        return f"a GGUF file, no weights file of torch: {_ELSEWHERE}"
    if begin.startswith(b"\x89HDF"):
        return f"an HDF5 file, such as Keras writes, no weights file of torch: {_ELSEWHERE}"
    if suffix == ".onnx" or _ONNX.match(begin):
        return (
            "an ONNX file, which holds a graph beside the weights, with norms often folded into convolutions: use the "
            "checkpoint that it was exported from"
        )
    return ""
