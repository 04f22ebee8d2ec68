"""Data sets become standardized batches, and are refused in one line where they are damaged."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_readers import NAMES, binary, cut, write_mnist

from evenkeel.errors import EvenkeelError
from evenkeel.io.datasets import Batches, load_data


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """No data but the test's own, and no trace of what it imports."""
    monkeypatch.delenv("EVENKEEL_DATA", raising=False)
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def refusal(*args, **kwargs):
    with pytest.raises(EvenkeelError) as caught:
        data = load_data(*args, **kwargs)
        list(data.train)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def joined(batches):
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def standardized(pixels, train):
    """The slow, obvious way."""
    train = torch.from_numpy(train).double()
    mean, deviation = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True, correction=0)
    return ((torch.from_numpy(pixels).double() - mean) / deviation).float()


# named sets


def test_a_named_set_is_standardized_by_its_training_split():
    data = load_data("digits", batch_size=100)
    assert (data.name, data.shape, data.classes) == ("digits", (1, 8, 8), 10)
    (images, labels), (test_images, test_labels) = joined(data.train), joined(data.test)
    assert (images.shape, test_images.shape) == ((1000, 1, 8, 8), (797, 1, 8, 8))
    assert (len(labels), len(test_labels), images.dtype, labels.dtype) == (1000, 797, torch.float32, torch.int64)
    assert float(images.mean()) == pytest.approx(0, abs=1e-6)
    assert float(images.std()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("by_environment", [False, True])
def test_a_sets_batches_are_its_files_images_and_labels(tmp_path, monkeypatch, by_environment):
    arrays = write_mnist(tmp_path / "here")
    monkeypatch.setenv("EVENKEEL_DATA", str(tmp_path / ("here" if by_environment else "absent")))
    data = load_data("mnist", data_dir=None if by_environment else tmp_path / "here", batch_size=5)
    assert (data.shape, data.classes, len(data.train), len(data.test)) == ((1, 28, 28), 10, 3, 1)
    for batches, split in ((data.train, "train"), (data.test, "t10k")):
        images, labels = joined(batches)
        assert torch.allclose(images, standardized(arrays[split][0], arrays["train"][0]), atol=1e-5)
        assert np.array_equal(labels, arrays[split][1])


def test_files_that_are_missing_are_told_and_downloaded_if_asked_for(tmp_path, monkeypatch):
    def fetch(name, folder, home):
        write_mnist(home / folder)
        return home

    assert "or let evenkeel download them" in refusal("mnist", data_dir=tmp_path)
    monkeypatch.setattr("evenkeel.io.readers.fetch", fetch)
    assert len(load_data("mnist", data_dir=tmp_path, download=True).train) == 1
    assert len(load_data("mnist", data_dir=tmp_path).train) == 1


def test_digits_are_the_same_every_time_whatever_the_random_state():
    first = joined(load_data("digits").train)
    torch.manual_seed(12345)
    state = torch.get_rng_state()
    again = joined(load_data("digits", batch_size=7).train)
    assert all(torch.equal(left, right) for left, right in zip(first, again, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


# folder:


def write_image(path, colour, size=(10, 6), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def test_a_folder_of_classes_gives_labelled_images_in_the_shape_asked_for(tmp_path):
    write_image(tmp_path / "set" / "dog" / "deep" / "b.PNG", (255, 0, 0))
    write_image(tmp_path / "set" / "cat" / "a.png", (0, 255, 0))
    write_image(tmp_path / "set" / "cat" / "b.bmp", 255, mode="L")
    (tmp_path / "set" / "cat" / ".hidden.png").touch()
    (tmp_path / "set" / "cat" / "notes.txt").touch()
    (tmp_path / "set" / "empty").mkdir()
    data = load_data(f"folder:{tmp_path / 'set'}", shape=(3, 4, 5), batch_size=2)
    assert (data.shape, data.classes, data.test, len(data.train)) == ((3, 4, 5), 2, None, 1)
    images, labels = joined(data.train)
    assert labels.tolist() == [0, 0, 1]
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    colours = images * deviation.view(3, 1, 1) + mean.view(3, 1, 1)
    wanted = torch.tensor([[0.0, 1, 0], [1, 1, 1], [1, 0, 0]])[..., None, None].expand(3, 3, 4, 5)
    assert torch.allclose(colours, wanted, atol=1e-6)


def test_a_flat_folder_gives_images_without_labels(tmp_path):
    for i, colour in enumerate((0, 255, 51, 0)):
        write_image(tmp_path / "set" / f"{i}.png", colour, mode="L")
    data = load_data("folder:set", shape=(1, 6, 10), batch_size=2)
    assert (data.classes, data.test) == (None, None)
    batches = list(data.train)
    assert [batch.shape for batch in batches] == [(2, 1, 6, 10), (2, 1, 6, 10)]
    assert torch.cat(batches)[:, 0, 0, 0].tolist() == pytest.approx([-1, 1, -0.6, -1])
    assert all(torch.equal(left, right) for left, right in zip(batches, data.train, strict=True))


def test_images_are_resized_bilinearly_height_first(tmp_path):
    write_image(tmp_path / "set" / "a.png", 0, size=(4, 2), mode="L")
    picture = Image.open(tmp_path / "set" / "a.png")
    picture.putpixel((3, 1), 255)
    picture.save(tmp_path / "set" / "a.png")
    images = next(iter(load_data("folder:set", shape=(1, 8, 12)).train))
    wanted = np.asarray(picture.resize((12, 8), Image.Resampling.BILINEAR)) / 127.5 - 1
    assert np.allclose(images[0, 0].numpy(), wanted, atol=1e-6)


def test_what_is_wrong_with_a_folder_is_told(tmp_path):
    assert "folder: names no folder" in refusal("folder:")
    for shape in (None, (2, 8, 8), (3, 8, 8)):  # that the folder is missing comes first
        assert "there is no folder absent" in refusal("folder:absent", shape=shape)
    (tmp_path / "set").mkdir()
    assert "no shape: give one of 1 or 3 channels" in refusal("folder:set")
    assert "shape 2x8x8: give one" in refusal("folder:set", shape=(2, 8, 8))
    assert "set holds 0 images and 0 sub-folders with images" in refusal("folder:set", shape=(3, 8, 8))
    write_image(tmp_path / "set" / "a.png", 0, mode="L")
    write_image(tmp_path / "set" / "cat" / "b.png", 0, mode="L")
    assert "set holds 1 images and 1 sub-folders" in refusal("folder:set", shape=(3, 8, 8))


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif"])
def test_an_image_that_cannot_be_read_is_named(tmp_path, suffix):
    generator = np.random.default_rng(0)
    for name in "abc":
        write_image(tmp_path / "set" / f"{name}.{suffix}", 0)
        Image.fromarray(generator.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "set" / f"{name}.{suffix}")
    cut(tmp_path / "set" / f"b.{suffix}", 500)
    assert f"b.{suffix} is no image that can be read" in refusal("folder:set", shape=(3, 8, 8))
    (tmp_path / "set" / f"b.{suffix}").write_text("text")
    assert f"b.{suffix} is no image that can be read" in refusal("folder:set", shape=(3, 8, 8))


# package.module:callable

CALLABLES = """
import torch

BATCHES = [torch.full((2, 3), float(i)) for i in range(3)]

def batches():
    return BATCHES

def pair():
    return BATCHES, [torch.ones(1)]

def stream():
    yield from BATCHES

def streams():
    return iter(BATCHES), iter(BATCHES[:1])

class held:
    inner = batches

def tensors():
    return torch.ones(2), torch.ones(2)

def three():
    return BATCHES, BATCHES, BATCHES

def mapping():
    return {"x": 1}

def nothing():
    pass

def broken():
    raise ValueError("no\\ndata")

def needs(argument):
    return BATCHES
"""


@pytest.fixture
def my_data(tmp_path):
    (tmp_path / "my_data.py").write_text(CALLABLES)


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [("batches", 3, None), ("pair", 3, 1), ("stream", 3, None), ("streams", 3, 1), ("held.inner", 3, None)],
)
def test_a_callable_gives_whatever_it_yields_as_often_as_asked(my_data, name, train, test):
    data = load_data(f"my_data:{name}", batch_size=7)
    assert (data.shape, data.classes) == (None, None)
    for _ in range(2):
        assert [batch[0, 0].item() for batch in data.train] == list(range(train))
        assert data.test is None if test is None else len(list(data.test)) == test


def test_a_callables_first_batch_is_checked_against_the_shape_asked_for(my_data):
    data = load_data("my_data:batches")
    shape = tuple(next(iter(data.train)).shape[1:])
    assert load_data("my_data:batches", shape=shape).name == "my_data:batches"
    with pytest.raises(EvenkeelError, match=r"inputs of my_data:batches are .*, not 3x9x9"):
        load_data("my_data:batches", shape=(3, 9, 9))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("my_data:absent", "my_data has no 'absent'"),
        ("my_dota:batches", "no module 'my_dota'"),
        ("my-data:batches", "no name of a module"),
        ("my_data:BATCHES", "TypeError: 'list' object is not callable"),
        ("my_data:tensors", "returned a Tensor, not batches"),
        ("my_data:three", "returned a tuple of 3"),
        ("my_data:mapping", "returned a dict, not batches"),
        ("my_data:nothing", "returned a NoneType, not batches"),
        ("my_data:broken", "ValueError: no data"),
        ("my_data:needs", "TypeError"),
    ],
)
def test_a_callable_that_gives_no_batches_is_told_in_one_line(my_data, name, reason):
    message = refusal(name)
    assert reason in message
    assert repr(name) in message


# all of them


@pytest.mark.parametrize("name", ["", "imagenet", "digit", "folder", ":batches", "my_data:"])
def test_an_unknown_name_is_told_with_the_known_ones(name):
    known = "digits, mnist, fashion-mnist, cifar10, cifar100, svhn, folder:PATH or package.module:callable"
    assert refusal(name) == f"no data set {name!r}: name {known}"


def test_shapes_that_do_not_match_and_empty_batches_are_told(tmp_path):
    assert load_data("digits", shape=(1, 8, 8)).shape == (1, 8, 8)
    assert "images of digits are 1x8x8, not 3x224x224" in refusal("digits", shape=(3, 224, 224))
    assert "batch_size must be at least 1, not 0" in refusal("digits", batch_size=0)


@given(st.integers(1, 9), st.integers(1, 12), st.booleans())
def test_batches_are_the_images_in_order_every_time(count, batch_size, labelled):
    pixels = torch.arange(2.0 * count).view(count, 2, 1, 1)
    labels = torch.arange(count) if labelled else None
    moments = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])
    batches = Batches(pixels.__getitem__, labels, *moments, count=count, batch_size=batch_size)
    for _ in range(2):
        parts = list(batches)
        sizes = [len(part[0]) if labelled else len(part) for part in parts]
        assert len(sizes) == len(batches) and max(sizes) <= batch_size + 1
        assert 1 not in sizes or 1 in (count, batch_size)  # no norm can be given a single sample
        images = torch.cat([part[0] for part in parts] if labelled else parts)
        assert torch.equal(images, (pixels - moments[0].view(2, 1, 1)) / moments[1].view(2, 1, 1))
        assert not labelled or torch.equal(torch.cat([part[1] for part in parts]), labels)


def test_a_channel_without_variance_is_only_centred(tmp_path):
    arrays = np.full((6, 2, 3072), 7, np.uint8)
    for name, pixels in zip(NAMES, arrays, strict=True):
        (tmp_path / f"{name}.bin").write_bytes(binary(pixels, np.zeros(2, np.uint8)))
    images, _ = joined(load_data("cifar10", data_dir=tmp_path).train)
    assert torch.equal(images, torch.zeros(10, 3, 32, 32))
