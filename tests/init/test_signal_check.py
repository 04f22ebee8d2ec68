"""check_signals: what it measures against plain hooks, what it leaves as found, and the report."""

import json
import math
from dataclasses import astuple

import pytest
import torch
from hypothesis import Phase, given, settings
from models import HABITS, Block, Spec, specs
from snapshots import Snapshot
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.signals.propagation import MeanSquares

COLUMNS = ("train_variance", "eval_variance", "train_grad_variance", "eval_grad_variance")


def mlp(p=0.3, norm=False):
    middle = [nn.BatchNorm1d(24)] if norm else []
    return nn.Sequential(nn.Linear(16, 24), *middle, nn.ReLU(), nn.Dropout(p), nn.Linear(24, 8))


class Functional(nn.Module):
    """Weights without weight modules, in several spellings."""

    def __init__(self):
        super().__init__()
        self.w, self.u, self.b = (nn.Parameter(torch.randn(shape)) for shape in ((24, 16), (24, 8), (8,)))

    def forward(self, x):
        return torch.addmm(self.b, torch.relu(F.linear(x, weight=self.w)), self.u)


class Shared(nn.Module):
    """One module, called twice."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x):
        return self.fc(torch.tanh(self.fc(x)) * 3)


# Measured


def test_measured_in_eval_mode_are_the_mean_squares_of_what_layers_return():
    """Exact, over all batches, the last of which is smaller."""
    model, batches = mlp(), [2 * torch.randn(32, 16), torch.randn(32, 16) + 1, torch.randn(5, 16)]
    report = ek.check_signals(model, batches[0], batches)
    model.eval()
    with torch.no_grad():
        x = torch.cat(batches)
        expected = [float(z.square().mean()) for z in (model[0](x), model(x))]
    assert [row.measured.eval_variance for row in report] == pytest.approx(expected, rel=1e-5)
    assert report.samples == 69


@pytest.mark.parametrize("build", [mlp, lambda: mlp(norm=True), Functional, Shared], ids=["mlp", "norm", "w", "shared"])
def test_measured_errors_are_those_of_autograd(build):
    """Against the expectation over errors: the mean square of the Jacobian's columns, in eval mode."""
    model, x = build(), torch.randn(400, 16)
    report = ek.check_signals(model, x, [x])
    model.eval()
    kept = []
    if isinstance(model, Functional):
        z = F.linear(x, model.w)
        out = torch.addmm(model.b, torch.relu(z), model.u)
        kept = [z, out]
    else:
        layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
        for layer in layers:
            layer.register_forward_hook(lambda _m, _i, y: kept.append(y))
        out = model(x)
    squares = [torch.zeros(()) for _ in kept]
    for unit in range(out.shape[1]):
        error = torch.zeros_like(out)
        error[:, unit] = 1
        grads = torch.autograd.grad(out, kept, error, retain_graph=True)
        squares = [s + g.square().mean() for s, g in zip(squares, grads, strict=True)]
    assert [row.measured.eval_grad_variance for row in report] == pytest.approx([float(s) for s in squares], rel=0.1)
    assert len(report) == len(kept)


def test_measured_in_train_mode_is_dropout():
    """Of a linear chain: E z^2 is 1 / keep as large as in eval mode."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 64, bias=False))
    measured = ek.check_signals(model, torch.zeros(2000, 64))[0].measured
    assert measured.train_variance / measured.eval_variance == pytest.approx(2, rel=0.03)
    assert measured.train_grad_variance == pytest.approx(1, rel=0.02) and measured.eval_grad_variance == pytest.approx(
        1, rel=0.02
    )


def test_predicted_is_what_is_measured_after_init():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.Dropout(0.5), nn.Linear(256, 256), nn.ReLU())
    model.append(nn.Linear(256, 256))
    ek.init_(model, torch.zeros(1, 256))
    for row in ek.check_signals(model, torch.zeros(512, 256)):
        assert astuple(row.measured) == pytest.approx(astuple(row.predicted), rel=0.15)


def test_an_activation_in_place_does_not_overwrite_what_is_measured():
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))
    x = torch.randn(64, 16)
    out_of_place = ek.check_signals(model, x, [x])
    model[1] = nn.ReLU(inplace=True)
    in_place = ek.check_signals(model, x, [x])
    for a, b in zip(out_of_place, in_place, strict=True):
        assert a.measured.eval_variance == b.measured.eval_variance
        assert a.measured.train_grad_variance == pytest.approx(b.measured.train_grad_variance, rel=0.3)


def test_a_module_called_twice_has_two_rows_each_with_its_own_signal():
    model, x = Shared(), torch.randn(64, 16)
    report = ek.check_signals(model, x, [x])
    assert len({row.name for row in report}) == len(report) == 2
    with torch.no_grad():
        expected = [float(z.square().mean()) for z in (model.fc(x), model(x))]
    assert [row.measured.eval_variance for row in report] == pytest.approx(expected, rel=1e-5)


def test_statistics_of_the_train_pass_do_not_reach_the_eval_pass():
    """Also where the model itself would store the batch's as they are."""
    model, x = mlp(norm=True), 5 * torch.randn(64, 16)
    model[1].momentum = 1.0
    report = ek.check_signals(model, x, [x, x])
    with torch.no_grad():
        expected = float(model.eval()(x).square().mean())
    assert report[-1].measured.eval_variance == pytest.approx(expected, rel=1e-5)


def test_frozen_norms_are_measured_by_their_statistics_in_both_modes():
    model, x = mlp(p=0.0, norm=True), 5 * torch.randn(256, 16)
    live = ek.check_signals(model, x, [x])[-1]
    model[1].eval()
    frozen = ek.check_signals(model, x, [x])[-1]
    assert frozen.measured.train_variance == pytest.approx(frozen.measured.eval_variance, rel=1e-5)
    assert frozen.predicted.train_variance == frozen.predicted.eval_variance
    assert live.measured.train_variance < live.measured.eval_variance / 2
    assert live.predicted.eval_variance == frozen.predicted.eval_variance


def test_a_model_in_eval_mode_is_measured_in_both_modes():
    model, x = mlp(p=0.5), torch.randn(512, 16)
    reports = [ek.check_signals(model.train(training), x, [x]) for training in (True, False)]
    for a, b in zip(*reports, strict=True):
        assert a.predicted == b.predicted
        assert a.measured.train_variance == pytest.approx(b.measured.train_variance, rel=0.2)
        assert a.measured.eval_variance == b.measured.eval_variance
    assert reports[1][-1].measured.train_variance > 1.2 * reports[1][-1].measured.eval_variance


def test_a_layer_that_the_batches_never_reach_is_nan():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.extra = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, extra=True):
            return self.extra(self.body(x)) if extra else self.body(x)

    report = ek.check_signals(
        Optional(), torch.zeros(2, 4), [torch.randn(2, 4)], forward=lambda model, batch: model(batch, extra=False)
    )
    assert [math.isnan(v) for row in report for v in astuple(row.measured)] == [False] * 4 + [True] * 4
    assert all(math.isfinite(v) for row in report for v in astuple(row.predicted))


def test_a_layer_that_no_output_depends_on_receives_no_error():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.extra = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            self.extra(x)
            return self.body(x)

    report = {row.name: row for row in ek.check_signals(Unused(), torch.zeros(8, 4))}
    for powers in (report["extra"].measured, report["extra"].predicted):
        assert powers.train_grad_variance == powers.eval_grad_variance == 0 < powers.train_variance


def test_every_output_sends_errors_back():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.a, self.b = (nn.Linear(64, 64, bias=False) for _ in range(3))

        def forward(self, x):
            x = self.body(x)
            return {"a": self.a(x), "deep": [self.b(x), "no tensor"]}

    row = ek.check_signals(Two(), torch.zeros(256, 64))[0]
    assert row.measured.train_grad_variance == pytest.approx(row.predicted.train_grad_variance, rel=0.1)


@pytest.mark.parametrize(
    "example",
    [torch.zeros(32, 16), (torch.zeros(32, 16),), {"input": torch.zeros(32, 16)}],
    ids=["tensor", "tuple", "dict"],
)
def test_without_batches_normal_values_of_the_examples_shape_are_fed(example):
    seen = []
    model = nn.Sequential(nn.Linear(16, 4))
    model[0].register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach().clone()))
    report = ek.check_signals(model, example, draws=40)
    real = [x for x in seen if type(x) is torch.Tensor]
    values = torch.cat(real[-80:])
    assert report.samples == 40 * 32
    assert abs(float(values.mean())) < 0.05 and float(values.var()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("make", [lambda x: x, lambda x: (x,), lambda x: {"input": x}], ids=["tensor", "tuple", "dict"])
def test_the_graph_is_taken_in_place_of_the_example(make):
    model, example = mlp(), make(torch.zeros(32, 16))
    graph = ek.trace(model, example)
    torch.manual_seed(2)
    expected = ek.check_signals(model, example)
    torch.manual_seed(2)
    assert ek.check_signals(model, graph).to_dict() == expected.to_dict()


def test_inputs_that_are_not_floating_are_fed_as_they_are():
    model = nn.Sequential(nn.Embedding(10, 16), nn.Linear(16, 4))
    tokens = torch.tensor([[1, 2], [3, 3]])
    report = ek.check_signals(model, tokens)
    with torch.no_grad():
        expected = [float(z.square().mean()) for z in (model[0](tokens), model(tokens))]
    assert [row.measured.eval_variance for row in report] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    model = mlp().to(dtype)
    row = ek.check_signals(model, torch.zeros(512, 16))[0]
    assert row.measured.train_variance == pytest.approx(row.predicted.train_variance, rel=0.1)


def test_batches_in_the_forms_that_variance_shift_takes():
    x = torch.randn(40, 16)
    forms = {
        "tensor": ([x], None),
        "pair": ([(x, torch.zeros(40))], None),
        "mapping": ([{"input": x}], None),
        "own": ([{"deep": [x]}], lambda model, batch: model(batch["deep"][0])),
        "generator": ((x for _ in range(3)), None),
    }
    model = mlp(p=0.0)
    found = {
        name: ek.check_signals(model, x, batches, forward=forward, max_batches=1)[1].measured.eval_variance
        for name, (batches, forward) in forms.items()
    }
    assert len(set(found.values())) == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_under_no_grad_errors_are_measured_all_the_same(mode):
    model, x = mlp(p=0.0), torch.randn(200, 16)
    outside = ek.check_signals(model, x)
    with mode():
        inside = ek.check_signals(model, x)
    for a, b in zip(outside, inside, strict=True):
        assert astuple(b.measured) == pytest.approx(astuple(a.measured), rel=0.3)
        assert a.predicted == b.predicted


def test_frozen_parameters_are_measured_too():
    model, x = mlp(p=0.0), torch.randn(200, 16)
    expected = ek.check_signals(model, x, [x])
    model.requires_grad_(False)
    for a, b in zip(expected, ek.check_signals(model, x, [x]), strict=True):
        assert a.measured.eval_variance == b.measured.eval_variance
        assert a.measured.train_grad_variance == pytest.approx(b.measured.train_grad_variance, rel=0.3)


# Read-only

# networks are small as they come, and shrinking one runs the whole measurement hundreds of times
GENERATED = settings(max_examples=20, phases=(Phase.explicit, Phase.generate))


@pytest.mark.slow
@given(spec=specs(fails=False))
@GENERATED
def test_it_leaves_all_as_found(spec):
    model, batches = spec.build(), spec.batches()
    kept = [batch.clone() for batch in batches]
    before = Snapshot(model)
    ek.check_signals(model, batches[0])
    ek.check_signals(model, batches[0], batches)
    assert before.changes() == []
    assert all(map(torch.equal, batches, kept)) and not any(b.requires_grad for b in batches)


@pytest.mark.slow
@given(spec=specs(fails=True))
@GENERATED
def test_so_it_does_when_the_forward_raises(spec):
    model, batches = spec.build(), spec.batches()
    before = Snapshot(model)
    try:
        ek.check_signals(model, batches[0], batches)
        raised = False
    except (RuntimeError, KeyboardInterrupt, ek.EvenkeelError):
        raised = True
    assert before.changes() == []
    assert raised or spec.fails_after > 0


@pytest.mark.parametrize("habit", HABITS)
def test_every_habit_is_undone(habit):
    block = Block("batch", "relu", "module", residual=True, habit=habit)
    spec = Spec("image", (block, block), 0.1, 0b101, hooks=True)
    model, batches = spec.build(), spec.batches()
    before = Snapshot(model)
    ek.check_signals(model, batches[0], batches)
    assert before.changes() == []


def test_random_numbers_are_those_of_before_but_the_measurement_depends_on_them():
    model, x = mlp(), torch.zeros(32, 16)
    torch.manual_seed(5)
    first = ek.check_signals(model, x)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)
    torch.manual_seed(5)
    assert ek.check_signals(model, x).to_dict() == first.to_dict()
    torch.manual_seed(6)
    assert ek.check_signals(model, x).to_dict() != first.to_dict()


def test_a_buffer_that_the_forward_writes_into_has_no_history_afterwards():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.last = nn.Linear(4, 4), None
            self.register_buffer("seen", torch.zeros(4))

        def forward(self, x):
            self.seen.copy_(x[0])
            return self.fc(x)

    model = Writes()
    ek.check_signals(model, torch.randn(8, 4))
    assert not model.seen.requires_grad and model.seen.is_leaf and torch.equal(model.seen, torch.zeros(4))


def test_a_scalar_that_is_not_understood_does_no_harm():
    class Averages(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.average = nn.Linear(4, 4), torch.zeros(())

        def forward(self, x):
            self.average = self.average * 0.9 + x.mean() * 0.1
            return self.fc(x)

    assert len(ek.check_signals(Averages(), torch.randn(8, 4))) == 1


# Refusals


def test_a_model_without_weights_is_refused():
    with pytest.raises(ek.ModelError, match="Sequential has no weight layer: there is no signal to check"):
        ek.check_signals(nn.Sequential(nn.ReLU()), torch.zeros(2, 2))


def test_an_example_that_does_not_fit_is_refused():
    with pytest.raises(ek.TraceError):
        ek.check_signals(mlp(), torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([], {}, "empty"),
        ([torch.zeros(4, 16)], {"max_batches": 2}, "ran short: 1 of max_batches=2"),
        (torch.zeros(4, 16).tolist(), {}, "a batch is a tensor|raised"),
        ("text", {}, "iterable of batches"),
        ({"x": torch.zeros(4, 16)}, {}, "iterable of batches"),
        ([object()], {}, "a batch is a tensor"),
        ([torch.zeros(0, 16)], {}, "holds no samples"),
        ([torch.zeros(4, 16), torch.zeros(4, 7)], {}, "batch 2 raised RuntimeError.*layer '0'"),
    ],
    ids=["empty", "short", "numbers", "text", "mapping", "object", "no samples", "wrong shape"],
)
def test_faulty_batches(batches, options, message):
    model = mlp()
    before = Snapshot(model)
    with pytest.raises(ek.BatchError, match=message):
        ek.check_signals(model, torch.zeros(4, 16), batches, **options)
    assert before.changes() == []


# The report


@pytest.fixture
def report():
    return ek.check_signals(mlp(norm=True), torch.zeros(32, 16))


def test_the_report_is_a_sequence_of_rows(report):
    assert [row.name for row in report] == ["0", "4"]
    assert len(report) == 2 and report[1].name == "4" and [row.name for row in report[:1]] == ["0"]
    assert repr(report) == "SignalReport(2 weight layers, 128 samples)"


def test_the_report_as_json(report):
    data = json.loads(json.dumps(report.to_dict()))
    assert data["samples"] == 128 and [row["name"] for row in data["rows"]] == ["0", "4"]
    for row, found in zip(report, data["rows"], strict=True):
        assert MeanSquares(**found["measured"]) == row.measured and MeanSquares(**found["predicted"]) == row.predicted
        assert tuple(found["measured"]) == COLUMNS


def test_the_report_as_a_table(report):
    """Measured beside predicted, each pair under its heading, in the order of the columns."""
    header, _, first, *rest = str(report).splitlines()
    assert header.split() == (
        "layer train var predicted eval var predicted train grad var predicted eval grad var predicted".split()
    )
    pairs = zip(astuple(report[0].measured), astuple(report[0].predicted), strict=True)
    assert first.split() == ["0", *(f"{v:.3g}" for pair in pairs for v in pair)]
    assert rest[-1].strip() == "means over 128 samples; predicted without data"


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".png", b"\x89PNG"), ("", b"\x89PNG")])
def test_the_plot_is_one_whole_file(report, tmp_path, suffix, start):
    path = tmp_path / f"signals{suffix}"
    path.write_text("old")
    report.plot(path)
    assert path.read_bytes().startswith(start) and [p.name for p in tmp_path.iterdir()] == [path.name]
    report.plot(str(path))


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_plot_that_fails_leaves_nothing(report, tmp_path, monkeypatch, error):
    from matplotlib.figure import Figure

    def half(_self, path, **_):
        path.write_text("half")
        raise error

    monkeypatch.setattr(Figure, "savefig", half)
    expected = ek.EvenkeelError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        report.plot(tmp_path / "signals.svg")
    assert list(tmp_path.iterdir()) == []


def test_a_plot_goes_to_no_folder_that_is_not_there(report, tmp_path):
    with pytest.raises(ek.EvenkeelError, match="there is no folder"):
        report.plot(tmp_path / "gone" / "signals.svg")


def test_an_unknown_format_is_refused_and_leaves_nothing(report, tmp_path):
    with pytest.raises(ek.EvenkeelError, match=r"signals.abc has an unknown format.*\.svg"):
        report.plot(tmp_path / "signals.abc")
    assert list(tmp_path.iterdir()) == []


def test_the_plot_shows_every_layer_measured_and_predicted(report, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw)))
    report.plot(tmp_path / "signals.svg")
    for axes, quantity in zip(figures[0].axes, ("variance", "grad_variance"), strict=True):
        drawn = [list(line.get_ydata()) for line in axes.get_lines()[:4]]
        expected = [
            [getattr(getattr(row, kind), f"{mode}_{quantity}") for row in report]
            for mode in ("train", "eval")
            for kind in ("measured", "predicted")
        ]
        assert drawn == expected and axes.get_yscale() == "log"


def test_values_of_an_example_are_used_as_batches_or_else_that_is_said():
    model, images = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), 5 + 3 * torch.rand(64, 4)
    report = ek.check_signals(model, images)
    assert "its values were not used: pass them as batches" in report.notes[0]
    assert report.notes[0] in str(report).replace("\n", " ")
    assert ek.check_signals(model, torch.zeros(64, 4)).notes == ek.check_signals(model, images, [images]).notes == ()
    assert ek.check_signals(model, images, [images])[0].measured.eval_variance > 4 * report[0].measured.eval_variance


@pytest.mark.parametrize("product", [torch.sparse.mm, torch.spmm, torch.matmul])
def test_sparse_inputs_are_read(product):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.head = nn.Parameter(torch.randn(32, 8)), nn.Linear(8, 8)

        def forward(self, x):
            return self.head(product(x, self.weight).relu())

    model, example = Net(), torch.eye(64)[:, :32].to_sparse()
    assert len(ek.init_(model, example, seed=0)) == 2
    assert float(model.weight.detach().var()) * 32 == pytest.approx(1, abs=0.4)
    assert len(ek.check_signals(model, example)) == 2
