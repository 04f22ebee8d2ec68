"""The sample: replicas stay what they are through every operation, whatever makes the noise."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.graph.kinds import Kind
from evenkeel.graph.tracing import record
from evenkeel.model.flags import set_modes
from evenkeel.model.norms import norms_of
from evenkeel.model.restoring import restored
from evenkeel.prediction.replica_recorder import SamplingPlan
from evenkeel.prediction.replicas import COUNT
from evenkeel.prediction.sampling import Sampled, sample


class Custom(nn.Module):
    """A dropout by another name, which says so."""

    evenkeel_kind = Kind.DROPOUT
    p = 0.25

    def forward(self, x):
        return x * (1 + (torch.rand_like(x) - 0.5)) if self.training else x


class ByHand(nn.Module):
    """Stochastic depth as torchvision and timm write it: a mask a sample."""

    def __init__(self, p, in_place=False):
        super().__init__()
        self.p, self.in_place = p, in_place

    def forward(self, x):
        if not self.training:
            return x
        mask = x.new_empty(len(x), *(1,) * (x.dim() - 1)).bernoulli_(1 - self.p).div_(1 - self.p)
        return x.mul_(mask) if self.in_place else x * mask


class DividedFirst(nn.Module):
    """The same as others write it: the mask's scale goes first."""

    drop_prob = 0.5

    def forward(self, x):
        return x.div(0.5) * torch.floor(0.5 + torch.rand(len(x), *(1,) * (x.dim() - 1))) if self.training else x


class Rewritten(nn.Module):
    """A dropout of what was written to through a view."""

    def forward(self, x):
        x = x.clone()
        x[:, :2].relu_()
        return F.dropout(x, 0.5, self.training)


class OneForAll(nn.Module):
    """One mask for the whole batch."""

    def __init__(self, per_channel=True):
        super().__init__()
        self.per_channel = per_channel

    def forward(self, x):
        if not self.training:
            return x
        shape = (1, x.shape[1], 1) if self.per_channel else (1, 1, 1)
        return x * torch.empty(shape).bernoulli_(0.5).div_(0.5)


class Functional(nn.Module):
    def __init__(self, function, **kwargs):
        super().__init__()
        self.function, self.kwargs = function, kwargs

    def forward(self, x):
        return self.function(x, p=0.5, training=self.training, **self.kwargs)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(6, 18)

    def forward(self, x):
        q, k, v = self.project(x).view(len(x), -1, 3, 6).unbind(2)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.5 if self.training else 0.0)


NOISES = {
    "element": nn.Dropout(0.5),
    "in place": nn.Dropout(0.5, inplace=True),
    "channel": nn.Dropout1d(0.5),
    "alpha": nn.AlphaDropout(0.5),
    "feature alpha": nn.FeatureAlphaDropout(0.5),
    "functional": Functional(F.dropout),
    "functional, in place": Functional(F.dropout, inplace=True),
    "functional channel": Functional(F.dropout1d),
    "stochastic depth": ByHand(0.5),
    "stochastic depth, in place": ByHand(0.5, in_place=True),
    "stochastic depth, divided first": DividedFirst(),
    "one mask for all": OneForAll(per_channel=False),
    "locked": OneForAll(),
    "of what was rewritten": Rewritten(),
    "custom": Custom(),
    "attention": Attention(),
    "encoder layer": nn.TransformerEncoderLayer(6, 2, 12, 0.5, batch_first=True),
    "nothing": nn.Identity(),
}


def sampled(model, example, **options):
    """The sampler, and what the model returned for the replicas."""
    outputs = []
    handle = model.register_forward_hook(lambda module, args, output: outputs.append((args[0], output)))
    run = lambda inputs: model(*inputs)  # noqa: E731
    graph = record(model, run, (example,))
    outputs.clear()
    with restored(model):
        set_modes(model, training=True)
        plan = SamplingPlan(**{name: options.pop(name) for name in ("elements", "settled", "stats") if name in options})
        known = options.pop("known", {})
        recorder, _ = sample(Sampled(model, graph, options.pop("norms", {}), run, (example,), **options), plan, known)
    handle.remove()
    return recorder, *outputs[0]


@pytest.mark.parametrize("name", NOISES)
def test_the_replica_without_noise_is_what_eval_mode_computes(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), NOISES[name], nn.Linear(6, 6), NOISES[name])
    sampler, inputs, outputs = sampled(model, torch.zeros(2, 5, 6))
    noise_free, one, two = outputs.chunk(COUNT)
    with torch.no_grad():
        expected = model.eval()(inputs.chunk(COUNT)[0])
    assert torch.allclose(noise_free, expected, atol=1e-5)
    noisy = name != "nothing"
    assert torch.equal(one, two) is not noisy
    assert torch.allclose(noise_free, one) is not noisy
    assert sampler.samples > 100


def test_replicas_are_of_the_same_inputs_and_two_runs_are_the_same():
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.3))
    (_, first, out), (_, again, out_again) = sampled(model, torch.zeros(2, 6)), sampled(model, torch.ones(3, 6))
    noise_free, one, two = first.chunk(COUNT)
    assert torch.equal(noise_free, one) and torch.equal(one, two)
    assert torch.equal(first, again) and torch.equal(out, out_again), "values of the example do not matter"


@pytest.mark.parametrize("p", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("noise", [nn.Dropout2d, ByHand])
def test_few_samples_show_the_noise_of_rare_masks(noise, p):
    model = nn.Sequential(nn.Identity(), noise(p))
    x = torch.zeros(2, 64, 8, 8)
    _, _, outputs = sampled(model, x, elements=1)
    noise_free, one, two = outputs.chunk(COUNT)
    assert len(noise_free) == 16
    found = float((one - two).square().mean()) / 2 / float(noise_free.square().mean())
    assert found == pytest.approx(p / (1 - p), rel=0.5), "by chance a mask of p = .05 would mostly drop nothing"
    assert torch.allclose(
        (one + two) / 2, noise_free * ((one + two) / 2 / noise_free).mean((2, 3), keepdim=True), atol=1e-4
    )


def test_time_first_is_not_taken_for_the_batch():
    """Sequences of 24 steps are as long as the batch of the fewest samples, twice."""

    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.drop = nn.Linear(6, 6), nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(self.linear(x.transpose(0, 1))).transpose(0, 1)

    model = TimeFirst()
    _, inputs, outputs = sampled(model, torch.zeros(2, 24, 6), elements=1)
    with torch.no_grad():
        assert torch.allclose(outputs.chunk(COUNT)[0], model.eval()(inputs.chunk(COUNT)[0]), atol=1e-5)


@pytest.mark.parametrize("noise", ["rrelu", "unknown rate"])
def test_noise_that_is_no_dropout_is_found(noise):
    class Noisy(nn.Module):
        def forward(self, x):
            return F.rrelu(x, training=self.training) if noise == "rrelu" else x * torch.rand_like(x)

    recorder, _, _ = sampled(nn.Sequential(nn.Dropout(0.5), Noisy()), torch.zeros(2, 6))
    assert [layer.path for layer in recorder.unresolved] == ["1"]


def test_norms_that_store_nothing_normalise_by_the_sample():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.BatchNorm1d(6))
    sampler, _, outputs = sampled(model, torch.zeros(2, 6), norms=norms_of(model))
    _, one, two = outputs.chunk(COUNT)
    trains = torch.cat([one, two])
    assert torch.allclose(trains.mean(0), torch.zeros(6), atol=1e-5)
    assert torch.allclose(trains.var(0, correction=0), torch.ones(6), atol=1e-3)
    assert not model[2].running_mean.any(), "and are given back as found"
    assert set(sampler.arrivals) == {"2"}


def test_settled_norms_hand_on_standardized_signals_without_noise():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(6))
    model[3].running_var.fill_(3.0)
    nn.init.uniform_(model[3].weight), nn.init.normal_(model[3].bias)
    for settled in (False, True):
        norms = norms_of(model)
        sampler, _, outputs = sampled(model, torch.zeros(2, 6), norms=norms, settled=norms.values() if settled else ())
        noise_free, (arrival,) = outputs.chunk(COUNT)[0], sampler.arrivals["3"]
        wanted = model[3].weight.square() if settled else model[3].weight.square() * arrival.channels.eval_var / 3
        assert torch.allclose(noise_free.var(0).double(), wanted.double(), rtol=0.02)
        if settled:
            assert torch.allclose(noise_free.mean(0), model[3].bias, atol=1e-2)


def test_models_that_take_one_size_of_batches_only_are_told_the_size():
    class Fixed(nn.Sequential):
        def forward(self, x):
            return super().forward(x.view(2, 6))

    model = Fixed(nn.Linear(6, 6), nn.BatchNorm1d(6))
    with pytest.raises(ek.TraceError, match=r"with \d+ random inputs in one batch"):
        sampled(model, torch.zeros(2, 6), norms=norms_of(model))


def test_inputs_that_are_no_floats_are_drawn_from_the_example():
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.scale = nn.Embedding(5, 6), nn.Parameter(torch.ones(()))

        def forward(self, ids, factor):
            return self.embedding(ids) * factor * self.scale

    model, seen = Embedded(), []
    model.register_forward_pre_hook(lambda module, args: seen.append(args))
    run, example = (lambda inputs: model(*inputs)), (torch.tensor([[1, 2], [3, 3]]), torch.tensor(2.0))
    graph = record(model, run, example)
    with restored(model):
        set_modes(model, training=True)
        sampler, _ = sample(Sampled(model, graph, {}, run, example))
    ids, factor = seen[-1]
    assert len(ids) == COUNT * sampler.samples and set(ids.flatten().tolist()) == {1, 2, 3}
    assert factor == 2


def test_large_models_get_fewer_samples():
    small, large = nn.Sequential(nn.Conv2d(3, 2, 1)), nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 1))
    few, many = (sampled(m, torch.zeros(1, 3, 16, 16), elements=1 << 20)[0].samples for m in (large, small))
    assert 4 <= few < many <= 4096
    assert few * COUNT * 64 * 256 * 2 <= 1 << 20
    assert math.isclose(few, (1 << 20) / COUNT / (256 * (3 + 64 + 64)), rel_tol=0.2)


class Wide(nn.Module):
    """As many channels as 12 rows of the fewest samples go into, with a batch that comes first, or does not."""

    def __init__(self, how):
        super().__init__()
        self.how, self.conv, self.drop = how, nn.Conv2d(96, 96, 1), nn.Dropout(0.5)
        self.place = nn.Parameter(torch.zeros(1, 96, 1, 1))

    def forward(self, x):
        if self.how == "channels first for a while":
            x = self.drop(x.transpose(0, 1)).transpose(0, 1)
        if self.how == "dropout on a parameter":
            x = x + self.drop(self.place)
        return self.drop(self.conv(x))


@pytest.mark.parametrize("how", ["plainly", "channels first for a while", "dropout on a parameter"])
def test_channels_count_as_rows_nowhere_and_cost_no_samples_where_the_batch_is_first(how):
    model = Wide(how)
    recorder, inputs, outputs = sampled(model, torch.zeros(1, 96, 4, 4), elements=1)
    assert (COUNT * recorder.samples == 12) is (how == "plainly")
    with torch.no_grad():
        assert torch.allclose(outputs.chunk(COUNT)[0], model.eval()(inputs.chunk(COUNT)[0]), atol=1e-5)
