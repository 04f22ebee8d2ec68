"""Status: what is finished, begun and waiting, and the time left, of runs that are not touched."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from labs import MLP, WRN, a_run, a_training, a_workplace, drawn, noisy

from evenkeel.papers.lab import measures
from evenkeel.papers.lab import training as lab
from evenkeel.papers.lab.runner import make
from evenkeel.papers.lab.status import status

FIRST, SECOND = (a_training(noisy(MLP, "hidden", p), epochs=3) for p in (0.5, 0.1))
OTHER = a_training(WRN, epochs=3)


def seconds(run, out, training, measuring):
    """Make a record say that its run took so long."""
    path = run.path(out)
    content = json.loads(path.read_text()) | {"seconds": {"training": training, "measuring": measuring}}
    path.write_text(json.dumps(content))


def stop_after_one_epoch(run, workplace):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        train_epoch, left = lab._train_epoch, [1]

        def counted(*args):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return train_epoch(*args)

        patch.setattr(lab, "_train_epoch", counted)
        make([run], workplace, workers=1)


def test_of_nothing_made_all_waits_and_nothing_is_known(tmp_path):
    (found,) = status([a_run(measures.scores, seed, training=FIRST) for seed in range(3)], a_workplace(tmp_path))
    assert str(found) == (
        "paper/experiment: 0 finished, 0 begun, 3 waiting; time left unknown: no run of such a net is finished"
    )
    assert not list(tmp_path.iterdir())


def test_the_time_left_is_that_of_finished_runs_of_the_same_net_less_what_was_done(tmp_path):
    workplace = a_workplace(tmp_path)
    runs = [a_run(measures.scores, seed, training=FIRST) for seed in range(3)]
    runs += [a_run(measures.scores, training=SECOND, p=0.1), a_run(measures.scores, training=OTHER, p=0.9)]
    make(runs[:1], workplace, workers=1)
    seconds(runs[0], tmp_path, 3000.0, 600.0)
    stop_after_one_epoch(runs[1], workplace)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (found,) = status(runs, workplace)
    assert (found.finished, found.begun, found.waiting, found.unknown) == (1, ((1, 3),), 3, 1)
    assert found.seconds == pytest.approx((2000 + 600) + 2 * (3000 + 600))
    left = "2.7 h of one worker left, and 1 of unknown length"
    assert str(found).endswith(f"1 finished, 1 begun (1 of 3 epochs), 3 waiting; {left}")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_training_that_experiments_share_is_left_once(tmp_path):
    workplace = a_workplace(tmp_path)
    run = a_run(measures.scores, training=FIRST)
    runs = [run, *(replace(run, experiment=name, seed=1) for name in ("one", "two"))]
    make(runs[:1], workplace, workers=1)
    seconds(run, tmp_path, 100.0, 10.0)
    assert [found.seconds for found in status(runs, workplace)] == pytest.approx([0, 110, 10])
    assert str(status(runs[:1], workplace)[0]) == "paper/experiment: 1 finished, 0 begun, 0 waiting; nothing left"


def test_what_is_not_trained_takes_as_long_as_its_own_experiment_did(tmp_path):
    workplace = a_workplace(tmp_path)
    runs = [a_run(drawn, seed) for seed in range(3)]
    make(runs[:1], workplace, workers=1)
    seconds(runs[0], tmp_path, 0.0, 50.0)
    (found,) = status(runs, workplace)
    assert (found.finished, found.waiting, found.seconds) == (1, 2, pytest.approx(100))


def test_a_damaged_checkpoint_counts_for_none(tmp_path):
    workplace = a_workplace(tmp_path)
    run = a_run(measures.scores, training=FIRST)
    stop_after_one_epoch(run, workplace)
    (path,) = workplace.checkpoints.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    (found,) = status([run], workplace)
    assert (found.begun, found.waiting) == ((), 1)
