"""Threads: one for a while, all for large work, and then as many as before, whatever happens."""

import threading
from contextlib import nullcontext

import pytest
import torch

from evenkeel.model import threads
from evenkeel.model.threads import single_threaded, threads_for


@pytest.fixture(params=[1, 2, 3], autouse=True)
def count(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_one_thread_inside_and_as_many_as_before_after_it(count):
    with single_threaded():
        assert torch.get_num_threads() == 1
        with single_threaded():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == count


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_also_after_an_error(count, error):
    with pytest.raises(error), single_threaded():
        raise error
    assert torch.get_num_threads() == count


def test_as_a_decorator_every_call_by_itself(count):
    @single_threaded()
    def seen(depth):
        return [torch.get_num_threads(), *(seen(depth - 1) if depth else [])]

    assert seen(2) == [1, 1, 1] == seen(2) and torch.get_num_threads() == count


def test_a_thread_that_computes_meanwhile_keeps_its_number(count):
    started, lowered, seen = threading.Event(), threading.Event(), []

    def compute():
        seen.append(torch.get_num_threads())
        started.set()
        lowered.wait()
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=compute)
    thread.start()
    started.wait()
    with single_threaded():
        lowered.set()
        thread.join()
    assert seen == [count, count]


class Cores:
    """Says whether cores are free, and remembers how often it was asked."""

    def __init__(self, free):
        self.free, self.asked = free, []

    def are_free(self, count):
        self.asked.append(count)
        return self.free


IMAGES = torch.empty(1).expand(8, 64, 32, 32)
WORK = {
    "a large product": ([IMAGES, torch.empty(1).expand(64, 64, 3, 3)], True, True),
    "a small product": ([IMAGES[:, :, :2, :2], torch.empty(1).expand(64, 64, 3, 3)], True, False),
    "many elements": ([IMAGES.expand(16, 8, 64, 32, 32)], False, True),
    "few elements": ([IMAGES], False, False),
    "two that are no product": ([IMAGES, IMAGES], False, False),
    "a vector times a matrix": ([torch.empty(8), torch.empty(8, 8)], True, False),
    "nothing": ([], True, False),
}


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("work", WORK)
def test_large_work_is_shared_where_cores_are_free(monkeypatch, count, work, inside, free):
    operands, product, large = WORK[work]
    monkeypatch.setattr(threads, "_CORES", cores := Cores(free))
    with single_threaded() if inside else nullcontext():
        with threads_for(operands, product=product):
            assert torch.get_num_threads() == (count if large and free else 1)
        assert torch.get_num_threads() == (1 if inside else count)
    assert cores.asked == [count] * (large and count > 1)


def test_whether_cores_are_free_is_measured_and_believed_for_a_while(monkeypatch, count):
    taken, now = {count: 1.0, 1: 2.0}, [100.0]
    asked = []
    monkeypatch.setattr(threads, "_seconds", lambda threads: asked.append(threads) or taken[threads])
    monkeypatch.setattr(threads.time, "monotonic", lambda: now[0])
    cores = threads._Cores()
    assert cores.are_free(count) is (count > 1) is cores.are_free(count) and asked == [count, 1]
    now[0], taken[count] = 110.0, 1.9
    assert not cores.are_free(count) and len(asked) == 4


def test_measuring_leaves_threads_and_random_numbers_alone(count):
    state = torch.get_rng_state()
    threads._Cores().are_free(2)
    assert torch.get_num_threads() == count and torch.equal(torch.get_rng_state(), state)
