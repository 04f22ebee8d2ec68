"""ShiftLog: training does not notice, figures are those of variance_shift, and no row is lost or doubled."""

import copy
import random
import sys

import numpy as np
import pytest
import torch
from processes import forked
from smallnet import SmallNet, same, samples
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import evenkeel as ek

X, Y = samples(64)


class Noisy(Dataset):
    """Data that draw from every generator of the process."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return X[index] + torch.rand(4) + np.random.rand() + random.random(), Y[index]


def loader(data=None, **options):
    return DataLoader(data or TensorDataset(X, Y), 16, shuffle=True, **options)


def train(log=None, model=None, data=None, epochs=2, first=0):
    """Train, and log if there is a function that makes a log of a model and a loader; all that training changed."""
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    model, data = model or SmallNet().train(), loader() if data is None else data
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    made = log(model, data) if log else None
    for _ in range(first, epochs):
        for x, y in data:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            if made is not None:
                made.step()
        if made is not None:
            made.epoch()
    return model, made, (torch.rand(1), np.random.rand(), random.random())


@pytest.mark.parametrize("own", [{}, {"generator": 4}], ids=["global", "generator"])
@pytest.mark.parametrize("data", [None, Noisy()], ids=["plain", "augmented"])
def test_training_is_the_same_to_the_bit_with_and_without_a_log(tmp_path, own, data):
    def loaded():
        return loader(data, **{name: torch.Generator().manual_seed(seed) for name, seed in own.items()})

    def log(model, batches):
        return ek.ShiftLog(model, batches, tmp_path / "shift.csv", every=3)

    model, made, after = train(log, data=loaded())
    without, _, after_without = train(data=loaded())
    assert same(model, without) and after == after_without
    assert [m.training for m in model.modules()] == [m.training for m in without.modules()]
    assert made.history.steps == (3, 4, 6, 8)


def test_rows_are_what_variance_shift_finds_at_that_step(tmp_path):
    held, expected = [(X[:32], Y[:32]), (X[32:48], Y[32:48])], []

    class Checked(ek.ShiftLog):
        def measure(self):
            expected.append((self.steps, self.epochs, ek.variance_shift(copy.deepcopy(model), held)))
            return super().measure()

    model = SmallNet().train()
    train(lambda model, _: Checked(model, held, tmp_path / "shift.csv", every=3), model)
    rows = [ek.ShiftRecord.of(row, step, epoch) for step, epoch, report in expected for row in report]
    assert list(ek.ShiftHistory.read(tmp_path / "shift.csv")) == rows and len(rows) == 2 * 4
    assert [(row.step, row.epoch) for row in rows[::2]] == [(3, 0), (4, 1), (6, 1), (8, 2)]
    for row in rows:
        assert row.ratio == pytest.approx(row.inherited * row.dropout * row.initial * row.stored)
    assert rows[1].dropouts == "3 p=0.5" and rows[0].dropouts == ""


def test_only_norms_chosen_are_logged():
    log = ek.ShiftLog(SmallNet(), [X], norms=["5"])
    assert [row.path for row in log.measure()] == ["5"]
    with pytest.raises(ek.EvenkeelError, match="there is no norm '3'"):
        ek.ShiftLog(SmallNet(), [X], norms=["3"])


def test_batches_are_held_so_that_a_loader_is_read_once():
    asked = []

    def batches():
        for number in range(9):
            asked.append(number)
            yield X

    log = ek.ShiftLog(SmallNet(), batches(), max_batches=2)
    log.measure()
    log.measure()
    assert len(asked) == 2


# files


def test_a_killed_run_has_lost_nothing_and_a_resumed_one_doubles_nothing(tmp_path):
    path, whole = tmp_path / "shift.csv", tmp_path / "whole.csv"
    states = {}

    def log_to(path, stop=None, resume=None):
        model = SmallNet().train()
        if resume:
            model.load_state_dict(resume[0])
        log = ek.ShiftLog(model, [X], path, every=2, resume=resume is not None)
        if resume:
            log.load_state_dict(resume[1])
        for step in range(log.steps, 8):
            if step == stop:
                return
            if step == 3:
                states.update(model=copy.deepcopy(model.state_dict()), log=log.state_dict())
            torch.manual_seed(step)
            model(X)
            log.step()

    log_to(whole)
    log_to(path, stop=7)
    assert ek.ShiftHistory.read(path).steps == (2, 4, 6)
    log_to(path, resume=(states["model"], states["log"]))  # the checkpoint is of step 3
    assert path.read_bytes() == whole.read_bytes()


def test_a_log_goes_on_where_its_file_ends(tmp_path):
    path = tmp_path / "shift.csv"
    ek.ShiftLog(SmallNet(), [X], path, every=1).step(7)
    again = ek.ShiftLog(SmallNet(), [X], path, every=1, resume=True)
    assert again.steps == 7 and len(again.history) == 2
    again.step()
    assert ek.ShiftHistory.read(path).steps == again.history.steps == (7, 8)
    torn = path.read_text()[:-9]
    path.write_text(torn)
    third = ek.ShiftLog(SmallNet(), [X], path, every=1, resume=True)
    assert third.history.steps == (7,)
    third.step()
    assert ek.ShiftHistory.read(path).steps == (7, 8) and len(ek.ShiftHistory.read(path)) == 4


def test_a_file_that_is_there_is_not_written_over(tmp_path):
    path = tmp_path / "shift.csv"
    ek.ShiftLog(SmallNet(), [X], path).epoch()
    found = path.read_bytes()
    with pytest.raises(ek.EvenkeelError, match="resume=True"):
        ek.ShiftLog(SmallNet(), [X], path)
    (tmp_path / "other.txt").write_text("mine\n")
    with pytest.raises(ek.EvenkeelError, match="no log"):
        ek.ShiftLog(SmallNet(), [X], tmp_path / "other.txt", resume=True)
    with pytest.raises(ek.EvenkeelError, match="no regular file"):
        ek.ShiftLog(SmallNet(), [X], "/dev/null", resume=True)
    with pytest.raises(ek.EvenkeelError, match="folder"):
        ek.ShiftLog(SmallNet(), [X], tmp_path / "none" / "shift.csv")
    assert path.read_bytes() == found and (tmp_path / "other.txt").read_text() == "mine\n"


def test_steps_may_be_told_and_an_epochs_end_is_not_measured_twice():
    log = ek.ShiftLog(SmallNet(), [X], every=3)
    for done in (2, 4, 5, 9):  # as where several optimizers count
        log.step(done)
    log.epoch()
    assert log.history.steps == (4, 9) and log.state_dict() == {"steps": 9, "epochs": 1}


# what goes wrong


def test_what_never_worked_raises_and_training_that_diverges_is_a_row(tmp_path):
    model = SmallNet().train()
    log = ek.ShiftLog(model, [X[:, :3]], every=1)
    with pytest.raises(ek.BatchError):
        log.step()
    log = ek.ShiftLog(model, [X], tmp_path / "shift.csv", every=1)
    log.step()
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    log.step()
    last = ek.ShiftHistory.read(tmp_path / "shift.csv")[-1]
    assert (last.step, last.path) == (2, "") and "finite" in last.why
    assert "step 2: not measured" in str(log.history)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"every": 0}, ek.EvenkeelError, "every is 0"),
        ({"max_batches": 0}, ek.EvenkeelError, "max_batches is 0"),
        ({"batches": []}, ek.BatchError, "empty"),
        ({"batches": 3}, ek.BatchError, "iterable"),
        ({"model": nn.Linear(4, 4)}, ek.ModelError, "no norm"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(options, error, words):
    with pytest.raises(error, match=words):
        ek.ShiftLog(**{"model": SmallNet(), "batches": [X]} | options)


# TensorBoard


class Writer:
    def __init__(self):
        self.scalars = []

    def add_scalar(self, *scalar):
        self.scalars.append(scalar)


def test_a_writer_is_given_scalars_named_by_norm():
    writer = Writer()
    log = ek.ShiftLog(SmallNet(), [X], every=1, norms=["5"], writer=writer)
    log.step(4)
    (row,) = log.history
    assert writer.scalars == [("shift/5", row.ratio, 4), ("mean_off/5", row.moved, 4)]


def test_without_tensorboard_a_folder_is_refused_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    with pytest.raises(ek.EvenkeelError, match=r'tensorboard is not installed: pip install "evenkeel\[tensorboard\]"'):
        ek.ShiftLog(SmallNet(), [X], writer=tmp_path)


@pytest.mark.slow
def test_tensorboard_reads_what_was_logged(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = ek.ShiftLog(SmallNet(), [X], every=1, writer=tmp_path)
    log.step(4)
    log._writer.flush()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Scalars("shift/5")[0].value == pytest.approx(log.history[1].ratio)


# several processes


def _logged(folder, resume):
    rank = torch.distributed.get_rank()
    torch.manual_seed(rank)
    model = nn.parallel.DistributedDataParallel(SmallNet())
    log = ek.ShiftLog(model, [X[32 * rank :][:32]] * (1 + rank), f"{folder}/shift.csv", every=2, resume=resume)
    assert log.steps == (7 if resume else 0), "all know where the file ends"
    for step in range(4):
        F.cross_entropy(model(X[32 * rank + step :][:16]), Y[:16]).backward()
        log.step()
    assert log.history.steps == ((7, 8, 10) if resume else (2, 4))


@pytest.mark.slow
@pytest.mark.parametrize("resume", [False, True])
def test_processes_measure_their_own_and_the_first_writes(tmp_path, resume):
    if resume:
        log = ek.ShiftLog(SmallNet(), [X], tmp_path / "shift.csv")
        log.step(7)
        log.epoch()
    forked(_logged, str(tmp_path), resume, folder=tmp_path, processes=2)
    history = ek.ShiftHistory.read(tmp_path / "shift.csv")
    assert history.steps == ((7, 8, 10) if resume else (2, 4)) and len(history) == 2 * len(history.steps)


@pytest.mark.parametrize("to", [-1, 1.5, float("nan")])
def test_steps_that_cannot_be_are_refused(to):
    log = ek.ShiftLog(SmallNet(), [X], every=1)
    log.step(4)
    for call in (log.step, log.epoch, lambda to: log.load_state_dict({"steps": 2, "epochs": to})):
        with pytest.raises(ek.EvenkeelError, match="whole number"):
            call(to)
    with pytest.raises(ek.EvenkeelError, match="no 'epochs'"):
        log.load_state_dict({"steps": 2})
    assert log.state_dict() == {"steps": 4, "epochs": 0} and log.history.steps == (4,)


def test_one_norm_may_be_named_by_its_path_alone():
    model = SmallNet()
    path = next(iter(ek.ShiftLog(model, [X]).measure())).path
    assert {row.path for row in ek.ShiftLog(model, [X], norms=path).measure()} == {path}
    with pytest.raises(ek.EvenkeelError, match="no norm '15'"):
        ek.ShiftLog(model, [X], norms="15")
