"""Trials: what one run finds, and the record of it."""

from __future__ import annotations

import json
import math
import pickle
import platform
import subprocess
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from labs import CPU, SOURCE, a_run, a_training, a_workplace, drawn, images_of, raises, same, trained_in

from evenkeel.papers.lab import measures, trials
from evenkeel.papers.lab.images import Images
from evenkeel.papers.lab.specs import ImageSource, plain
from evenkeel.papers.lab.training import checkpoint_path
from evenkeel.papers.lab.trials import Run, Workplace, perform

TRAINING = a_training(augment=True)


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def test_a_record_says_all_that_it_came_from(tmp_path):
    run = a_run(measures.scores, seed=3, training=TRAINING, net="mlp", p=0.5)
    record = perform(run, a_workplace(tmp_path))
    assert json.loads(json.dumps(record), parse_constant=refuse) == record
    expected = {
        "paper": "paper",
        "experiment": "experiment",
        "scale": "smoke",
        "factors": {"net": "mlp", "p": 0.5},
        "seed": 3,
        "training": plain(TRAINING),
    }
    assert run.spec() == expected == {name: record[name] for name in expected}
    assert set(record) - set(expected) == {"history", "figures", "versions", "commit", "hardware", "seconds"}
    trained = trained_in(tmp_path / "trained", TRAINING, seed=3)
    assert record["history"] == trained.history
    assert record["seconds"]["training"] == trained.seconds and record["seconds"]["measuring"] > 0
    assert record["versions"]["python"] == platform.python_version()
    assert set(record["versions"]) == {"python", "evenkeel", "torch", "numpy", "lightning-fabric"}
    assert record["versions"]["torch"] == torch.__version__
    assert asdict(CPU).items() <= record["hardware"].items() and record["hardware"]["device"]


def test_what_is_not_installed_has_no_version(tmp_path, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(trials, "version", missing)
    assert set(perform(a_run(drawn, training=None), a_workplace(tmp_path))["versions"].values()) == {
        platform.python_version(),
        None,
    }


def test_the_commit_is_that_of_a_checkout_of_evenkeel_and_of_no_other(tmp_path, monkeypatch):
    def git(*asked):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a", *asked], check=True)

    inside = tmp_path / "evenkeel" / "__init__.py"
    inside.parent.mkdir()
    inside.touch()
    monkeypatch.setattr(trials, "_PACKAGE", inside.parent)
    asked = trials.commit.__wrapped__
    assert asked() is None
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    head = subprocess.run(["git", "-C", tmp_path, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert asked() == head.stdout.strip()
    inside.write_text("changed")
    assert asked() == head.stdout.strip() + "-dirty"
    deeper = tmp_path / "venv" / "evenkeel" / "__init__.py"
    deeper.parent.mkdir(parents=True)
    monkeypatch.setattr(trials, "_PACKAGE", deeper.parent)
    assert asked() is None
    monkeypatch.setenv("PATH", "")
    assert asked() is None


def test_what_is_not_finite_is_null(tmp_path):
    def odd(trial):
        return {"x": math.nan, "y": [1.0, math.inf], "z": {"deep": (-math.inf, 2.0)}}

    training = a_training(lr=1e30, optimizer="sgd", epochs=3)
    record = perform(a_run(odd, training=training), a_workplace(tmp_path))
    assert record["figures"] == {"x": None, "y": [1.0, None], "z": {"deep": [None, 2.0]}}
    assert record["history"][-1]["train_loss"] is None and record["history"][-1]["epoch"] == len(record["history"])
    assert json.loads(json.dumps(record), parse_constant=refuse) == record


def test_a_measure_is_given_the_arm_and_the_trained_network(tmp_path):
    given = []

    def measure(trial):
        given.append(trial)
        return {}

    perform(a_run(measure, seed=2, training=TRAINING, p=0.1), a_workplace(tmp_path))
    perform(a_run(measure, seed=2, p=0.1), a_workplace(tmp_path))
    with_net, without = given
    assert all((trial.factors, trial.scale, trial.seed) == ({"p": 0.1}, "smoke", 2) for trial in given)
    assert same(with_net.trained, trained_in(tmp_path / "other", TRAINING, seed=2))
    assert torch.equal(with_net.images.test.images, images_of().test.images)
    assert without.trained is None and without.images is None


def test_what_is_drawn_after_training_hangs_on_the_specification_alone(tmp_path):
    workplace = a_workplace(tmp_path)
    runs = [a_run(drawn, seed, training=TRAINING, p=p) for seed in range(2) for p in (0.1, 0.5)]
    runs += [replace(runs[0], scale="quick"), replace(runs[0], experiment="other"), replace(runs[0], paper="other")]
    runs += [replace(runs[0], training=replace(TRAINING, init="he"))]
    draws = [perform(run, workplace)["figures"]["draw"] for run in runs]
    torch.manual_seed(99)
    assert draws == [perform(run, workplace)["figures"]["draw"] for run in runs]
    assert len(set(draws)) == len(runs)


def test_where_nothing_is_trained_arms_of_one_seed_draw_the_same(tmp_path):
    draws = [
        [perform(a_run(drawn, seed, p=p), a_workplace(tmp_path))["figures"]["draw"] for p in (0.1, 0.5)]
        for seed in range(2)
    ]
    assert draws[0][0] == draws[0][1] != draws[1][0] == draws[1][1]


def test_errors_pass_through(tmp_path):
    with pytest.raises(ValueError, match="no luck"):
        perform(a_run(raises), a_workplace(tmp_path))


def test_names_paths_and_checkpoints_are_in_the_folder_of_results(tmp_path):
    run = a_run(measures.scores, seed=7, training=TRAINING, net="wrn", place="a", p=0.5)
    assert run.name == "paper/experiment/wrn-a-0.5-7"
    assert run.path(tmp_path) == tmp_path / "paper" / "experiment" / "wrn-a-0.5-7.json"
    perform(run, a_workplace(tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [
        checkpoint_path(tmp_path / "trained", TRAINING, 7, CPU)
    ]


def test_runs_share_work_where_training_and_seed_are_the_same():
    run = a_run(measures.scores, training=TRAINING, p=0.5)
    assert run.work == a_run(drawn, training=TRAINING, p=0.1).work
    others = [replace(run, seed=1), replace(run, training=replace(TRAINING, init="he")), replace(run, training=None)]
    assert len({run.work, *(other.work for other in others)}) == 4
    assert a_run(drawn, p=0.5).work != a_run(drawn, p=0.1).work


def test_a_run_goes_to_another_process_and_back():
    run = a_run(measures.scores, training=TRAINING)
    again = pickle.loads(pickle.dumps(run))
    assert isinstance(again, Run) and again == run and again.spec() == run.spec()


def test_images_are_those_of_the_source_and_kept(tmp_path):
    workplace = Workplace(tmp_path)
    source = ImageSource("synthetic", train=30, test=20, validation=10, size=8)
    images = workplace.images(source)
    assert isinstance(images, Images) and images.shape == (3, 8, 8)
    assert [len(split.labels) for split in (images.train, images.validation, images.test)] == [30, 10, 20]
    assert workplace.images(source) is images
    assert workplace.images(SOURCE).shape == (3, 16, 16)


def test_images_at_hand_are_trained_on(tmp_path):
    images = images_of()
    found = perform(a_run(measures.scores, training=TRAINING), a_workplace(tmp_path / "a"), images)
    gone = replace(TRAINING, source=ImageSource("cifar10", train=128, test=64))
    other = perform(a_run(measures.scores, training=gone), a_workplace(tmp_path / "b"), images)
    assert found["history"] == other["history"]
