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


class Message(nn.Module):
    """A layer of message passing: messages along edges, their mean at each node, a residual update."""

    def __init__(self, width=8, p=0.3):
        super().__init__()
        self.message, self.update = nn.Linear(2 * width, width), nn.Linear(2 * width, width)
        self.norm, self.drop = nn.BatchNorm1d(width), nn.Dropout(p)

    def forward(self, x, edges):
        source, target = edges
        messages = self.drop(torch.relu(self.message(torch.cat([x[source], x[target]], 1))))
        summed = torch.zeros_like(x).index_add(0, target, messages)
        count = torch.zeros(len(x)).scatter_add(0, target, torch.ones(len(target))).clamp(min=1)
        return x + torch.relu(self.norm(self.update(torch.cat([x, summed / count[:, None]], 1))))


class GraphNet(nn.Module):
    """A classifier of small graphs, as the libraries for graphs write it."""

    def __init__(self, width=8, depth=3):
        super().__init__()
        self.enter = nn.Linear(5, width)
        self.layers = nn.ModuleList(Message(width) for _ in range(depth))
        self.head = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.5))
        self.out = nn.Linear(width, 2)

    def forward(self, x, edges, graph):
        x = self.enter(x)
        for layer in self.layers:
            x = layer(x, edges)
        return self.out(self.head(torch.zeros(8, x.shape[1]).index_add(0, graph, x)))


class Swapped(nn.Module):
    """A module between two transposes, as a patch transformer puts BatchNorm1d over its tokens."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


class PatchLayer(nn.Module):
    """An encoder layer with batch norms behind its sums."""

    def __init__(self, width=16, p=0.2):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 4, p, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(p), nn.Linear(2 * width, width))
        self.norm1, self.norm2 = (Swapped(nn.BatchNorm1d(width)) for _ in range(2))
        self.drop1, self.drop2 = nn.Dropout(p), nn.Dropout(p)

    def forward(self, x):
        x = self.norm1(x + self.drop1(self.attention(x, x, x, need_weights=False)[0]))
        return self.norm2(x + self.drop2(self.mlp(x)))


class PatchNet(nn.Module):
    """A forecaster that reads patches of a series as tokens."""

    def __init__(self, width=16, depth=4, patch=8, patches=6):
        super().__init__()
        self.enter, self.place = nn.Linear(patch, width), nn.Parameter(torch.zeros(patches, width))
        self.layers = nn.Sequential(*(PatchLayer(width) for _ in range(depth)))
        self.head = nn.Linear(patches * width, 4)
        self.patch = patch

    def forward(self, series):
        tokens = self.enter(series.unfold(-1, self.patch, self.patch)) + self.place
        return self.head(self.layers(tokens).flatten(1))


def graph_net():
    """A trained net of graphs, and batches of eight graphs each."""
    torch.manual_seed(0)
    net, nodes = GraphNet(), 80
    graphs = torch.arange(nodes) // 10
    batches = [{"x": torch.randn(nodes, 5), "edges": torch.randint(nodes, (2, 300)), "graph": graphs} for _ in range(4)]
    for batch in batches * 10:
        net(**batch)
    return net, batches


def patch_net():
    """A trained patch transformer, and batches of series."""
    torch.manual_seed(0)
    net, batches = PatchNet(), [torch.randn(32, 48).cumsum(-1) / 5 for _ in range(4)]
    for batch in batches * 10:
        net(batch)
    return net, batches


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
