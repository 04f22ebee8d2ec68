"""outline: a graph as nested blocks, those that repeat one after the other folded, for a drawing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import Layer, LayerGraph
from evenkeel.output.page import Node

_LONGEST = 12  # parts that a repeated pattern has, at most
_FEWEST = 3  # repeats of what is no block of its own that are worth folding
_TIMES = "\N{MULTIPLICATION SIGN}"
_WORDS = {Kind.JOIN: "sum", Kind.OPAQUE: "not understood", Kind.PASS: "rearranged"}


@dataclass(eq=False)
class _Part:
    """A layer or block in the making: the visible layers from `start` to `stop`."""

    name: str
    start: int
    stop: int
    layer: Layer | None = None
    children: list[_Part] = field(default_factory=list["_Part"])
    repeats: bool = False
    edges: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])


def outline(graph: LayerGraph, name: str = "") -> Node:
    """A graph as nested blocks: those of its modules, and within each, patterns that repeat, folded.

    Blocks repeat if their layers are of the same kinds and read each other alike, whatever their names and widths.
    Calls that only rearrange are left out: what reads them reads what they read.

    Args:
        graph: the graph.
        name: of the whole; the model's class if left out.

    >>> import torch, evenkeel as ek
    >>> from torch import nn
    >>> model = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())))
    >>> whole = outline(ek.trace(model, torch.ones(2, 4)))
    >>> [(node.label, len(node.children)) for node in whole.children]
    [('input', 0), ('0 to 8', 3), ('output', 0)]
    """
    sources = _sources(graph)
    layers = list(sources)
    place = {layer: number for number, layer in enumerate(layers)}
    reads = [sorted({place[source] for source in sources[layer]}) for layer in layers]
    steps = [layer.name.split(".") for layer in layers]
    parts = _parts(layers, steps, 0, range(len(layers)))
    root = _Part(name or type(graph.model).__name__, 0, len(layers), None, parts)
    _fold(root, layers, reads)
    _connect(root, reads)
    return _node(root, "")


def _sources(graph: LayerGraph) -> dict[Layer, list[Layer]]:
    """The visible layers, each with those that it reads, directly or by calls that only rearrange."""
    seen: dict[Layer, list[Layer]] = {}
    for layer in graph:
        found = [s for source in layer.inputs for s in (seen[source] if _is_hidden(source) else [source])]
        seen[layer] = list(dict.fromkeys(found))
    return {layer: found for layer, found in seen.items() if not _is_hidden(layer)}


def _is_hidden(layer: Layer) -> bool:
    return layer.kind is Kind.PASS


def _parts(layers: Sequence[Layer], steps: list[list[str]], depth: int, places: Iterable[int]) -> list[_Part]:
    """Layers as parts: those that follow each other below one module are one block."""

    def block(place: int) -> object:
        inside = len(steps[place]) > depth + 1
        return steps[place][depth] if inside else place

    parts: list[_Part] = []
    for _, run in groupby(places, key=block):
        found = list(run)
        first, last = found[0], found[-1] + 1
        if len(found) == 1:
            parts.append(_Part(layers[first].name, first, last, layers[first]))
        else:
            name = ".".join(steps[first][: depth + 1])
            children = _parts(layers, steps, depth + 1, found)
            parts.append(children[0] if len(children) == 1 else _Part(name, first, last, None, children))
    return parts


def _fold(block: _Part, layers: Sequence[Layer], reads: list[list[int]]) -> None:
    """Put together what repeats among a block's parts, and inside each."""
    parts, found, place = block.children, list[_Part](), 0
    for part in parts:
        _fold(part, layers, reads)
    while place < len(parts):
        length, times = _repeats(parts, place, layers, reads)
        windows = _windows(parts, place, length, times)
        if times > 1 and _begins_later(windows, parts, place, layers, reads):
            length, times, windows = 1, 1, [[parts[place]]]
        found.append(windows[0][0] if times == 1 else _around([_around(w) for w in windows], repeats=True))
        place += length * times
    whole = len(found) == 1 and found[0].repeats
    block.children, block.repeats = (found[0].children, True) if whole else (found, block.repeats)


def _windows(parts: list[_Part], place: int, length: int, times: int) -> list[list[_Part]]:
    return [parts[at : at + length] for at in range(place, place + length * times, length)]


def _begins_later(
    windows: list[list[_Part]], parts: list[_Part], place: int, layers: Sequence[Layer], reads: list[list[int]]
) -> bool:
    """Whether a pattern that begins within the first window repeats as often, and is of names that are more alike.

    So the middle of a U-Net, alike to the blocks of its decoder in all but name, is not taken for one of them.
    """
    length, times = len(windows[0]), len(windows)
    return any(
        _repeats(parts, later, layers, reads) == (length, times)
        and _strangers(_windows(parts, later, length, times)) < _strangers(windows)
        for later in range(place + 1, place + length)
    )


def _strangers(windows: list[list[_Part]]) -> int:
    """In how many places of a pattern the parts that repeat have names that differ by more than numbers."""
    names = [{re.sub(r"\d+", "", part.name.split("#")[0]) for part in alike} for alike in zip(*windows, strict=True)]
    return sum(len(found) > 1 for found in names)


def _around(parts: list[_Part], *, repeats: bool = False) -> _Part:
    """One part that holds several."""
    if len(parts) == 1:
        return parts[0]
    name = f"{parts[0].name.split(' to ')[0]} to {parts[-1].name.split(' to ')[-1]}"
    return _Part(name, parts[0].start, parts[-1].stop, None, parts, repeats)


def _repeats(parts: list[_Part], place: int, layers: Sequence[Layer], reads: list[list[int]]) -> tuple[int, int]:
    """How long the pattern that begins here is, and how often it comes: the one that covers most."""
    best, covered = (1, 1), 0
    for length in range(1, min(_LONGEST, (len(parts) - place) // 2) + 1):
        pattern = _signature(parts[place : place + length], layers, reads)
        if len(pattern) < 2 or not any(kind in ("W", "N") for kind, _ in pattern):
            continue
        times = 1
        while pattern == _signature(parts[place + times * length :][:length], layers, reads):
            times += 1
        if times >= (2 if length == 1 else _FEWEST) and times * length > covered:
            best, covered = (length, times), times * length
    return best


def _signature(parts: Sequence[_Part], layers: Sequence[Layer], reads: list[list[int]]) -> list[Any]:
    """The layers' kinds, and which of them each reads; all that is outside counts as one."""
    if not parts:
        return []
    start, stop = parts[0].start, parts[-1].stop
    return [(layers[n].kind.value, {max(r - start, -1) for r in reads[n]}) for n in range(start, stop)]


def _connect(root: _Part, reads: list[list[int]]) -> None:
    """Say at every block which of its parts reads which."""
    ways: dict[int, list[tuple[_Part, int]]] = {}

    def walk(part: _Part, way: list[tuple[_Part, int]]) -> None:
        if not part.children:
            ways[part.start] = way
        for number, child in enumerate(part.children):
            walk(child, [*way, (part, number)])

    walk(root, [])
    for reader, found in enumerate(reads):
        for source in found:
            _draw(ways[source], ways[reader])


def _draw(source: list[tuple[_Part, int]], reader: list[tuple[_Part, int]]) -> None:
    """One line, from block to block: out of those around its source, into those around its reader."""
    shared = sum(1 for (a, _), (b, _) in zip(source, reader, strict=False) if a is b)
    block, begin = source[shared - 1]
    block.edges.add((begin, reader[shared - 1][1]))
    for part, number in source[shared:]:
        part.edges.add((number, len(part.children)))
    for part, number in reader[shared:]:
        part.edges.add((-1, number))


def _node(part: _Part, around: str) -> Node:
    """The finished node; its label leaves out the name of the block around it."""
    layer = part.layer
    label = " to ".join(name.removeprefix(f"{around}.") for name in part.name.split(" to "))
    if layer is None:
        inner = around if " to " in part.name else part.name
        children = tuple(_node(child, inner) for child in part.children)
        return Node(part.name, label, children=children, edges=tuple(sorted(part.edges)), repeats=part.repeats)
    return Node(
        layer.name,
        label,
        layer.kind.value,
        _WORDS.get(layer.kind, layer.kind.name.lower()),
        _detail(layer),
        layer.where or "",
        layer.path if layer.kind is Kind.NORM else "",
    )


def _detail(layer: Layer) -> str:
    """A drop rate, the shape of an input, or the shape that a weight layer returns, without the samples."""
    if layer.kind is Kind.INPUT:
        return _TIMES.join(map(str, layer.shape)) if layer.users else "read by no layer"
    if layer.kind is Kind.DROPOUT or layer.p:
        return "p unknown" if layer.p is None else f"p={layer.p:g}"
    return _TIMES.join(map(str, layer.shape[1:])) if layer.kind in (Kind.WEIGHT, Kind.OPAQUE) else ""
