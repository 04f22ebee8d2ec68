"""adapted and predict_adapted: what norms store inside, that nothing is left of it, and which streams are warned of."""

import warnings

import pytest
import torch
import torch.ao.quantization as tq
from hypothesis import given, settings
from models import specs
from snapshots import Snapshot
from torch import nn

import evenkeel as ek

STATISTICS = ("running_mean", "running_var")


def small(seed=0):
    """A net with dropout, in train mode, that stores the statistics of many samples."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8)
    )
    ek.reestimate_(model, torch.randn(2000, 6).split(100), unsure="write")
    return model


def stored(model):
    return [b.clone() for name, b in model.named_buffers() if name.endswith(STATISTICS)]


def equal(left, right):
    return all(map(torch.equal, left, right))


BATCH = 1 + torch.randn(24, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("is_training", [True, False])
def test_an_infinite_prior_is_the_model_itself_in_eval_mode(is_training):
    model = small().train(is_training)
    before = Snapshot(model, world=False)
    with ek.adapted(model, BATCH, prior=float("inf")) as done:
        inside = model(BATCH)
    assert before.changes() == []
    assert torch.equal(inside, model.eval()(BATCH))
    assert len(done) == 0 and all("prior=inf" in reason for reason in done.untouched.values())


@pytest.mark.parametrize("prior", [0, 5.5, "auto", {"1": float("inf")}])
def test_inside_norms_store_what_reestimate_gives_on_that_batch(prior):
    model, other = small(), small()
    ek.reestimate_(other, [BATCH], prior=prior, match="variance")
    with ek.adapted(model, BATCH, prior=prior):
        assert equal(stored(model), stored(other))
        assert torch.equal(model(BATCH), other.eval()(BATCH))


@pytest.mark.slow
@settings(max_examples=5)
@given(specs(fails=False))
def test_no_prior_is_reestimation_on_any_net(spec):
    model, other, batch = spec.build(), spec.build(), spec.batches()[0]
    try:
        ek.reestimate_(other, [batch], match="variance", memory=0)
    except ek.EvenkeelError as error:
        with pytest.raises(type(error)), ek.adapted(model, batch, prior=0):
            pass
        return
    with ek.adapted(model, batch, prior=0):
        assert equal(stored(model), stored(other))


@pytest.mark.parametrize("mode", [True, False])
def test_nothing_is_left_when_the_body_raises(mode):
    model = small().train(mode)
    before = Snapshot(model)
    with pytest.raises(KeyError), ek.adapted(model, BATCH):
        assert not any(module.training for module in model.modules())
        model(BATCH)
        raise KeyError
    assert before.changes() == []


def test_contexts_nest():
    model = small()
    before = Snapshot(model)
    with ek.adapted(model, BATCH, prior=0):
        outer = stored(model)
        with ek.adapted(model, 3 * BATCH, prior=0):
            assert not equal(stored(model), outer)
        assert equal(stored(model), outer)
    assert before.changes() == []


def test_the_weight_of_a_norm_is_its_error_over_its_distance():
    """By the formulas, slowly: 24 samples in 8 runs of 3, whose means and squares about the mean of all differ."""
    model = small()
    norm, x = model[1], model[0](BATCH).detach().double()
    mean, scale = x.mean(0), float(x.var(0).mean())
    old_mean, old_var = norm.running_mean.double(), norm.running_var.double()
    parts = x.split(3)
    of_means = torch.stack([part.mean(0) for part in parts]).var(0) / 8
    of_variances = torch.stack([((part - mean) ** 2).mean(0) for part in parts]).var(0) / 8
    biased = x.var(0, correction=0).clamp_min(1e-3 * scale)
    spread = (of_means / biased) ** 2
    half = 1 / torch.maximum(of_variances / biased**2 + 3 * spread, 2 * 8 * spread)
    of_logs = torch.polygamma(1, half) + (torch.digamma(half) - half.log()) ** 2
    error = float(of_means.mean()) / scale + float(of_logs.mean())
    moved = float(((mean - old_mean) ** 2).mean()) / scale
    distance = moved + float(((x.var(0).log() - old_var.log()) ** 2).mean())
    part = 11 / 7 * error / distance
    with ek.adapted(model, BATCH):
        expected = part * old_mean + (1 - part) * mean
        assert torch.allclose(norm.running_mean.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [BATCH[:1], BATCH[:1, :, None, None].expand(1, 6, 5, 5) + torch.randn(1, 6, 5, 5)])
def test_of_one_sample_the_old_statistics_count_for_16(batch):
    shape = (nn.Linear(6, 6), nn.BatchNorm1d(6)) if batch.ndim == 2 else (nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6))
    torch.manual_seed(0)
    model = nn.Sequential(*shape).eval()
    with ek.adapted(model, batch, prior=16):
        expected = stored(model)
    with ek.adapted(model, batch) as done:
        assert equal(stored(model), expected)
    assert any("16 samples" in note for note in done.notes)


def test_the_order_of_samples_matters_no_more_than_their_standard_error():
    model, results = small(), []
    for seed in range(20):
        order = torch.randperm(len(BATCH), generator=torch.Generator().manual_seed(seed))
        with ek.adapted(model, BATCH[order]) as done:
            results.append(model[1].running_mean.clone())
            error = done.measured["1"].errors[0] * float(done.measured["1"].variance.mean()) ** 0.5
    spread = torch.stack(results).std(0).square().mean().sqrt()
    assert float(spread) < error


def test_few_samples_of_the_same_data_hardly_move_norms_and_of_others_do():
    near, far = [], []
    for seed in range(10):
        model = small(seed)
        old, batch = stored(model), torch.randn(8, 6)
        with ek.adapted(model, batch):
            near.append(float((stored(model)[0] - old[0]).norm()))
        with ek.adapted(model, batch, prior=0):
            far.append(float((stored(model)[0] - old[0]).norm()))
    assert sum(near) < 0.5 * sum(far)


# Streams


@pytest.fixture(scope="module")
def digits():
    """A net trained on digits, and digits that it has not seen, with their labels."""
    from sklearn.datasets import load_digits

    x, y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    x, torch_state = x.float() / 8 - 1, torch.get_rng_state()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 48), nn.BatchNorm1d(48))
    model = nn.Sequential(*model, nn.ReLU(), nn.Linear(48, 10))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        chosen = torch.randint(900, (128,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    torch.set_rng_state(torch_state)
    return model.eval(), x[-640:], y[-640:]


def warned(model, batches, **options):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        outputs = [outputs for _, outputs in ek.predict_adapted(model, batches, **options)]
    return [str(warning.message) for warning in found], outputs


@pytest.mark.parametrize("size", [8, 32, 64])
def test_a_stream_sorted_by_class_is_warned_of_once(digits, size):
    model, x, y = digits
    messages, outputs = warned(model, x[y.argsort()].split(size))
    (message,) = messages
    assert "sorted by class: of batch" in message and "chi-squared" in message
    assert len(outputs) == -(-len(x) // size)


@pytest.mark.parametrize("options", [{}, {"prior": 0}, {"prior": 16, "running": True}])
def test_shuffled_streams_are_not(digits, options):
    model, x, _ = digits
    for seed in range(5):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        assert warned(model, x[order].split(64), **options)[0] == []


@pytest.mark.parametrize("is_sorted", [True, False])
def test_of_what_is_no_classifier_statistics_tell(digits, is_sorted):
    model, x, y = digits
    encoder = model[:6]
    sized = nn.Sequential(*encoder, nn.Linear(48, 1)).eval()
    for seed in range(1 if is_sorted else 3):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        order = y.argsort() if is_sorted else order
        messages, _ = warned(sized, x[order].split(64))
        assert len(messages) == is_sorted
    if is_sorted:
        assert "means of 8 batches vary" in messages[0] and "at norm" in messages[0]


def test_of_a_stream_each_batch_is_adapted_to_by_itself(digits):
    model, x, _ = digits
    before, batches = Snapshot(model), list(x[:96].split(24))
    found = ek.predict_adapted(model, iter(batches))
    for batch, (same, outputs) in zip(batches, found, strict=True):
        assert torch.equal(batch, same)
        assert before.changes() == []
        with ek.adapted(model, batch), torch.no_grad():
            assert torch.equal(outputs, model(batch))


def test_running_statistics_are_carried_from_batch_to_batch(digits):
    model, x, _ = digits
    batches, first = list((x[:96] + 1).split(24)), model[1]
    expected = first.running_mean.double()
    for batch in batches:  # of the first norm, whose input does not depend on others
        expected = (72 * expected + 24 * model[0](batch).detach().double().mean(0)) / 96
    seen = []
    hook = first.register_forward_pre_hook(lambda norm, _: seen.append(norm.running_mean.double().clone()))
    list(ek.predict_adapted(model, batches, prior=72, running=True, watched=False))
    hook.remove()
    assert torch.allclose(seen[-1], expected, atol=1e-5)


def test_a_bad_batch_of_a_stream_is_named_and_leaves_the_model(digits):
    model, x, _ = digits
    before = Snapshot(model)
    with pytest.raises(ek.BatchError, match="in the stream: batch 2 is not finite"):
        list(ek.predict_adapted(model, [x[:8], x[:8] * torch.nan, x[:8]], running=True))
    assert before.changes() == []


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*reduce_range:UserWarning")
@pytest.mark.parametrize("fused", [True, False])
def test_observers_of_quantization_do_not_see_the_other_domain(fused):
    """Neither of these, nor of the flags that switch them off, is anything left."""
    torch.manual_seed(0)
    model = nn.Sequential(tq.QuantStub(), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).train()
    model.qconfig = tq.get_default_qat_qconfig("x86")
    model = tq.prepare_qat(tq.fuse_modules_qat(model, [["1", "2"]]) if fused else model)
    for _ in range(40):
        model(torch.randn(32, 6))
    before = Snapshot(model)
    with ek.adapted(model, BATCH + 9), torch.no_grad():
        inside = model(BATCH + 9)
    assert before.changes() == []
    ((_, streamed),) = ek.predict_adapted(model, [BATCH + 9])
    assert before.changes() == [] and torch.equal(inside, streamed)
    with pytest.raises(KeyError), ek.adapted(model, BATCH):
        raise KeyError
    assert before.changes() == []
