"""benchmarks/matching: its rules keep what they are to keep, its scores say what they are to say, and it goes on."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.matching import __main__ as command
from benchmarks.matching.nets import FAMILIES, ORDERS, Margin, embedding, mlp
from benchmarks.matching.report import NAMES, families, show, summary
from benchmarks.matching.scores import HALVES, TASKS, line, temperature
from benchmarks.matching.settling import behind, best_of, ensemble, look, mean, noisy_stream, settle, variance
from benchmarks.pages import text_in
from evenkeel.model.norms import norms_of


def trained(order, p, depth=2):
    """A net that has seen enough noise for its norms to store what train mode shows, and its data."""
    torch.manual_seed(0)
    net, x = mlp(order, p, inputs=5, depth=depth, width=16), torch.randn(4096, 5)
    for _ in range(60):
        net(x)
    return net.eval(), x


def first_norm(net):
    return next(iter(norms_of(net).values()))


@pytest.mark.parametrize("rule", [mean, behind])
@pytest.mark.parametrize("order", ORDERS)
def test_without_noise_nothing_changes(order, rule):
    net, x = trained(order, 0.0)
    with torch.no_grad():
        assert torch.allclose(settle(net, x, rule)(x), net(x), atol=1e-4)


def test_right_behind_a_dropout_the_slope_is_1():
    net, x = trained(ORDERS[0], 0.5)
    found, before = (first_norm(one).running_var for one in (settle(net, x, mean, masks=1), net))
    assert torch.allclose(found, before, rtol=4 / math.sqrt(len(x)) * 2)
    halved = first_norm(settle(net, x, variance)).running_var
    assert (halved < 0.9 * before).all()


def test_the_mean_rule_fits_what_train_mode_gives_on_average():
    net, x = trained(ORDERS[0], 0.5)
    with torch.no_grad():
        aim = ensemble(net, x, nn.Identity(), 64)
        off = {rule: (settle(net, x, rule)(x) - aim).square().mean() for rule in (mean, variance)}
    assert off[mean] < off[variance] / 2


def test_behind_the_relu_the_misfit_is_no_larger():
    net, x = trained(ORDERS[0], 0.5)
    norm = first_norm(net)
    target = noisy_stream(net, x, 16)[norm]
    assert target.is_rectified
    misfits = {}
    for rule in (mean, behind):
        treated = settle(net, x, rule, masks=16)
        seen = look(treated, x, [first_norm(treated), *list(norms_of(treated).values())[1:]])[first_norm(treated)]
        misfits[rule] = (seen.behind - target.behind).square().mean(0)
    assert (misfits[behind] < misfits[mean] * 1.01).all()
    assert misfits[behind].mean() < misfits[mean].mean()


def test_the_best_per_norm_is_no_worse_than_its_starts():
    net, x = trained(ORDERS[1], 0.5)
    y = ensemble(net, x, nn.Identity(), 8)
    starts = [settle(net, x, rule) for rule in (variance, mean)]

    @torch.no_grad()
    def loss(model):
        return float((model(x) - y).square().mean())

    assert loss(best_of(net, x, starts, [variance, mean], loss)) <= min(map(loss, starts))


def test_noisy_passes_leave_the_net_as_it_is():
    net, x = trained(ORDERS[2], 0.5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    ensemble(net, x, nn.Identity(), 2)
    assert not any(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_what_is_fitted_on_labels():
    torch.manual_seed(0)
    logits = torch.randn(20_000, 3)
    labels = torch.multinomial(logits.softmax(1), 1)[:, 0]
    assert temperature(3 * logits, labels) == pytest.approx(3, rel=0.1)
    assert line(logits[:, :1], 2 * logits[:, :1] + 1) == pytest.approx((2, 1))


def test_one_half_fits_what_the_other_is_scored_with():
    y = torch.randn(100, 1)
    wrong = y.clone()
    wrong[HALVES[0]] *= 2  # a line fitted there halves what is right in the other half, and the other way
    plain, fitted = TASKS["values"].crossed((wrong, wrong), y)
    assert plain == pytest.approx(float(y[HALVES[0]].square().mean()) / 2, rel=1e-3)
    assert fitted > 0.1
    assert TASKS["values"].crossed((2 * y, 2 * y), y)[1] == pytest.approx(0, abs=1e-9)


def test_verification():
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    apart = torch.eye(3)[labels] + 0.01 * torch.randn(60, 3)
    assert TASKS["pairs"].crossed((apart, apart), labels) == [0, 0]
    error, area = TASKS["pairs"].crossed((torch.randn(60, 8),) * 2, labels)
    assert error == pytest.approx(50, abs=10)
    assert area == pytest.approx(0.5, abs=0.1)


def test_the_margin_asks_for_more():
    torch.manual_seed(0)
    embeddings, labels = embedding("head", 0.1)(torch.randn(8, 1, 14, 14)), torch.arange(8) % 6
    losses = []
    for margin in (0.0, 0.3):
        torch.manual_seed(1)
        losses.append(Margin(margin=margin)(embeddings, labels).item())
    assert losses[0] < losses[1]


@pytest.mark.parametrize("family", ["WRN, CIFAR-10", "rotation, MNIST", "embedding, MNIST", "diamonds"])
def test_every_family_has_dropout_and_norms(family):
    shapes = {"WRN": (3, 16, 16), "rot": (1, 14, 14), "emb": (1, 14, 14), "dia": (9,)}
    for arm in FAMILIES[family].arms:
        net = FAMILIES[family].build(arm, 0.3)
        assert any(isinstance(module, nn.Dropout) and module.p == 0.3 for module in net.modules())
        assert norms_of(net)
        net(torch.randn(2, *shapes[family[:3]]))


@pytest.mark.slow
def test_the_command_goes_on_where_it_ended(tmp_path, monkeypatch, capsys):
    out, plot = tmp_path / "out.json", tmp_path / "plot.svg"
    words = f"x --parts diabetes --seeds 1 --only BN-ReLU.0.5 --nets {tmp_path} --out {out} --plot {plot} --resume"
    monkeypatch.setattr(sys, "argv", words.split())
    command.main()
    first = capsys.readouterr().out
    results = json.loads(out.read_text())
    ((name, scores, rows),) = families(results)
    assert name == "diabetes"
    assert len(rows) == 1
    assert all(list(row) == list(NAMES) and len(row["mean"]) == len(scores) for row in rows.values())
    assert "to train" in first
    assert show(results) in first
    assert plot.read_text().startswith("<?xml")
    command.main()
    assert "to train" not in capsys.readouterr().out
    assert json.loads(out.read_text()) == results


def test_the_page_has_the_table_of_the_results():
    results = json.loads(command.RESULTS.read_text())
    assert text_in(Path("docs/matching.md"), "trained nets") == summary(results) + "\n"
