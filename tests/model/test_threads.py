"""single_threaded: one thread for a while, and then as many as before, whatever happens."""

import threading

import pytest
import torch

from evenkeel.model.threads import single_threaded


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
    def threads(depth):
        return [torch.get_num_threads(), *(threads(depth - 1) if depth else [])]

    assert threads(2) == [1, 1, 1] == threads(2) and torch.get_num_threads() == count


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
