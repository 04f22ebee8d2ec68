"""Engines: many runs at once, on this machine or a Ray cluster; what a lost worker had begun is made anew."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

import torch

from evenkeel.errors import EvenkeelError, brief
from evenkeel.papers.lab.images import Images
from evenkeel.papers.lab.specs import EngineName, ImageSource
from evenkeel.papers.lab.trials import Run, Workplace, perform

Outcome = tuple[Run, "dict[str, Any] | Exception"]
_ATTEMPTS = 3  # how often a group of runs may lose its worker


def run_all(
    runs: Sequence[Run], workplace: Workplace, *, engine: EngineName = "local", workers: int | None = None
) -> Iterator[Outcome]:
    """Make runs, several at once, and yield what comes of each as soon as it is there.

    Runs that need the same training are made one after the other, so that it is trained once.

    Args:
        runs: which, best the longest first.
        workplace: where and on what.
        engine: `local` or `ray`.
        workers: how many at once; one a GPU, or else one a core, if None. Of `ray`, whatever the cluster holds.

    Yields:
        Each run with its record, or with the exception that it ended in.

    Raises:
        EvenkeelError: Ray is missing or cannot be reached.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.work, []).append(run)
    parts = list(groups.values())
    if engine == "ray":
        yield from _on_ray(parts, workplace)
    elif (count := min(workers or _slots(workplace), len(parts))) == 1:
        for part in parts:
            yield from _perform_all(part, replace(workplace, progress=True))
    else:
        yield from _on_processes(parts, workplace, count)


def require_engine(engine: EngineName) -> Any:
    """What an engine is made of, imported: better known to be missing before long work than after.

    Args:
        engine: `local` or `ray`.

    Returns:
        The package; None of `local`, which needs none.

    Raises:
        EvenkeelError: Ray is missing.
    """
    if engine == "local":
        return None
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise EvenkeelError('--engine ray needs Ray: pip install "evenkeel[cluster]"') from error


def _perform_all(runs: Sequence[Run], workplace: Workplace, images: Images | None = None) -> list[Outcome]:
    return [(run, _attempt(run, workplace, images)) for run in runs]


def _attempt(run: Run, workplace: Workplace, images: Images | None) -> dict[str, Any] | Exception:
    """A record, or the exception instead: one failed run must not stop the others."""
    try:
        return perform(run, workplace, images)
    except EvenkeelError as error:
        return error
    except Exception as error:
        return EvenkeelError(f"{run.name} failed: {brief(error)}")


def _slots(workplace: Workplace) -> int:
    """How many runs this machine makes at once: one a GPU, or one a core."""
    hardware = workplace.hardware
    if _on_gpu(workplace):
        return max(1, torch.cuda.device_count() // hardware.devices)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // (hardware.devices * hardware.threads))


def _on_gpu(workplace: Workplace) -> bool:
    return workplace.hardware.resolved().accelerator == "cuda" and torch.cuda.is_available()


def _on_processes(groups: Sequence[list[Run]], workplace: Workplace, count: int) -> Iterator[Outcome]:
    """Make groups of runs on processes of this machine."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads in an unknown state
    waiting, losses = list(groups), 0
    while waiting:
        slots = context.SimpleQueue()
        shares = _shares(workplace)
        for number in range(count):
            slots.put(shares[number % len(shares)])
        pool = ProcessPoolExecutor(count, mp_context=context, initializer=_take_slot, initargs=(slots,))
        try:
            futures = {pool.submit(_perform_all, group, workplace): group for group in waiting}
            for future in as_completed(futures):
                outcomes = future.result()
                waiting.remove(futures[future])
                losses = 0
                yield from outcomes
        except BrokenProcessPool as error:  # killed from outside, or out of memory: what is not done begins anew
            losses += 1
            if losses == _ATTEMPTS:
                message = f"{losses} workers in a row were lost, with {len(waiting)} trainings to go"
                raise EvenkeelError(f"{message}: use fewer workers, and --resume to go on") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _shares(workplace: Workplace) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each worker slot, from the GPUs that this process sees; None without a GPU."""
    if not _on_gpu(workplace):
        return [None]
    count, size = torch.cuda.device_count(), workplace.hardware.devices
    seen = list(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","))) or [str(n) for n in range(count)]
    return [",".join(seen[start : start + size]) for start in range(0, max(1, count - size + 1), size)]


def _take_slot(slots: Any) -> None:
    """Make a new process use the GPUs of its slot, and end with its parent process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    share = slots.get()
    if share is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = share


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # a checkpoint holds the progress; the parent is gone, so no one reads the result


def _on_ray(groups: Sequence[list[Run]], workplace: Workplace) -> Iterator[Outcome]:
    """Make groups of runs on the cluster that RAY_ADDRESS names, where evenkeel is installed, or on this machine.

    Images travel with the runs, so only this machine needs the data. Records come back here; checkpoints stay where
    they were made, and serve a run that is made anew if it comes to the same machine or the folder is a shared one.
    """
    ray = require_engine("ray")
    address = os.environ.get("RAY_ADDRESS")
    began = not ray.is_initialized()
    try:
        if began:
            ray.init(address=address, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    except Exception as error:
        where = f"at RAY_ADDRESS={address}" if address else "on this machine"
        raise EvenkeelError(
            f"no Ray cluster could be reached {where} ({brief(error)}): start one, or unset it"
        ) from error
    try:
        hardware = workplace.hardware
        gpus = hardware.devices if ray.cluster_resources().get("GPU") and hardware.accelerator != "cpu" else 0
        cores = hardware.threads * hardware.devices
        perform_all = ray.remote(num_cpus=cores, num_gpus=gpus, max_retries=_ATTEMPTS - 1)(_perform_all)
        workplace = replace(workplace, out=workplace.out.absolute())  # a worker runs in another folder
        shared = {
            source: ray.put(source and workplace.images(source)) for source in dict.fromkeys(map(_source, groups))
        }
        pending = {perform_all.remote(group, workplace, shared[_source(group)]): group for group in groups}
        while pending:
            done, _ = ray.wait(list(pending), num_returns=1)
            group = pending.pop(done[0])
            try:
                yield from ray.get(done[0])
            except ray.exceptions.RayError as error:
                yield from ((run, EvenkeelError(f"{run.name} lost its worker: {brief(error)}")) for run in group)
    finally:
        if began:
            ray.shutdown()


def _source(group: Sequence[Run]) -> ImageSource | None:
    training = group[0].training
    return training.source if training else None
