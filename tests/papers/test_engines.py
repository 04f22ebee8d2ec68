"""Engines: the same figures wherever runs are made, and nothing lost with a worker."""

from __future__ import annotations

import os
import sys
import types
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from labs import CPU, a_run, a_training, a_workplace, drawn, raises, runs_that_die_once
from paths import SUPPORT

from evenkeel.errors import EvenkeelError
from evenkeel.papers.lab import engines, measures
from evenkeel.papers.lab.engines import run_all
from evenkeel.papers.lab.hardware import Hardware
from evenkeel.papers.lab.specs import ImageSource
from evenkeel.papers.lab.trials import Workplace


def figures(outcomes):
    """By run, once each, with the history."""
    found = {}
    for run, outcome in outcomes:
        assert run.name not in found
        found[run.name] = outcome if isinstance(outcome, Exception) else (outcome["figures"], outcome["history"])
    return found


def expected_of(runs, folder):
    """The figures of runs made here, where nothing dies."""
    for run in runs:
        if "marker" in run.factors:
            Path(run.factors["marker"]).touch()
    found = figures(run_all(runs, a_workplace(folder), workers=1))
    for run in runs:
        if "marker" in run.factors:
            Path(run.factors["marker"]).unlink()
    return found


# on this machine


@pytest.mark.slow
def test_processes_find_what_one_does_and_a_lost_one_is_replaced(tmp_path):
    runs = runs_that_die_once(tmp_path)
    expected = expected_of(runs, tmp_path / "here")
    assert figures(run_all(runs, a_workplace(tmp_path / "there"), workers=2)) == expected
    assert (tmp_path / "marker").exists()


class Pool:
    """A pool of processes that makes all groups of runs that it is given, but for `lost`, when it is lost itself."""

    pools: list[Pool]
    lost: set[int]

    def __init__(self, workers, **options):
        self.workers, self.options, self.given, self.shut = workers, options, [], False
        self.pools.append(self)

    def submit(self, perform_all, group, workplace):
        self.given.append([run.seed for run in group])
        future = Future()
        if {run.seed for run in group} & self.lost:
            future.set_exception(BrokenProcessPool("lost"))
        else:
            future.set_result(perform_all(group, workplace))
        return future

    def shutdown(self, **options):
        self.shut = True


@pytest.fixture
def pools(monkeypatch):
    monkeypatch.setattr(engines, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(Pool, "pools", [], raising=False)
    monkeypatch.setattr(Pool, "lost", set(), raising=False)
    return Pool.pools


def test_three_losses_in_a_row_end_it_in_one_line(tmp_path, pools):
    Pool.lost = {0, 1, 2}
    with pytest.raises(EvenkeelError) as caught:
        list(run_all([a_run(drawn, seed) for seed in range(3)], a_workplace(tmp_path), workers=2))
    assert str(caught.value) == (
        "3 workers in a row were lost, with 3 trainings to go: use fewer workers, and --resume to go on"
    )
    assert len(pools) == 3 and all(pool.shut and len(pool.given) == 3 for pool in pools)


def test_losses_with_something_done_in_between_do_not_count(tmp_path, pools, monkeypatch):
    """Each pool makes one group more than the pool before, and is lost with the next."""
    seeds, done = range(8), []

    def as_completed(futures):
        for future in futures:
            if len(done) < len(pools):
                done.append(future)
                yield future
            elif len(done) < len(seeds):
                yield broken

    broken = Future()
    broken.set_exception(BrokenProcessPool("lost"))
    monkeypatch.setattr(engines, "as_completed", as_completed)
    runs = [a_run(drawn, seed) for seed in seeds]
    found = [run.seed for run, _ in run_all(runs, a_workplace(tmp_path), workers=2)]
    assert found == list(seeds) and len(pools) > 3
    assert pools[-1].given[-1] == [7] and len(pools[0].given) == 8 > len(pools[1].given) > len(pools[2].given)


def test_a_run_that_raises_is_an_outcome(tmp_path):
    asked = [a_run(raises, 0), a_run(drawn, 1), a_run(raises, 2)]
    found = figures(run_all(asked, a_workplace(tmp_path), workers=1))
    assert [str(found[run.name]) for run in asked[::2]] == [
        f"{run.name} failed: ValueError: no luck with {run.seed}" for run in asked[::2]
    ]
    assert all(isinstance(found[run.name], EvenkeelError) for run in asked[::2])
    assert found[asked[1].name][0]["seed"] == 1


def test_runs_of_one_training_go_to_one_worker(tmp_path, pools):
    training = a_training(epochs=1)
    runs = [a_run(drawn, seed, training=training, p=p) for p in (0.1, 0.5) for seed in (0, 1)] + [a_run(drawn, 2)]
    found = list(run_all(runs, a_workplace(tmp_path), workers=9))
    assert pools[0].workers == 3 and pools[0].given == [[0, 0], [1, 1], [2]]
    assert sorted(run.name for run, _ in found) == sorted(run.name for run in runs)


def test_one_group_or_one_worker_needs_no_processes(tmp_path, pools):
    training = a_training(epochs=1)
    assert len(list(run_all([a_run(drawn, p=p, training=training) for p in (1, 2)], a_workplace(tmp_path)))) == 2
    assert len(list(run_all([a_run(drawn, 0), a_run(drawn, 1)], a_workplace(tmp_path), workers=1))) == 2
    assert not list(run_all([], a_workplace(tmp_path)))
    assert not pools


def test_as_many_processes_as_cores_or_gpus(tmp_path, pools, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    runs = [a_run(drawn, seed) for seed in range(9)]

    def workers(hardware):
        pools.clear()
        list(run_all(runs, Workplace(tmp_path, hardware=hardware)))
        return pools[0].workers if pools else 1

    assert workers(CPU) == 8
    assert workers(replace(CPU, threads=2)) == 4
    assert workers(replace(CPU, threads=2, devices=2)) == 2
    assert workers(replace(CPU, threads=16)) == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert (workers(CPU), workers(Hardware()), workers(Hardware("cuda", devices=2))) == (8, 4, 2)
    assert workers(Hardware(devices=3)) == 1


@pytest.mark.parametrize(
    ("seen", "devices", "expected"),
    [
        (None, 1, ["0", "1", "2", "3"]),
        (None, 2, ["0,1", "2,3"]),
        (None, 3, ["0,1,2"]),
        ("2,3,5,7", 2, ["2,3", "5,7"]),
    ],
)
def test_slots_share_the_gpus_that_can_be_seen(monkeypatch, tmp_path, seen, devices, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES") if seen is None else monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    assert engines._shares(Workplace(tmp_path, hardware=Hardware(devices=devices))) == expected
    assert engines._shares(Workplace(tmp_path, hardware=CPU)) == [None]


def test_a_process_sees_the_gpus_of_its_place(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "9")
    for share, found in ((None, "9"), ("2,3", "2,3")):
        engines._take_slot(types.SimpleNamespace(get=lambda share=share: share))
        assert os.environ["CUDA_VISIBLE_DEVICES"] == found


# on Ray


@pytest.mark.slow
def test_ray_finds_what_one_process_does_and_makes_lost_runs_anew(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else workers wait for whatever else runs
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(SUPPORT)])
    )  # where a worker finds the measure
    runs = runs_that_die_once(tmp_path)
    expected = expected_of(runs, tmp_path / "here")
    assert figures(run_all(runs, a_workplace(tmp_path / "there"), engine="ray")) == expected
    assert (tmp_path / "marker").exists() and not ray.is_initialized()


class FakeRay(types.ModuleType):
    """A cluster in this process, where groups whose seeds are in `lost` lose their worker for good."""

    class exceptions:
        class RayError(Exception):
            pass

    def __init__(self, lost=(), started=False, gpus=0.0, refusal=None):
        super().__init__("ray")
        self.lost, self.started, self.gpus, self.refusal = lost, started, gpus, refusal
        self.options, self.address, self.ended = {}, None, False
        self.stored, self.tasks = [], []

    def is_initialized(self):
        return self.started

    def init(self, address, **options):
        if self.refusal:
            raise self.refusal
        self.address = address

    def shutdown(self):
        self.ended = True

    def cluster_resources(self):
        return {"CPU": 2.0} | ({"GPU": self.gpus} if self.gpus else {})

    def remote(self, **options):
        self.options = options

        def of(function):
            def remote(*args):
                self.tasks.append((function, *args))
                return len(self.tasks) - 1

            return types.SimpleNamespace(remote=remote)

        return of

    def put(self, value):
        self.stored.append(value)
        return len(self.stored) - 1

    def wait(self, pending, num_returns):
        return pending[-num_returns:], pending[:-num_returns]

    def get(self, reference):
        function, group, workplace, number = self.tasks[reference]
        if {run.seed for run in group} & set(self.lost):
            raise self.exceptions.RayError("the worker\ndied")
        return function(group, workplace, self.stored[number])


def on_fake(monkeypatch, ray, runs, tmp_path, hardware=CPU):
    monkeypatch.setitem(sys.modules, "ray", ray)
    return figures(run_all(runs, Workplace(tmp_path, hardware=hardware), engine="ray"))


def test_a_worker_lost_too_often_takes_only_its_own_runs_along(tmp_path, monkeypatch):
    training = a_training(epochs=1)
    runs = [a_run(drawn, seed, training=training, p=p) for seed in range(3) for p in (0.1, 0.5)]
    ray = FakeRay(lost=[1])
    found = on_fake(monkeypatch, ray, runs, tmp_path)
    assert len(found) == 6 and len(ray.tasks) == 3 and ray.ended
    for run in runs:
        if run.seed == 1:
            assert str(found[run.name]) == f"{run.name} lost its worker: RayError: the worker died"
        else:
            assert found[run.name][0]["seed"] == run.seed


def test_images_travel_once_and_only_where_something_is_trained(tmp_path, monkeypatch):
    workplace, sources = a_workplace(tmp_path), [ImageSource("synthetic", train=64, test=n) for n in (32, 64)]
    trained = [
        a_run(measures.scores, seed, training=a_training(source=source, epochs=1), n=source.test)
        for source in sources
        for seed in (0, 1)
    ]
    ray = FakeRay()
    runs = [*trained, a_run(drawn, 2)]
    found = on_fake(monkeypatch, ray, runs, tmp_path)
    assert [value and len(value.test.labels) for value in ray.stored] == [32, 64, None]
    assert found == figures(run_all(runs, workplace, workers=1))


@pytest.mark.parametrize(
    ("gpus", "hardware", "expected"),
    [
        (0.0, CPU, (1, 0)),
        (8.0, CPU, (1, 0)),
        (0.0, Hardware(devices=2, threads=4), (8, 0)),
        (8.0, Hardware(devices=2, threads=4), (8, 2)),
        (8.0, Hardware("cuda"), (1, 1)),
    ],
)
def test_ray_is_asked_for_what_a_run_needs(tmp_path, monkeypatch, gpus, hardware, expected):
    ray = FakeRay(gpus=gpus)
    on_fake(monkeypatch, ray, [a_run(drawn)], tmp_path, hardware)
    assert (ray.options["num_cpus"], ray.options["num_gpus"]) == expected and ray.options["max_retries"] > 0


def test_a_cluster_that_was_there_before_stays(tmp_path, monkeypatch):
    ray = FakeRay(started=True, refusal=AssertionError("begun twice"))
    assert len(on_fake(monkeypatch, ray, [a_run(drawn)], tmp_path)) == 1 and not ray.ended
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    ray = FakeRay()
    on_fake(monkeypatch, ray, [a_run(drawn)], tmp_path)
    assert ray.address == "10.0.0.1:6379" and ray.ended


def test_without_ray_or_its_cluster_it_is_told_what_to_do(tmp_path, monkeypatch):
    def refusal(ray):
        with pytest.raises(EvenkeelError) as caught:
            on_fake(monkeypatch, ray, [a_run(drawn)], tmp_path)
        return str(caught.value)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert refusal(None) == '--engine ray needs Ray: pip install "evenkeel[cluster]"'
    error = ConnectionError("no\nanswer")
    expected = "no Ray cluster could be reached {} (ConnectionError: no answer): start one, or unset it"
    assert refusal(FakeRay(refusal=error)) == expected.format("on this machine")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert refusal(FakeRay(refusal=error)) == expected.format("at RAY_ADDRESS=10.0.0.1:6379")
