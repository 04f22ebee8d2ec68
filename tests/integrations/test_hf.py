"""Hugging Face's callback: the statistics that evaluations, or the trained model, have; training never notices."""

import copy
from functools import partial

import pytest
import torch
from smallnet import SmallNet, same, samples, worst_shift
from torch import nn
from torch.nn import functional as F

import evenkeel as ek

transformers = pytest.importorskip("transformers")
from evenkeel.integrations.hf import (  # noqa: E402
    DropoutScheduleCallback,
    FreezeNormsCallback,
    ReestimationCallback,
    ShiftLogCallback,
)

pytestmark = pytest.mark.slow

X, Y = samples(64)
DATA = [{"x": x, "labels": label} for x, label in zip(X, Y, strict=True)]


class Model(nn.Module):
    def __init__(self, frozen=False):
        super().__init__()
        self.net, self.frozen = SmallNet(), frozen
        self.evaluated, self.batches = [], []

    def train(self, mode=True):
        super().train(mode)
        if self.frozen:
            self.net[1].eval()
        return self

    def forward(self, x, labels=None):
        if torch.is_grad_enabled():
            self.batches.append(x)
        logits = self.net(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Trainer(transformers.Trainer):
    def evaluation_loop(self, *args, **options):
        self.model.evaluated.append(copy.deepcopy(self.model.net))
        return super().evaluation_loop(*args, **options)


def trainer_of(folder, callback, model=None, evaluate=DATA[:32], data=DATA, **options):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=16,
        learning_rate=0.05,
        **{"use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True, "seed": 1} | options,
    )
    callbacks = [callback] if callback else []
    trainer = Trainer(model or Model(), arguments, train_dataset=data, eval_dataset=evaluate, callbacks=callbacks)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def train(*args, **options):
    trainer = trainer_of(*args, **options)
    trainer.train()
    return trainer.model


def test_after_training_the_statistics_are_those_of_the_training_data(tmp_path):
    callback = ReestimationCallback()
    model, without = train(tmp_path, callback), train(tmp_path, None)
    assert worst_shift(model.net, X) < 1 + 1e-5 and worst_shift(without.net, X) > 1.1
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), without.parameters(), strict=True))
    callback.reestimation.undo()
    assert same(model, without)


@pytest.mark.parametrize("schedule", [{"eval_strategy": "epoch"}, {"eval_strategy": "steps", "eval_steps": 2}])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_evaluation_sees_new_statistics_and_training_none_of_it(tmp_path, schedule, accumulate):
    options = schedule | {"gradient_accumulation_steps": accumulate}
    model, without = (train(tmp_path, c, **options) for c in (ReestimationCallback("evaluation"), None))
    assert model.evaluated and len(model.evaluated) == len(without.evaluated)
    assert all(worst_shift(net, X) < 1 + 1e-5 for net in model.evaluated)
    assert all(worst_shift(net, X) > 1.1 for net in without.evaluated)
    assert all(torch.equal(a, b) for a, b in zip(model.batches, without.batches, strict=True))
    assert same(model, without)


def test_the_best_model_is_what_gets_the_statistics(tmp_path):
    checkpoints = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    model = train(tmp_path, ReestimationCallback(), **checkpoints, metric_for_best_model="loss")
    assert worst_shift(model.net, X) < 1 + 1e-5


def test_options_and_batches_of_ones_own(tmp_path):
    callback = ReestimationCallback(
        batches=[X[:32], X[32:]], forward=lambda model, batch: model.net(batch), max_batches=1
    )
    train(tmp_path, callback)
    assert (callback.reestimation.batches, callback.reestimation.samples) == (1, 32)


@pytest.mark.parametrize("when", ["train_end", "evaluation"])
def test_frozen_norms_stay_as_they_are(tmp_path, when):
    callback = ReestimationCallback(when)
    model = train(tmp_path, callback, Model(frozen=True), eval_strategy="epoch")
    assert list(callback.reestimation.untouched) == ["net.1"]
    assert all(
        torch.equal(net[1].running_var, model.evaluated[0][1].running_var) for net in (model.net, *model.evaluated)
    )


def test_every_one_of_several_evaluation_sets_sees_new_statistics(tmp_path):
    sets = {"one": DATA[:32], "other": DATA[32:]}
    callback = ReestimationCallback("evaluation", eval_sets=2)
    model = train(tmp_path, callback, evaluate=sets, eval_strategy="epoch")
    assert len(model.evaluated) == 4 and all(worst_shift(net, X) < 1 + 1e-5 for net in model.evaluated)
    assert same(model, train(tmp_path, None, evaluate=sets, eval_strategy="epoch"))


class Cancels(transformers.TrainerCallback):
    def on_epoch_end(self, args, state, control, **_):
        control.should_evaluate = False


def test_an_evaluation_that_is_called_off_leaves_training_its_statistics(tmp_path):
    trainer = trainer_of(tmp_path, ReestimationCallback("evaluation"), eval_strategy="epoch")
    trainer.add_callback(Cancels())
    trainer.train()
    assert not trainer.model.evaluated and same(trainer.model, train(tmp_path, None))


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            yield from DATA


def test_of_an_endless_loader_as_many_batches_count_as_training_took(tmp_path):
    callback = ReestimationCallback()
    train(tmp_path, callback, data=Endless(), max_steps=6)
    assert callback.reestimation.batches == 6


def test_another_time_is_refused():
    with pytest.raises(ek.EvenkeelError, match="when must be"):
        ReestimationCallback("fit_end")


# within training: 8 steps in 2 epochs


class Watched(Model):
    """Notes the rate and the statistics that training runs on."""

    def __init__(self):
        super().__init__()
        self.rates, self.flags, self.statistics = [], [], []

    def forward(self, x, labels=None):
        if torch.is_grad_enabled():
            self.rates.append(self.net[3].p)
            self.flags.append((self.net[1].training, self.net[3].training))
            self.statistics.append(self.net[1].running_var.clone())
        return super().forward(x, labels)


def test_training_does_not_notice_a_log(tmp_path):
    callback = ShiftLogCallback(tmp_path / "shift.csv", every=3, max_batches=2)
    model, without = train(tmp_path, callback), train(tmp_path, None)
    assert same(model, without)
    assert all(torch.equal(a, b) for a, b in zip(model.batches, without.batches, strict=True))
    rows = ek.ShiftHistory.read(tmp_path / "shift.csv")
    assert [(row.step, row.epoch, row.path) for row in rows[::2]] == [
        (3, 0, "net.1"),
        (4, 1, "net.1"),
        (6, 1, "net.1"),
        (8, 2, "net.1"),
    ]


@pytest.mark.parametrize("evaluation", [{}, {"eval_strategy": "steps", "eval_steps": 1}])
def test_rates_and_frozen_norms_of_the_last_steps(tmp_path, evaluation):
    schedule = DropoutScheduleCallback(partial(ek.DropoutSchedule.quiet_end, last=2))
    freezing, log = FreezeNormsCallback(last=3), ShiftLogCallback()
    model = Watched()
    trainer = trainer_of(tmp_path, schedule, model, **evaluation)
    trainer.add_callback(freezing)
    trainer.add_callback(log)
    trainer.train()
    assert model.rates == [0.5] * 6 + [0.0] * 2 and model.net[3].p == 0.5
    assert [flag for flag, _ in model.flags] == [True] * 5 + [False] * 3 and all(flag for _, flag in model.flags)
    assert all(torch.equal(s, model.net[1].running_var) for s in model.statistics[5:])
    assert freezing.frozen.reestimation.samples == 64 and "train" not in vars(model.net[1])
    assert log.log.history.steps == (4, 8)


def test_resumed_equals_uninterrupted(tmp_path):
    def run(name, **options):
        model = Watched()
        trainer = trainer_of(tmp_path / name, None, model, save_strategy="steps", save_steps=2, **options)
        trainer.add_callback(DropoutScheduleCallback(partial(ek.DropoutSchedule.early, until=5)))
        trainer.add_callback(FreezeNormsCallback(last=3, batches=[{"x": X, "labels": Y}]))
        trainer.add_callback(ShiftLogCallback(tmp_path / f"{name}.csv", every=2, batches=[{"x": X, "labels": Y}]))
        return model, trainer

    whole, trainer = run("whole")
    trainer.train()
    for first in (4, 6):
        resumed, trainer = run("whole")
        trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{first}"))
        assert same(whole, resumed) and resumed.rates == whole.rates[first:]
    assert ek.ShiftHistory.read(tmp_path / "whole.csv").steps == (2, 4, 6, 8)
