"""Results made for the tests of plots, and what is read back from the figures drawn of them."""

from matplotlib.colors import to_hex

from evenkeel.papers.lab.results import Record, Results
from evenkeel.papers.lab.specs import grid

NETS = ("thin", "wide")
PLACED = grid(net=NETS, place=("a", "b"), p=(0.1, 0.5))


def record(factors, seed=0, figures=(), history=()):
    content = {"factors": factors, "seed": seed, "scale": "quick", "figures": dict(figures), "history": list(history)}
    return Record.of(content)


def results_of(arms, make, seeds=3):
    return Results(record(factors, seed, **make(factors, seed)) for factors in arms for seed in range(seeds))


def shifts(factors, seed):
    return [1 + factors["p"] * (layer + 1) * (seed + 1) / 10 for layer in range(4 if factors["net"] == "thin" else 6)]


def layered(arms=PLACED, **options):
    return results_of(arms, lambda *run: {"figures": {"folded": shifts(*run), "half": shifts(*run)[::-1]}}, **options)


def losses(factors, seed):
    return [{"epoch": e + 1, "loss": (seed + 1) / (e + 1), "error": factors["p"] / (e + 1)} for e in range(5)]


def trained(arms=PLACED, make=losses):
    return results_of(arms, lambda *run: {"history": make(*run)})


def panels(figure):
    return {axes.get_title(): axes for axes in figure.axes}


def lines(axes):
    """Those drawn through data: y by x, by colour and dashes."""
    drawn = [line for line in axes.get_lines() if list(line.get_xdata()) != [0, 1]]
    return [(line.get_color(), line.get_linestyle(), dict(zip(*line.get_data(), strict=True))) for line in drawn]


def legend(figure):
    (found,) = figure.legends
    handles = [
        getattr(handle, "get_color", getattr(handle, "get_facecolor", None))() for handle in found.legend_handles
    ]
    return dict(zip([text.get_text() for text in found.texts], map(to_hex, handles), strict=True))
