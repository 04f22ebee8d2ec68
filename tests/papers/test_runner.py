"""The runner: every run once, its record whole, and what is there kept or made anew as asked."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
from labs import MLP, SOURCE, WRN, a_record, a_run, a_training, a_workplace, drawn, noisy, raises

from evenkeel.errors import EvenkeelError
from evenkeel.papers.lab import measures, runner
from evenkeel.papers.lab import training as lab
from evenkeel.papers.lab.experiments import Experiment, Paper
from evenkeel.papers.lab.results import read_results
from evenkeel.papers.lab.runner import NotReadyError, Summary, in_order, make, runs_of
from evenkeel.papers.lab.specs import SCALES, ImageSource, grid
from evenkeel.papers.lab.training import checkpoint_path

ARMS = {
    "smoke": grid(net=("mlp",), p=(0.5, 0.1)),
    "quick": grid(net=("mlp", "wrn"), p=(0.5, 0.1)),
    "desk": grid(net=("wrn", "mlp"), p=(0.5, 0.1)),
    "full": grid(net=("mlp", "wrn", "vgg"), p=(0.5,)),
}
SEEDS = {"smoke": 1, "quick": 2, "desk": 2, "full": 3}


def training_of(scale, net, p):
    return a_training(noisy(MLP, "hidden", p), epochs=len(scale))


def an_experiment(measure=drawn, training=training_of):
    return Experiment("experiment", "Table 1", "", ARMS, SEEDS, measure, training)


def a_paper(experiment):
    return Paper("paper", "", "", "", (experiment,))


def runs(experiment=None, scale="quick", **asked):
    experiment = experiment or an_experiment(training=None)
    return runs_of(a_paper(experiment), experiment, scale, **asked)


def files_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def trainings(monkeypatch):
    """The trainings begun or gone on with from now on, in a list."""
    train, begun = lab._train, []

    def counted(fabric, training, seed, *rest, **others):
        begun.append((training, seed))
        return train(fabric, training, seed, *rest, **others)

    monkeypatch.setattr(lab, "_train", counted)
    return begun


# which runs


@pytest.mark.parametrize("scale", SCALES)
def test_every_arm_is_run_with_every_seed(scale):
    experiment = an_experiment()
    found = runs(experiment, scale)
    assert [(run.seed, run.factors) for run in found] == [(s, arm) for s in range(SEEDS[scale]) for arm in ARMS[scale]]
    for run in found:
        assert (run.paper, run.experiment, run.scale, run.measure) == ("paper", "experiment", scale, drawn)
        assert run.training == training_of(scale, **run.factors)
    assert all(run.training is None for run in runs(scale=scale))
    assert len({run.name for run in found}) == len(found)


def test_arms_and_seeds_may_be_chosen():
    assert {run.name for run in runs(arms="mlp-*", seeds=[7])} == {
        "paper/experiment/mlp-0.5-7",
        "paper/experiment/mlp-0.1-7",
    }
    assert {run.seed for run in runs(arms="*-0.5", seeds=range(2, 4))} == {2, 3}
    assert runs(arms="wrn-0.1") == [run for run in runs() if run.factors == {"net": "wrn", "p": 0.1}]


def test_what_is_not_there_is_told_with_what_is():
    with pytest.raises(EvenkeelError) as caught:
        runs(scale="large")
    assert str(caught.value) == "there is no scale 'large': choose from smoke, quick, desk, full"
    with pytest.raises(EvenkeelError) as caught:
        runs(scale="smoke", arms="wrn-*")
    assert str(caught.value) == "no arm of paper/experiment is like 'wrn-*': there are mlp-0.5, mlp-0.1"


# what is written


def test_every_run_leaves_its_record_and_nothing_else(tmp_path):
    asked = runs()
    assert make(asked, a_workplace(tmp_path), workers=1) == Summary(made=8, skipped=0, failed={})
    files = files_in(tmp_path)
    assert set(files) == {
        f"paper/experiment/{net}-{p}-{s}.json" for net in ("mlp", "wrn") for p in (0.5, 0.1) for s in (0, 1)
    }
    for run in asked:
        record = json.loads(files[f"{run.name}.json"])
        assert record.items() >= run.spec().items()
        assert record["figures"]["seed"] == run.seed
    found = read_results(tmp_path / "paper" / "experiment", ARMS["quick"], "quick")
    assert [(row.seed, row.factors) for row in found] == [(s, arm) for arm in ARMS["quick"] for s in (0, 1)]


def test_records_are_written_as_soon_as_they_are_there(tmp_path):
    def measure(trial):
        return {"before": len(files_in(tmp_path))}

    experiment = an_experiment(measure, training=None)
    make(runs(experiment), a_workplace(tmp_path), workers=1)
    found = read_results(tmp_path / "paper" / "experiment", ARMS["quick"], "quick")
    assert sorted(found.values("before")) == list(range(8))


def test_runs_that_raise_are_reported_and_stop_no_other(tmp_path):
    def own(trial):
        raise EvenkeelError("data are missing")

    asked = [a_run(raises, 1), a_run(drawn, 2), a_run(own, 3), a_run(drawn, 4)]
    summary = make(asked, a_workplace(tmp_path), workers=1)
    assert (summary.made, summary.skipped) == (2, 0)
    assert summary.failed == {
        "paper/experiment/0.5-1": "paper/experiment/0.5-1 failed: ValueError: no luck with 1",
        "paper/experiment/0.5-3": "data are missing",
    }
    assert set(files_in(tmp_path)) == {"paper/experiment/0.5-2.json", "paper/experiment/0.5-4.json"}


def test_runs_are_made_by_seed_then_by_net_as_listed_and_those_that_share_a_training_stay_together(tmp_path):
    trained = [a_run(drawn, seed, training=a_training(net)) for net in (WRN, MLP) for seed in (0, 1)]
    again = [replace(run, experiment="again") for run in trained]
    plain = [a_run(drawn, seed) for seed in (0, 1)]
    found = in_order([*trained, *again, *plain])
    assert [(run.seed, run.training and run.training.net.name, run.experiment) for run in found] == [
        (seed, net, experiment)
        for seed in (0, 1)
        for net in (None, "wrn", "mlp")
        for experiment in ("experiment", "again")[: 2 if net else 1]
    ]


def test_nothing_is_made_of_nothing(tmp_path):
    assert make([], a_workplace(tmp_path)) == make([], a_workplace(tmp_path), resume=True) == Summary(0, 0, {})


# once


def test_runs_that_share_a_training_train_once(tmp_path, trainings):
    training = a_training()
    asked = [
        a_run(measure, seed, training=training, name=measure.__name__)
        for seed in (0, 1)
        for measure in (drawn, measures.scores)
    ]
    assert make(asked, a_workplace(tmp_path), workers=1).made == 4
    assert trainings == [(training, 0), (training, 1)]
    histories = [json.loads(run.path(tmp_path).read_text())["history"] for run in asked]
    assert histories[0] == histories[1] != histories[2] == histories[3]


def test_without_resume_all_is_made_anew(tmp_path, trainings):
    asked = runs(an_experiment(), "smoke")
    make(asked, a_workplace(tmp_path), workers=1)
    before = {run.name: json.loads(run.path(tmp_path).read_text()) for run in asked}
    assert make(asked, a_workplace(tmp_path), workers=1) == Summary(2, 0, {})
    assert trainings == [(run.training, 0) for run in asked] * 2
    for run in asked:
        after = json.loads(run.path(tmp_path).read_text())
        assert after.pop("seconds") != before[run.name].pop("seconds")
        assert after == before[run.name]


def test_what_is_made_is_skipped_on_resume(tmp_path, trainings):
    asked = runs(an_experiment(), "smoke")
    make(asked[:1], a_workplace(tmp_path), workers=1)
    before = files_in(tmp_path)
    assert make(asked, a_workplace(tmp_path), workers=1, resume=True) == Summary(made=1, skipped=1, failed={})
    assert len(trainings) == 2 and files_in(tmp_path).items() > before.items()
    before = files_in(tmp_path)
    assert make(asked, a_workplace(tmp_path), workers=1, resume=True) == Summary(made=0, skipped=2, failed={})
    assert files_in(tmp_path) == before


@pytest.mark.parametrize(
    "changed",
    [
        {"training": a_training(epochs=1, lr=0.01)},
        {"training": a_training(epochs=1, source=replace(SOURCE, test=32))},
        {"training": None},
    ],
)
def test_what_another_specification_made_is_made_anew_on_resume(tmp_path, changed):
    run = a_run(drawn, training=a_training(epochs=1))
    make([run], a_workplace(tmp_path), workers=1)
    other = replace(run, **changed)
    assert other.path(tmp_path) == run.path(tmp_path)
    assert make([other], a_workplace(tmp_path), workers=1, resume=True) == Summary(1, 0, {})
    assert make([other], a_workplace(tmp_path), workers=1, resume=True) == Summary(0, 1, {})


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_of_another_scale_is_not_overwritten(tmp_path, resume):
    run = a_run(drawn)
    make([run], a_workplace(tmp_path), workers=1)
    before = run.path(tmp_path).read_bytes()
    with pytest.raises(EvenkeelError, match="is of smoke scale and would be lost: name another folder for quick"):
        make([replace(run, scale="quick")], a_workplace(tmp_path), workers=1, resume=resume)
    assert run.path(tmp_path).read_bytes() == before


def test_a_run_that_fails_leaves_the_earlier_record(tmp_path):
    make([a_run(drawn)], a_workplace(tmp_path), workers=1)
    before = files_in(tmp_path)
    failed = make([a_run(raises)], a_workplace(tmp_path), workers=1).failed
    assert list(failed.values()) == [
        "paper/experiment/0.5-0 failed: ValueError: no luck with 0; the earlier record stays"
    ]
    assert files_in(tmp_path) == before


def test_damaged_records_are_made_anew_on_resume(tmp_path):
    run = a_run(drawn)
    make([run], a_workplace(tmp_path), workers=1)
    path = run.path(tmp_path)
    whole = path.read_text()
    for damaged in (*(whole[: len(whole) * i // 5] for i in range(5)), "[]", "null", "{}", "\x00" * 9):
        path.write_text(damaged)
        assert make([run], a_workplace(tmp_path), workers=1, resume=True) == Summary(1, 0, {})
        assert json.loads(path.read_text())["figures"] == json.loads(whole)["figures"]


def test_trainings_that_were_begun_go_on_with_resume_only(tmp_path, monkeypatch, trainings):
    run = a_run(measures.scores, training=a_training(epochs=3))
    workplace, epochs = a_workplace(tmp_path), []
    train_epoch = lab._train_epoch

    def counted(*args):
        epochs.append(args[-1])
        if len(epochs) == 2:
            raise KeyboardInterrupt
        return train_epoch(*args)

    monkeypatch.setattr(lab, "_train_epoch", counted)
    with pytest.raises(KeyboardInterrupt):
        make([run], workplace, workers=1)
    assert checkpoint_path(workplace.checkpoints, run.training, 0, workplace.hardware).exists()
    assert make([run], workplace, workers=1, resume=True).made == 1
    assert epochs == [0, 1, 1, 2]
    make([run], workplace, workers=1)
    assert epochs == [0, 1, 1, 2, 0, 1, 2]
    run.path(tmp_path).unlink()
    make([run], workplace, workers=1, resume=True)
    assert len(epochs) == 7 and run.path(tmp_path).exists()


def test_what_is_made_again_is_replaced_only_when_it_is_complete(tmp_path, monkeypatch, trainings):
    asked = runs(an_experiment(measures.scores), "smoke")
    workplace = a_workplace(tmp_path)
    make(asked, workplace, workers=1)
    before = files_in(tmp_path)
    train_epoch, epochs = lab._train_epoch, []

    def broken(*args):
        epochs.append(args[-1])
        if len(epochs) == len("smoke") + 3:  # in the second run
            raise KeyboardInterrupt
        return train_epoch(*args)

    monkeypatch.setattr(lab, "_train_epoch", broken)
    with pytest.raises(KeyboardInterrupt):
        make(asked, workplace, workers=1)
    after = files_in(tmp_path)
    (begun,) = set(after) - set(before)
    assert begun.endswith(".new.pt")
    first, second = (checkpoint_path(workplace.checkpoints, run.training, 0, workplace.hardware) for run in asked)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {str(asked[0].path(tmp_path).relative_to(tmp_path)), str(first.relative_to(tmp_path))}
    assert make(asked, workplace, workers=1, resume=True) == Summary(0, 2, {})
    asked[1].path(tmp_path).unlink()
    assert make(asked, workplace, workers=1, resume=True) == Summary(1, 1, {}) and len(trainings) == 4
    assert set(files_in(tmp_path)) == set(before) and second.read_bytes() == before[str(second.relative_to(tmp_path))]


# checked before the first run


def not_ready(asked, workplace, **options):
    """What is missing, line by line; nothing is begun."""
    before = files_in(workplace.out) if workplace.out.is_dir() else None
    with pytest.raises(NotReadyError) as caught:
        make(asked, workplace, workers=1, **options)
    assert before is None or files_in(workplace.out) == before
    assert all("\n" not in line for line in caught.value.lines)
    return caught.value.lines


def of_set(name, seed=0, **source):
    return a_run(drawn, seed, training=a_training(source=ImageSource(name, **source)), name=name)


def test_a_missing_set_is_one_line_before_any_run(tmp_path):
    there = a_run(drawn, training=a_training(epochs=1))
    workplace = replace(a_workplace(tmp_path / "out"), data_dir=tmp_path)
    make([there], workplace, workers=1)
    missing = [of_set("mnist"), of_set("cifar10"), of_set("mnist", 1), of_set("mnist", 2, train=9)]
    for resume in (False, True):
        lines = not_ready([there, *missing], workplace, resume=resume)
        assert [line.partition(":")[0] for line in lines] == ["mnist", "cifar10"]
    assert make([there], workplace, workers=1, resume=True) == Summary(0, 1, {})


def test_sets_are_not_looked_for_where_all_is_made(tmp_path):
    run = of_set("mnist")
    path = run.path(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(run.spec() | {"figures": {}, "history": []}))
    assert make([run], replace(a_workplace(tmp_path), data_dir=tmp_path), resume=True) == Summary(0, 1, {})


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        lines = not_ready([a_run(drawn, seed, training=a_training()) for seed in (0, 1)], a_workplace(out))
        assert lines == [f"{tmp_path / 'file'} cannot be written to (Not a directory): name another folder by --out"]
    assert not_ready([of_set("mnist")], replace(a_workplace(tmp_path / "file"), data_dir=tmp_path)) == lines


def test_an_engine_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    make([a_run(drawn)], a_workplace(tmp_path), workers=1)
    monkeypatch.setitem(sys.modules, "ray", None)
    lines = not_ready([a_run(drawn), a_run(drawn, 1)], a_workplace(tmp_path), engine="ray")
    assert lines == ['--engine ray needs Ray: pip install "evenkeel[cluster]"']


def test_a_record_that_cannot_be_written_is_told(tmp_path):
    run = a_run(drawn)
    run.path(tmp_path).mkdir(parents=True)
    (line,) = not_ready([run], a_workplace(tmp_path))
    assert line == f"{run.path(tmp_path)} is a folder, where a record is to be: remove it"


def test_a_checkpoint_that_is_damaged_is_reported_with_resume_and_replaced_without(tmp_path):
    run = a_run(drawn, training=a_training(epochs=1))
    workplace = a_workplace(tmp_path)
    make([run], workplace, workers=1)
    path = checkpoint_path(workplace.checkpoints, run.training, 0, workplace.hardware)
    path.write_bytes(path.read_bytes()[:100])
    run.path(tmp_path).unlink()
    summary = make([run], workplace, workers=1, resume=True)
    assert "remove it to train anew" in summary.failed[run.name] and not summary.made
    assert make([run], workplace, workers=1) == Summary(1, 0, {})


def test_engine_and_workers_are_handed_on(tmp_path, monkeypatch):
    given = []

    def run_all(runs, workplace, **options):
        given.append(options)
        yield from ((run, dict(a_record(run.seed, **run.factors)().content)) for run in runs)

    monkeypatch.setattr(runner, "run_all", run_all)
    monkeypatch.setattr(runner, "require_engine", lambda engine: None)
    assert make([a_run(drawn)], a_workplace(tmp_path), engine="ray", workers=3).made == 1
    assert given == [{"engine": "ray", "workers": 3}]
