"""reestimate_domains_: each domain as if re-estimated alone, the pool as ever, and which data it takes."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import specs
from snapshots import Snapshot
from torch import nn

import evenkeel as ek


def small(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8)
    )
    model(torch.randn(64, 6))
    return model


torch.manual_seed(1)
SITES = torch.randint(3, (240,))
X = torch.randn(240, 6) + SITES[:, None]
BATCHES = list(zip(X.split(32), SITES.split(32), strict=True))


def equal(left, right):
    return all(map(torch.equal, left.state_dict().values(), right.state_dict().values()))


def alone(model, batches, **options):
    other = copy.deepcopy(model)
    ek.reestimate_(other, batches, match="variance", **options)
    return other


def of_site(site):
    return [x[sites == site] for x, sites in BATCHES]


def test_each_domain_is_as_if_re_estimated_alone_and_the_pool_as_ever():
    model = small()
    expected = {site: alone(model, of_site(site)) for site in range(3)}
    pool = alone(model, BATCHES)
    done = ek.reestimate_domains_(model, BATCHES, by=1)
    assert equal(model, pool)
    assert [(row.label, row.samples) for row in done] == [(s, int(SITES.eq(s).sum())) for s in range(3)]
    for site in range(3):
        with ek.in_domain(model, site):
            assert equal(model, expected[site])
    assert equal(model, pool)


@pytest.mark.slow
@settings(max_examples=5)
@given(specs(fails=False), st.integers(0, 3))
def test_so_it_is_on_any_net(spec, seed):
    model, batches = spec.build(), spec.batches(3)
    labels = torch.randint(2, (3,), generator=torch.Generator().manual_seed(seed)).tolist()
    stream = list(zip(batches, labels, strict=True))
    try:
        expected = {
            label: alone(model, [b for b, one in stream if one == label], memory=0) for label in dict.fromkeys(labels)
        }
        alone(model, batches, memory=0)
    except ek.EvenkeelError as error:
        with pytest.raises(type(error)):
            ek.reestimate_domains_(model, stream, by=1, memory=0)
        return
    ek.reestimate_domains_(model, stream, by=1, memory=0)
    for label, other in expected.items():
        with ek.in_domain(model, label):
            assert equal(model, other)


def test_the_order_of_batches_matters_no_more_than_rounding():
    model, other = small(), small()
    one = ek.reestimate_domains_(model, BATCHES, by=1).domains
    two = ek.reestimate_domains_(other, BATCHES[::-1], by=1).domains
    for label, of in one.items():
        for path, statistics in of.items():
            for name, value in statistics.items():
                assert torch.allclose(value, two[label][path][name], rtol=1e-3, atol=1e-4)


class Once:
    """Counts how often it is read."""

    def __init__(self, batches):
        self.batches, self.reads = batches, 0

    def __iter__(self):
        self.reads += 1
        return iter(self.batches)


@pytest.mark.parametrize("kind", ["once", "iterator", "written over"])
def test_the_loader_is_read_once(kind):
    model, other = small(), small()
    ek.reestimate_domains_(other, BATCHES, by=1)
    page = torch.empty(240, 6)

    def over():
        for x, sites in BATCHES:
            page[: len(x)] = x
            yield page[: len(x)], sites

    batches = {"once": Once(BATCHES), "iterator": iter(BATCHES), "written over": over()}[kind]
    ek.reestimate_domains_(model, batches, by=1)
    assert kind != "once" or batches.reads == 1
    for site in range(3):
        with ek.in_domain(model, site), ek.in_domain(other, site):
            assert torch.allclose(model[5].running_var, other[5].running_var, rtol=1e-3)


class Keyed(nn.Sequential):
    def forward(self, pixels):
        return super().forward(pixels)


@pytest.mark.parametrize(
    ("batches", "by", "labels"),
    [
        ([{"pixels": x, "site": s} for x, s in BATCHES], "site", [0, 1, 2]),
        ([(x, [f"site {int(i)}" for i in s]) for x, s in BATCHES], 1, ["site 0", "site 1", "site 2"]),
        ([x for x, _ in BATCHES], lambda x: (x.mean(1) > 1).long().numpy(), [0, 1]),
        ([(x, "left" if i % 2 else "right") for i, (x, _) in enumerate(BATCHES)], 1, ["left", "right"]),
    ],
    ids=["a key", "words", "a function", "one a batch"],
)
def test_labels_are_found_in_batches_of_any_kind(batches, by, labels):
    done = ek.reestimate_domains_(Keyed(*small()), batches, by=by)
    assert [row.label for row in done] == labels
    assert sum(row.samples for row in done) == 240


@pytest.mark.parametrize(
    ("batches", "by", "message"),
    [
        (BATCHES, "site", "by='site' raised TypeError.* on batch 1"),
        ([(x, s + 0.5) for x, s in BATCHES], 1, "batch 1: a domain's label is a text or a whole number"),
        ([(x, s[:5]) for x, s in BATCHES], 1, "batch 1 holds 32 samples, and by= gives 5 labels"),
        ([(x, s, object()) for x, s in BATCHES], 1, "batch 1 holds samples of 3 domains and cannot be divided"),
        ([(X[:8], 0), (X[8:9] * torch.nan, 1)], 1, "not finite"),
        ([(X[:8], 0), (X[8:9], 1)], 1, "domain 1: .*one value per channel"),
    ],
)
def test_on_bad_data_the_model_is_as_it_was(batches, by, message):
    model = small()
    before = Snapshot(model, world=False)
    with pytest.raises(ek.BatchError, match=message):
        ek.reestimate_domains_(model, batches, by=by)
    assert before.changes() == []


def distance(model, site, right):
    with ek.in_domain(model, site):
        return float((model[1].running_mean - right).norm())


def test_a_prior_draws_domains_towards_the_pool():
    plain, drawn, far = small(), small(), small()
    few = [(X[:200], torch.zeros(200).long()), (X[200:203] + 3, torch.ones(3).long())]
    ek.reestimate_domains_(plain, few, by=1)
    ek.reestimate_domains_(drawn, few, by=1, prior=30)
    ek.reestimate_domains_(far, few, by=1, prior=float("inf"))
    pool = plain[1].running_mean.clone()
    with ek.in_domain(plain, 1):
        own = plain[1].running_mean.clone()
    with ek.in_domain(drawn, 1):
        assert torch.allclose(drawn[1].running_mean, (30 * pool + 3 * own) / 33, atol=1e-5)
    assert distance(far, 0, pool) == 0 if 0 in ek.domains_of(far) else torch.equal(far[1].running_mean, pool)


def test_by_the_errors_domains_that_are_alike_are_nearer_to_the_truth():
    """Domains without any difference: what an automatic prior leaves of the distance from the pool."""
    plain, auto = small(), small()
    x, sites = torch.randn(400, 6), torch.arange(400) % 10
    batches = list(zip(x.split(100), sites.split(100), strict=True))
    done = ek.reestimate_domains_(plain, batches, by=1)
    ek.reestimate_domains_(auto, batches, by=1, prior="auto")
    pool = plain[1].running_mean.clone()
    assert sum(distance(auto, s, pool) for s in range(10)) < 0.5 * sum(distance(plain, s, pool) for s in range(10))
    assert any("less than two standard errors" in note for note in done.notes)


def test_undo_takes_domains_and_pool_back():
    model = small()
    before = Snapshot(model, world=False)
    ek.reestimate_domains_(model, BATCHES, by=1).undo()
    assert before.changes() == [] and ek.domains_of(model) == {}


def test_the_report_names_the_worst_norm_of_every_domain():
    model = small()
    x = X.clone()
    x[SITES == 2] *= 4
    done = ek.reestimate_domains_(model, list(zip(x.split(32), SITES.split(32), strict=True)), by=1)
    row = done[2]
    with ek.in_domain(model, 2):
        inside = model[1].running_var.double().mean()
    (first,) = [norm for norm in row.norms if norm.path == "1"]
    assert first.ratio == pytest.approx(float(inside / model[1].running_var.double().mean()), rel=1e-6)
    assert row.worst.path in str(done) and f"{row.worst.ratio:.3f}" in str(done)
    assert done.to_dict()["rows"][2]["norms"][0]["path"] == "1"
    assert done.to_dict()["rows"][2]["worst"] == row.worst.path


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.norm = nn.Embedding(10, 6), nn.BatchNorm1d(6)
        self(torch.randint(10, (64,)))

    def forward(self, tokens):
        return self.norm(self.table(tokens))


@pytest.mark.parametrize("by", [0, -2])
@pytest.mark.parametrize("kind", [tuple, list])
def test_labels_that_come_first_are_not_what_the_model_is_called_on(by, kind):
    model, other = Tokens(), Tokens()
    tokens, sites = torch.randint(10, (64,)), torch.arange(64) % 2
    batches = [kind(pair) for pair in zip(sites.split(16), tokens.split(16), strict=True)]
    ek.reestimate_domains_(model, batches, by=by)
    ek.reestimate_(other, list(tokens.split(16)), match="variance")
    assert equal(model, other)


def test_sites_are_not_taken_for_classes_and_a_regression_is_warned_of():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 4))
    for _ in range(50):
        model(X)
    with pytest.warns(ek.StretchWarning, match="norm '3' right behind a dropout"):
        done = ek.reestimate_domains_(model, BATCHES, by=1)
    assert any("a regression's error may grow" in note for note in done.notes)


def test_norms_that_a_domain_does_not_reach_are_named():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.BatchNorm1d(6), nn.BatchNorm1d(6)

        def forward(self, x):
            return self.left(x) if x[0, 0] > 0 else self.right(x)

    model, x = Branch(), X.clone()
    x[:, 0] = x[:, 0].abs() * (1 - 2 * (torch.arange(240) // 120))
    for half in x.split(120):
        model(half)
    done = ek.reestimate_domains_(model, [(part, i // 2) for i, part in enumerate(x.split(60))], by=1)
    assert [sorted(of) for of in done.domains.values()] == [["left"], ["right"]]
    assert "domain 0 has no statistics of its own at right: those of all hold" in done.notes
    assert "domain 1 has no statistics of its own at left: those of all hold" in done.notes


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (b"north", "not b'north', bytes: decode"),
        ([b"n"] * 32, "not b'n', bytes: decode"),
        (None, "not None"),
        (torch.full((32,), torch.nan), "not nan"),
        (torch.zeros(32, 2), r"not \[0.0, 0.0\]"),
        (torch.zeros(0, 1), "gives 0 labels"),
    ],
)
def test_what_is_no_label_is_said(labels, message):
    model = small()
    before = Snapshot(model, world=False)
    with pytest.raises(ek.BatchError, match=message):
        ek.reestimate_domains_(model, [(X[:32], labels)], by=1)
    assert before.changes() == []


def test_the_report_says_labels_as_they_are():
    x, sites = torch.randn(40, 6), torch.arange(40) % 2
    done = ek.reestimate_domains_(small(), list(zip(x.split(10), sites.split(10), strict=True)), by=1)
    assert "domain 0 and 1 more: some norms differ" in done.notes[-1]
    assert repr(done).startswith("DomainReport(2 domains; the norms store the statistics of all, 40 samples")
