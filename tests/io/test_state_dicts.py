"""find_wrapper and without_prefixes: where a state dict lies in a file, and what its keys are called in the model."""

from pathlib import Path

import pytest
import torch

from evenkeel.errors import EvenkeelError
from evenkeel.io.state_dicts import find_wrapper, first_few, without_prefixes

STATE = {"fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}
EMA = {f"module.{key}": value for key, value in STATE.items()}
FILE = Path("net.pt")


@pytest.mark.parametrize(
    ("content", "asked", "found"),
    [
        (STATE, None, None),
        ({"model": STATE, "epoch": 3}, None, "model"),
        ({"net": STATE}, None, "net"),
        ({"net": STATE, "ema": EMA}, "ema", "ema"),
        ({"state_dict": STATE, "optimizer": {"m": torch.zeros(1)}}, None, "state_dict"),
    ],
)
def test_a_state_dict_is_found(content, asked, found):
    assert find_wrapper(FILE, content, asked) == found


@pytest.mark.parametrize(
    ("content", "asked", "said"),
    [
        ({"net": STATE, "ema": EMA}, None, "holds 2 state dicts: net (2 entries), ema (2 entries)"),
        ({"net": STATE}, "ema", "no state dict 'ema': its state dicts are net (2 entries)"),
        ({"epoch": 3}, None, "holds a dict with 1 entries (epoch), no state dict"),
        ([1], None, "holds a list, no state dict"),
    ],
)
def test_what_is_none_or_not_the_only_one_is_said(content, asked, said):
    with pytest.raises(EvenkeelError) as error:
        find_wrapper(FILE, content, asked)
    assert said in str(error.value)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixes_that_all_keys_share_are_taken_off(prefix):
    assert without_prefixes([prefix + key for key in STATE]) == {key: prefix + key for key in STATE}


def test_a_prefix_that_one_key_lacks_stays():
    keys = ["module.fc.weight", "scale"]
    assert without_prefixes(keys) == dict(zip(keys, keys, strict=True))


def test_many_keys_are_cut_short():
    assert (first_few("abc"), first_few("abcd")) == ("a, b, c", "a, b, c, ...")
