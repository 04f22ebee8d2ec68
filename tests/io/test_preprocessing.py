"""What training did to images is done to those of named sets and folders."""

import math
import sys

import pytest
import torch
from PIL import Image

from evenkeel.errors import EvenkeelError
from evenkeel.io.datasets import load_data
from evenkeel.io.preprocessing import Preprocessing, parse_preprocessing

SOURCE = """
import torch

def halves(images):
    return images[:, :, ::2, ::2]

def broken(images):
    raise RuntimeError("no such luck")

def summed(images):
    return images.sum()

def listed(images):
    return list(images)

number = 3
"""


@pytest.fixture(autouse=True)
def _module(tmp_path, monkeypatch):
    (tmp_path / "my_steps.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "my_steps", raising=False)


def images(**options):
    data = load_data("digits", preprocessing=Preprocessing(**options))
    return torch.cat([x for x, _ in data.train]), torch.cat([x for x, _ in data.test])


def test_a_named_set_is_from_0_to_1_and_then_as_asked_for():
    plain = images()
    assert all((part.min(), part.max()) == (0, 1) for part in plain)
    for options in ({"scale": (255.0,)}, {"mean": (0.5,), "std": (0.25,)}, {"mean": (3,), "std": (2,), "scale": (16,)}):
        scale, mean, std = (options.get(name, (usual,))[0] for name, usual in (("scale", 1), ("mean", 0), ("std", 1)))
        for part, raw in zip(images(**options), plain, strict=True):
            assert torch.allclose(part, (raw * scale - mean) / std, atol=1e-4)


def test_a_transform_is_given_batches_of_these_and_may_change_their_shape():
    asked = parse_preprocessing("0.5", None, None, "my_steps:halves")
    data = load_data("digits", shape=(1, 4, 4), batch_size=100, preprocessing=asked)
    x, _ = next(iter(data.train))
    assert torch.equal(x, images(mean=(0.5,))[0][:100, :, ::2, ::2]) and data.shape == (1, 4, 4)
    with pytest.raises(EvenkeelError, match="inputs of digits are 1x4x4, not 1x8x8"):
        load_data("digits", shape=(1, 8, 8), preprocessing=asked)


def test_a_folder_is_preprocessed_channel_by_channel(tmp_path):
    (tmp_path / "set").mkdir()
    Image.new("RGB", (4, 4), (255, 0, 51)).save(tmp_path / "set" / "a.png")
    asked = parse_preprocessing("0.1,0.2,0.3", "0.5", None, None)
    (x,) = load_data("folder:set", shape=(3, 4, 4), preprocessing=asked).train
    assert torch.allclose(x[0, :, 0, 0], torch.tensor([1.8, -0.4, -0.2]), atol=1e-6)


def test_nothing_asked_for_is_no_preprocessing():
    assert parse_preprocessing(None, None, None, None) is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("a", None, None, None), "--mean a: write one number"),
        (("0.1,0.2,0.3", None, None, None), "mean has 3 numbers, and the images have 1 channel"),
        ((None, "0", None, None), "std must be finite and above 0"),
        ((None, None, str(math.nan), None), "scale must be finite and above 0"),
        ((str(math.inf), None, None, None), "mean must be finite"),
        ((None, None, None, "my_steps:number"), "--transform my_steps:number is of type int"),
        ((None, None, None, "my_steps:gone"), "has no 'gone'"),
        ((None, None, None, "my_steps:broken"), "given 128x1x8x8 images, raised RuntimeError"),
        ((None, None, None, "my_steps:summed"), r"made shape \(\) of 128x1x8x8 images"),
        ((None, None, None, "my_steps:listed"), "made a list of"),
    ],
)
def test_what_cannot_be_done_is_said(asked, message):
    with pytest.raises(EvenkeelError, match=message):
        list(load_data("digits", preprocessing=parse_preprocessing(*asked)).train)


def test_batches_of_ones_own_are_not_preprocessed():
    with pytest.raises(EvenkeelError, match="yields what the model is given: preprocess there"):
        load_data("my_steps:halves", preprocessing=Preprocessing())
