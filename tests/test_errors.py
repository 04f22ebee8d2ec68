"""Errors in one line."""

import pytest
import torch

from evenkeel.errors import brief, is_out_of_memory, raised


def test_long_messages_are_cut():
    assert len(brief(ValueError("x" * 999))) < 230
    assert raised(ValueError("a\nb")) == "raised ValueError: a b"


def test_what_torch_says_when_memory_ends_is_known():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes do not match")) and not is_out_of_memory(ValueError())
