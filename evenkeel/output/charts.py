"""Charts of a page: the places of their marks and ticks, and what the page's script says of each mark."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from evenkeel.output.files import finite
from evenkeel.output.page import Chart, Histogram, Mark
from evenkeel.output.ratios import TIMES, distance, ratio_text, side_of

_TICKS = (
    *(1e-6, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95),
    *(1.0, 1.05, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1e3, 1e4, 1e6),
)
_LEAST_STEP = 0.11  # of a chart's height, between two ticks
_LEAST_END = 1.1  # of a scale, on each side of 1
_MARGIN = 0.06  # of a chart's height, above and below
_SHARES = 5  # of a shift, that are shown one by one


def drawn_chart(chart: Chart, number: int, subject: str = "") -> dict[str, Any]:
    """A chart with places in percent: its marks, and the lines of its scale.

    Args:
        chart: the chart.
        number: of the chart on its page.
        subject: the model's name, which stands for a layer without a path: the model itself.
    """
    values = [v for mark in chart.marks for v in mark.values if v is not None and 0 < v < math.inf]
    top, bottom = max([*values, _LEAST_END]), min([*values, 1 / _LEAST_END])

    def height(value: float) -> float:
        inside = min(max(value, bottom), top) if not math.isnan(value) else top
        part = (math.log(top) - math.log(inside)) / (math.log(top) - math.log(bottom))
        return round(100 * (_MARGIN + (1 - 2 * _MARGIN) * part), 1)

    step = 100 / max(len(chart.marks), 1)
    marks = [
        {
            "left": round(step * place, 2),
            "text": f"{mark.path or subject}: {', '.join(_text(v, chart) for v in mark.values)}",
            "dots": [
                {"y": height(v), "side": side_of(v), "series": s} for s, v in enumerate(mark.values) if v is not None
            ],
            "stem": None if chart.free else _stem(mark, height),
        }
        for place, mark in enumerate(chart.marks)
    ]
    ticks = [
        {"y": height(t), "text": f"{'' if chart.free else TIMES}{t:.3g}", "even": t == 1} for t in _ticks(bottom, top)
    ]
    drawn = {"chart": chart, "number": number, "marks": marks, "ticks": ticks}
    full = any(mark.shares or mark.channels for mark in chart.marks)
    return drawn | {"full": full, "step": round(step, 3), "start": _farthest(chart)}


def _stem(mark: Mark, height: Callable[[float], float]) -> tuple[float, float] | None:
    """Top and length of the line that joins the values of a mark, or its one value and 1; None if it has no length."""
    ends = [height(value) for value in mark.values if value is not None]
    if not ends:
        return None
    begin, end = ends[0] if len(ends) > 1 else height(1.0), ends[-1]
    return (min(begin, end), round(abs(begin - end), 1)) if begin != end else None


def _text(value: float | None, chart: Chart) -> str:
    """A value of a chart, a ratio or not."""
    return f"{value:.3g}" if chart.free and value is not None else ratio_text(value)


def _farthest(chart: Chart) -> int:
    """The mark that is shown first."""
    sizes = [max((distance(v) for v in mark.values if v is not None), default=0.0) for mark in chart.marks]
    return sizes.index(max(sizes)) if sizes else 0


def _ticks(bottom: float, top: float) -> list[float]:
    """The ticks of a scale, 1 first, then those far from it, as long as their texts do not meet."""
    inside = [tick for tick in _TICKS if bottom <= tick <= top and tick != 1.0]
    kept, least = [1.0], _LEAST_STEP * math.log(top / bottom)
    for tick in sorted(inside, key=distance, reverse=True):
        if all(abs(math.log(tick / other)) >= least for other in kept):
            kept.append(tick)
    return kept


def details_of(charts: Sequence[Chart]) -> str:
    """What the page's script says of each mark, beside its path and values, as JSON that no text can end early.

    A text that comes more than once is written once, and named by its place among `texts`.
    """
    found = [[_details(mark) for mark in chart.marks] for chart in charts]
    counts = Counter(text for chart in found for mark in chart for text in (*mark[0], *(words for words, _ in mark[1])))
    places = {text: place for place, text in enumerate(t for t, count in counts.items() if count > 1)}

    def short(mark: list[Any]) -> list[Any]:
        lines, shares, *channels = mark
        return [
            [places.get(line, line) for line in lines],
            [[places.get(words, words), share] for words, share in shares],
            *channels,
        ]

    marks = [[short(mark) for mark in chart] for chart in found]
    data = {"texts": list(places), "series": [chart.series for chart in charts], "marks": marks}
    text = json.dumps(finite(data), separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _details(mark: Mark) -> list[Any]:
    lines = [line for line in mark.lines if line]
    shares = [[words, round(share, 1)] for words, share in _largest(mark.shares)]
    return [lines, shares, *([] if mark.channels is None else [_channels(mark.channels)])]


def _channels(found: Histogram) -> list[Any]:
    """The ends of a histogram in words, the bins on either side of 1, and the counts."""
    ends = [ratio_text(found.low), ratio_text(found.high)]
    return [*ends, _even_at(found), *found.counts]


def _even_at(found: Histogram) -> float:
    """Where 1 is in a histogram, in bins from its left: outside of them if all ratios are on one side of it."""
    if not 0 < found.low < found.high < math.inf:
        return 0.0 if found.low >= 1 else float(len(found.counts))
    return round(-math.log(found.low) / math.log(found.high / found.low) * len(found.counts), 1)


def _largest(shares: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """The first few shares, and the rest as one."""
    kept, rest = list(shares[:_SHARES]), shares[_SHARES:]
    return [*kept, (f"{len(rest)} more", sum(share for _, share in rest))] if len(rest) > 1 else list(shares)
