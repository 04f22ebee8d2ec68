"""Hugging Face's callback: the statistics that evaluations, or the trained model, have; training never notices."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evenkeel as ek

transformers = pytest.importorskip("transformers")
from evenkeel.hf import ReestimationCallback  # noqa: E402

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(2))
DATA = [{"x": x, "labels": label} for x, label in zip(X, (X[:, 0] > 0).long(), strict=True)]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8)
        )
        self.evaluated, self.batches = [], []

    def forward(self, x, labels=None):
        if torch.is_grad_enabled():
            self.batches.append(x)
        logits = self.net(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Trainer(transformers.Trainer):
    def evaluation_loop(self, *args, **options):
        self.model.evaluated.append(copy.deepcopy(self.model.net))
        return super().evaluation_loop(*args, **options)


def train(folder, callback, model=None, **options):
    model = model or Model()
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=16,
        learning_rate=0.05,
        **{"use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True, "seed": 1} | options,
    )
    callbacks = [callback] if callback else []
    trainer = Trainer(model=model, args=arguments, train_dataset=DATA, eval_dataset=DATA[:32], callbacks=callbacks)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return model


def worst_shift(net):
    return ek.variance_shift(net, [X]).worst


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_after_training_the_statistics_are_those_of_the_training_data(tmp_path):
    callback = ReestimationCallback()
    model, without = train(tmp_path, callback), train(tmp_path, None)
    assert worst_shift(model.net) < 1 + 1e-5 and worst_shift(without.net) > 1.1
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), without.parameters(), strict=True))
    callback.reestimation.undo()
    assert same(model, without)


@pytest.mark.parametrize("schedule", [{"eval_strategy": "epoch"}, {"eval_strategy": "steps", "eval_steps": 2}])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_evaluation_sees_new_statistics_and_training_none_of_it(tmp_path, schedule, accumulate):
    options = schedule | {"gradient_accumulation_steps": accumulate}
    model, without = (train(tmp_path, c, **options) for c in (ReestimationCallback("evaluation"), None))
    assert model.evaluated and len(model.evaluated) == len(without.evaluated)
    assert all(worst_shift(net) < 1 + 1e-5 for net in model.evaluated)
    assert all(worst_shift(net) > 1.1 for net in without.evaluated)
    assert all(torch.equal(a, b) for a, b in zip(model.batches, without.batches, strict=True))
    assert same(model, without)


def test_the_best_model_is_what_gets_the_statistics(tmp_path):
    checkpoints = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    model = train(tmp_path, ReestimationCallback(), **checkpoints, metric_for_best_model="loss")
    assert worst_shift(model.net) < 1 + 1e-5


def test_options_and_batches_of_ones_own(tmp_path):
    callback = ReestimationCallback(
        batches=[X[:32], X[32:]], forward=lambda model, batch: model.net(batch), max_batches=1
    )
    train(tmp_path, callback)
    assert (callback.reestimation.batches, callback.reestimation.samples) == (1, 32)


def test_another_time_is_refused():
    with pytest.raises(ek.EvenkeelError, match="when must be"):
        ReestimationCallback("fit_end")
