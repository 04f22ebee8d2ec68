"""Pages as a reader of HTML sees them: elements with their attributes and text."""

from __future__ import annotations

from html.parser import HTMLParser

import torch
from torch import nn

import evenkeel as ek

VOID = {"meta", "link", "img", "br", "input", "hr"}


class Reader(HTMLParser):
    """Reads a page, and refuses one whose elements do not close in order."""

    def __init__(self, text):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def of(self, tag, **wanted):
        return [found for name, found in self.elements if name == tag and wanted.items() <= found.items()]


class Block(nn.Module):
    """A residual block with dropout before its norm, as EK201 does not want it."""

    def __init__(self, width=8):
        super().__init__()
        self.fc, self.drop, self.norm = nn.Linear(width, width), nn.Dropout(0.4), nn.BatchNorm1d(width)

    def forward(self, x):
        return x + torch.relu(self.norm(self.drop(self.fc(x))))


def trained(depth=4, width=8):
    """A small net of residual blocks whose norms have seen data, and such data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, width), *(Block(width) for _ in range(depth)), nn.Linear(width, 2))
    data = [torch.randn(64, 6) for _ in range(4)]
    for _ in range(15):
        for batch in data:
            model(batch)
    return model, data


def page_of(report, tmp_path, **options):
    """What a report writes, read."""
    path = tmp_path / "page.html"
    report.save_html(path, **options)
    return Reader(path.read_text(encoding="utf-8"))


REPORTS = {
    "variance_shift": ek.variance_shift,
    "predict_shift": lambda model, data: ek.predict_shift(model, data[0]),
    "reestimate_": ek.reestimate_,
    "correct_": lambda model, data: ek.correct_(model, data[0], match="variance"),
    "check_signals": lambda model, data: ek.check_signals(model, data[0], draws=1),
    "lint": lambda model, data: ek.lint(model, data[0]),
    "init_": lambda model, data: ek.init_(model, data[0], seed=0),
}
