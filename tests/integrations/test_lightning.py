"""Lightning's callback: the statistics that validations, or the model after fit, have; training never notices."""

import copy
import logging
from functools import partial
from itertools import product

import pytest
import torch
from smallnet import SmallNet, same, samples, worst_shift
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import evenkeel as ek

lightning = pytest.importorskip("lightning.pytorch")
from lightning.pytorch.callbacks import (  # noqa: E402
    Callback,
    EMAWeightAveraging,
    StochasticWeightAveraging,
    WeightAveraging,
)

from evenkeel.integrations.lightning import (  # noqa: E402
    DropoutScheduleCallback,
    FreezeNormsCallback,
    ReestimationCallback,
    ShiftLogCallback,
)

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
# Lightning's advice on workers and frozen layers, and its own use of torch
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*(many workers|in eval mode|LeafSpec)")]


class Module(lightning.LightningModule):
    def __init__(self, frozen=False, fails=False):
        super().__init__()
        self.net = SmallNet()
        self.frozen, self.fails = frozen, fails
        self.validated = []  # copies of the net as it was validated
        self.batches = []  # that training saw
        self.autocast = set()
        self.train()

    def train(self, mode=True):
        super().train(mode)
        if self.frozen:
            self.net[1].eval()
        return self

    def forward(self, x):
        self.autocast.add(torch.is_autocast_enabled("cpu"))
        return self.net(x)

    def training_step(self, batch, _):
        self.batches.append(batch[0])
        return F.cross_entropy(self(batch[0]).float(), batch[1])

    def validation_step(self, batch, index):
        if index == 0:
            self.validated.append(copy.deepcopy(self.net))
        if self.fails:
            raise ArithmeticError("validation fails")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


X, Y = samples(64)


def loader(batch_size=16, **options):
    return DataLoader(TensorDataset(X, Y), batch_size, **options)


def fit(module, callback, data=None, **options):
    """Train a module with callbacks, if any: one, or a list of several."""
    torch.manual_seed(3)
    callbacks = callback if isinstance(callback, list) else [callback] if callback else []
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_epochs=2, callbacks=callbacks, enable_model_summary=False, **quiet | options)
    shuffled = loader(shuffle=True, generator=torch.Generator().manual_seed(4))
    trainer.fit(module, shuffled if data is None else data, loader())
    return module


def test_at_the_end_of_fit_the_statistics_are_those_of_the_training_data():
    callback = ReestimationCallback()
    module, without = fit(Module(), callback), fit(Module(), None)
    assert worst_shift(module.net, X) < 1 + 1e-5 and worst_shift(without.net, X) > 1.1
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), without.parameters(), strict=True))
    assert callback.reestimation.samples == 64
    callback.reestimation.undo()
    assert same(module, without)


@pytest.mark.parametrize("interval", [0.5, 1.0])
@pytest.mark.parametrize("workers", [{}, {"num_workers": 1, "persistent_workers": True}], ids=["none", "stay"])
def test_validation_sees_new_statistics_and_training_none_of_it(interval, workers):
    data = [loader(shuffle=True, generator=torch.Generator().manual_seed(4), **workers) for _ in range(2)]
    module = fit(Module(), ReestimationCallback("validation"), data[0], val_check_interval=interval)
    without = fit(Module(), None, data[1], val_check_interval=interval)
    assert len(module.validated) == 1 + 2 / interval  # the first is the sanity check
    assert all(worst_shift(net, X) < 1 + 1e-5 for net in module.validated[1:])
    assert all(worst_shift(net, X) > 1.1 for net in without.validated[1:])
    assert all(torch.equal(a, b) for a, b in zip(module.batches, without.batches, strict=True))
    assert same(module, without)


def test_the_sanity_check_and_validation_without_training_leave_the_statistics():
    module = fit(Module(), callback := ReestimationCallback("validation"))
    found = copy.deepcopy(module.validated[0])
    assert same(found, Module().net)
    lightning.Trainer(logger=False, enable_progress_bar=False, accelerator="cpu", callbacks=[callback]).validate(
        module, loader(), verbose=False
    )
    assert same(module.validated[-1], module.net)


def test_frozen_norms_stay_as_they_are_in_validation_too():
    module = fit(Module(frozen=True), callback := ReestimationCallback("validation"))
    for net in module.validated:
        assert torch.equal(net[1].running_var, torch.ones(8))
    assert list(callback.reestimation.untouched) == ["net.1"]
    assert not torch.equal(module.validated[1][5].running_var, torch.ones(8))


def test_a_validation_that_fails_leaves_the_statistics_of_training():
    module = Module(fails=True)
    with pytest.raises(ArithmeticError):
        fit(module, ReestimationCallback("validation"), num_sanity_val_steps=0)
    assert not same(module.validated[0], module.net)
    without = Module(fails=True)
    with pytest.raises(ArithmeticError):
        fit(without, None, num_sanity_val_steps=0)
    assert same(module, without)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16)])
def test_the_trainers_precision_is_used(precision, dtype):
    module = fit(Module(), callback := ReestimationCallback(), precision=precision)
    assert module.net[1].running_var.dtype == dtype
    assert module.autocast == {precision == "bf16-mixed"}
    assert callback.reestimation.samples == 64


def test_batches_and_forward_of_ones_own():
    callback = ReestimationCallback(
        batches=[{"value": torch.randn(32, 4)}] * 3,
        forward=lambda module, batch: module.net(batch["value"]),
        max_batches=2,
    )
    fit(Module(), callback)
    assert (callback.reestimation.batches, callback.reestimation.samples) == (2, 64)


class Shifting(Module):
    """Its batches are shifted on their way to the device."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] + 5, batch[1]


def test_batches_pass_through_the_hooks_that_training_has():
    module = fit(Shifting(), ReestimationCallback())
    assert worst_shift(module.net, X + 5) < 1 + 1e-5
    assert torch.allclose(module.net[1].running_mean, module.net[0](X + 5).mean(0), atol=1e-5)


def test_the_trainers_limit_on_batches_holds():
    fit(Module(), callback := ReestimationCallback(), limit_train_batches=3)
    assert callback.reestimation.batches == 3


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield from zip(X, Y, strict=True)


def test_of_an_endless_loader_as_many_batches_count_as_training_took():
    fit(Module(), callback := ReestimationCallback(), DataLoader(Endless(), 16), max_steps=6)
    assert callback.reestimation.batches == 6


def test_several_training_loaders_are_refused_before_training():
    with pytest.raises(ek.EvenkeelError, match="several training loaders"):
        fit(module := Module(), ReestimationCallback(), {"a": loader(), "b": loader()})
    assert not module.batches


# averaged weights

AVERAGES = {
    "ema": partial(EMAWeightAveraging, decay=0.7, use_buffers=False),
    "ema of buffers": partial(EMAWeightAveraging, decay=0.7),
    "mean": partial(WeightAveraging, use_buffers=False),
    "swa": partial(StochasticWeightAveraging, 0.05, swa_epoch_start=1),
}


class Saves(Callback):
    """Saves a checkpoint in the midst of every validation."""

    def __init__(self, path):
        self.path = path

    def on_validation_batch_end(self, trainer, *_):
        trainer.save_checkpoint(self.path)


def norms_in(checkpoint):
    """The statistics in a checkpoint, of the module and of its average."""
    content = torch.load(checkpoint, weights_only=False)
    states = [content["state_dict"], content.get("current_model_state", {})]
    return [value for state in states for name, value in state.items() if "running" in name]


@pytest.mark.parametrize("order", [1, -1], ids=["behind", "before"])
@pytest.mark.parametrize("average", AVERAGES)
def test_averaged_weights_are_validated_on_statistics_of_their_own(tmp_path, average, order):
    def trained(*callbacks):
        saves = Saves(tmp_path / f"{len(callbacks)}.ckpt")
        return fit(Module(), [*callbacks, saves], val_check_interval=0.5, num_sanity_val_steps=0)

    averaging, callback = AVERAGES[average](), ReestimationCallback("validation")
    module, without = trained(*[averaging, callback][::order]), trained(AVERAGES[average]())
    assert len(module.validated) == len(without.validated) > 1
    for net, other in zip(module.validated, without.validated, strict=True):
        assert worst_shift(net, X) < 1 + 1e-5
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert same(module, without)
    saved, expected = (norms_in(tmp_path / f"{count}.ckpt") for count in (2, 1))
    assert saved and all(torch.equal(a, b) for a, b in zip(saved, expected, strict=True))


@pytest.mark.parametrize("order", [1, -1], ids=["behind", "before"])
@pytest.mark.parametrize("average", AVERAGES)
def test_at_the_end_of_fit_averaged_weights_get_statistics_that_stay(tmp_path, average, order):
    module = fit(Module(), [AVERAGES[average](), ReestimationCallback()][::order])
    without = fit(Module(), AVERAGES[average]())
    assert worst_shift(module.net, X) < 1 + 1e-5 < worst_shift(without.net, X)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), without.parameters(), strict=True))
    module.trainer.validate(module, loader(), verbose=False)
    assert worst_shift(module.validated[-1], X) < 1 + 1e-5
    module.trainer.save_checkpoint(tmp_path / "end.ckpt")
    state = torch.load(tmp_path / "end.ckpt", weights_only=False)["state_dict"]
    assert torch.equal(state["net.5.running_var"], module.net[5].running_var)


class Regressor(Module):
    """Returns one value a sample."""

    def forward(self, x):
        return self.net(x).sum(1, keepdim=True)

    def training_step(self, batch, _):
        return F.mse_loss(self(batch[0]), batch[0][:, :1])


@pytest.mark.parametrize(
    ("when", "average"),
    [*product(["validation"], [name for name in AVERAGES if name != "swa"]), *product(["fit_end"], AVERAGES)],
)
def test_a_regressions_averaged_weights_get_statistics_of_their_own_too(when, average):
    """Its mean is not matched, which keeps what other weights have left."""
    callback = ReestimationCallback(when)
    module = fit(Regressor(), [AVERAGES[average](), callback], num_sanity_val_steps=0)
    assert callback.reestimation.match == "variance"
    assert worst_shift(module.validated[-1] if when == "validation" else module.net, X) < 1 + 1e-5


def test_what_to_match_of_averaged_weights_is_the_callers_to_say():
    callback = ReestimationCallback("validation", match="mean")
    fit(Module(), [AVERAGES["ema"](), callback], num_sanity_val_steps=0)
    assert callback.reestimation.match == "mean"


def test_a_failed_validation_of_averaged_weights_leaves_what_it_would_without():
    modules = [Module(fails=True), Module(fails=True)]
    for module, callbacks in zip(modules, ([ReestimationCallback("validation")], []), strict=True):
        with pytest.raises(ArithmeticError):
            fit(module, [*callbacks, AVERAGES["ema"]()], num_sanity_val_steps=0)
    assert same(*modules)


class AtEnd(Module):
    """Looks at its net at the end of a validation, and may swap weights before, as a callback would."""

    def on_validation_epoch_end(self):
        self.validated.append(copy.deepcopy(self.net))


class Swapping(AtEnd):
    def on_validation_epoch_start(self):
        pass


@pytest.mark.parametrize("kind", [AtEnd, Swapping])
def test_the_modules_own_hook_sees_new_statistics_unless_it_may_swap_weights(kind):
    module = fit(kind(), ReestimationCallback("validation"), num_sanity_val_steps=0)
    assert worst_shift(module.validated[0], X) < 1 + 1e-5
    assert (worst_shift(module.validated[1], X) < 1 + 1e-5) == (kind is AtEnd)
    assert same(module, fit(Module(), None))


def test_another_time_is_refused():
    with pytest.raises(ek.EvenkeelError, match="when must be"):
        ReestimationCallback("train_end")


# within training: 8 steps in 2 epochs


class Watch(Callback):
    """Notes, batch by batch, the rate and the statistics that training runs on."""

    def __init__(self):
        self.rates, self.statistics, self.flags = [], [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.rates.append(module.net[3].p)
        self.statistics.append(module.net[1].running_var.clone())
        self.flags.append((module.net[1].training, module.net[3].training))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_does_not_notice_a_log(tmp_path, precision):
    callback = ShiftLogCallback(tmp_path / "shift.csv", every=3, norms=["net.5"], max_batches=2)
    module = fit(Module(), [callback, own := ShiftLogCallback(batches=[X])], precision=precision)
    without = fit(Module(), None, precision=precision)
    assert same(module, without)
    assert all(torch.equal(a, b) for a, b in zip(module.batches, without.batches, strict=True))
    assert [(row.step, row.epoch, row.path) for row in ek.ShiftHistory.read(tmp_path / "shift.csv")] == [
        (3, 0, "net.5"),
        (4, 1, "net.5"),
        (6, 1, "net.5"),
        (8, 2, "net.5"),
    ]
    assert module.autocast == {precision == "bf16-mixed"}
    if precision == "32-true":
        assert [row.ratio for row in own.log.history][-2:] == [row.ratio for row in ek.variance_shift(module.net, [X])]


def test_rates_follow_the_schedule_and_are_put_back():
    callback = DropoutScheduleCallback(partial(ek.DropoutSchedule.quiet_end, last=3))
    module = fit(Module(), [callback, watch := Watch()])
    assert watch.rates == [0.5] * 5 + [0.0] * 3 and module.net[3].p == 0.5
    failing = Module(fails=True)
    with pytest.raises(ArithmeticError):
        fit(failing, DropoutScheduleCallback(partial(ek.DropoutSchedule.late, start=6)), num_sanity_val_steps=0)
    assert failing.net[3].p == 0.5


def test_steps_of_the_optimizer_count_where_gradients_accumulate():
    schedule = DropoutScheduleCallback(partial(ek.DropoutSchedule.quiet_end, last=1))
    log = ShiftLogCallback(every=2)
    fit(Module(), [schedule, log, watch := Watch()], accumulate_grad_batches=2)
    assert watch.rates == [0.5] * 3 + [0.0] and log.log.history.steps == (2, 4)


def test_norms_are_frozen_on_settled_statistics_for_the_last_steps():
    callback = FreezeNormsCallback(last=3)
    module = fit(Module(), [callback, watch := Watch()])
    assert [flag for flag, _ in watch.flags] == [True] * 5 + [False] * 3 and all(flag for _, flag in watch.flags)
    assert all(torch.equal(s, module.net[1].running_var) for s in watch.statistics[5:])
    assert not torch.equal(watch.statistics[4], module.net[1].running_var)
    assert callback.frozen.reestimation.samples == 64 and "train" not in vars(module.net[1])


def test_a_trainer_without_an_end_is_refused_by_what_needs_one():
    for callback in (FreezeNormsCallback(2), DropoutScheduleCallback(partial(ek.DropoutSchedule.quiet_end, last=3))):
        with pytest.raises(ek.EvenkeelError, match="does not know how many steps"):
            fit(Module(), callback, DataLoader(Endless(), 16), max_steps=-1)
    with pytest.raises(ek.EvenkeelError, match="last is 0"):
        FreezeNormsCallback(0)


@pytest.mark.parametrize("stop", [4, 6])
def test_resumed_equals_uninterrupted(tmp_path, stop):
    """Rates, frozen norms and the log's file, from a checkpoint before or within the frozen steps."""

    def run(name, *more, path=None):
        torch.manual_seed(3)
        callbacks = [
            ShiftLogCallback(tmp_path / f"{name}.csv", every=2, batches=[X]),
            DropoutScheduleCallback(partial(ek.DropoutSchedule.early, until=5)),
            FreezeNormsCallback(last=3, batches=[X]),
            *more,
        ]
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
        quiet |= {"enable_model_summary": False, "limit_val_batches": 1, "num_sanity_val_steps": 0}
        trainer = lightning.Trainer(max_steps=8, callbacks=callbacks, **quiet)
        module = Seeded()
        trainer.fit(module, loader(32), loader(), ckpt_path=path)
        return module

    class Seeded(Module):
        def on_train_batch_start(self, batch, index):
            torch.manual_seed(self.trainer.global_step)

    class Stops(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == stop:
                trainer.save_checkpoint(tmp_path / "stop.ckpt")
            if trainer.global_step == stop + 1:
                raise ArithmeticError

    whole = run("whole")
    with pytest.raises(ArithmeticError):
        run("parts", Stops())
    resumed = run("parts", path=tmp_path / "stop.ckpt")
    assert same(whole, resumed)
    assert (tmp_path / "whole.csv").read_bytes() == (tmp_path / "parts.csv").read_bytes()
