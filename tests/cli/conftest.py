import importlib
import sys

import pytest
import torch
from commands import NETS


@pytest.fixture(autouse=True)
def _width(monkeypatch):
    """Tables as wide as where no terminal says how wide it is; pytest-xdist sets this for its workers."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A working directory with a module of a text and a graph net, and checkpoints of both, trained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVENKEEL_DATA", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "anynets.py").write_text(NETS.lstrip())
    monkeypatch.delitem(sys.modules, "anynets", raising=False)
    importlib.invalidate_caches()
    module = importlib.import_module("anynets")
    torch.manual_seed(0)
    text, graph = module.Text(), module.Graph()
    for _ in range(10):
        for batch in module.text_batches():
            module.run_text(text, batch)
        for batch in module.graph_batches():
            graph(**batch)
    torch.save(text.state_dict(), tmp_path / "text.pt")
    torch.save(graph.state_dict(), tmp_path / "graph.pt")
    torch.save(text, tmp_path / "whole.pt")
    yield tmp_path
    sys.modules.pop("anynets", None)
