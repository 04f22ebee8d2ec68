"""Images for training: parts of a set that do not overlap, standardized by what is trained on, and augmented."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from evenkeel.errors import EvenkeelError
from evenkeel.io.readers import ImageSet, LabelledImages, read_set
from evenkeel.papers.lab.images import Images, augment, batches, draws, load_images

MODULE = "evenkeel.papers.lab.images"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def numbered(monkeypatch):
    """A set of 50 + 20 images that tell where in their split they were."""

    def split(count):
        images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 2, 3, 4).contiguous()
        return LabelledImages(images, torch.arange(count))

    def read(name, **keywords):
        asked.append((name, keywords))
        return ImageSet(split(50), split(20), 50)

    asked = []
    monkeypatch.setattr(f"{MODULE}.read_set", read)
    return asked


def refusal(function, *args, **kwargs):
    with pytest.raises(EvenkeelError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


# parts of a set


def indices(split):
    assert torch.equal(split.images[:, 0, 0, 0].long(), split.labels)  # images kept their labels
    return split.labels.tolist()


def test_smaller_parts_begin_larger_ones_and_validation_is_apart(numbered):
    whole = load_images("set")
    assert (whole.shape, whole.classes, whole.validation) == ((2, 3, 4), 50, None)
    assert sorted(indices(whole.train)) == list(range(50)) != indices(whole.train)
    assert sorted(indices(whole.test)) == list(range(20)) != indices(whole.test)
    for train in (1, 7, 30, 50):
        part = load_images("set", train=train, test=train // 3 or 1)
        assert indices(part.train) == indices(whole.train)[:train]
        assert indices(part.test) == indices(whole.test)[: train // 3 or 1]
    for validation in (1, 20, 49):
        part = load_images("set", validation=validation)
        assert indices(part.train) == indices(whole.train)[: 50 - validation]
        assert indices(part.validation) == indices(whole.train)[50 - validation :]
    part = load_images("set", train=10, validation=5)
    assert indices(part.validation) == indices(whole.train)[45:]


def test_the_order_is_no_other_whatever_the_random_state(numbered):
    first = indices(load_images("set").train)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert indices(load_images("set").train) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_the_folder_and_the_wish_to_download_are_passed_on(numbered):
    load_images("set", data_dir="here", download=True)
    load_images("set")
    keywords = [{"data_dir": "here", "download": True}, {"data_dir": None, "download": False}]
    assert numbered == [("set", keyword) for keyword in keywords]


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ({"train": 51}, "set has 50 training images, not the 51 images to train and 0 to validate that were asked for"),
        ({"train": 46, "validation": 5}, "not the 46 images to train and 5 to validate"),
        ({"validation": 50}, "not the 1 images to train and 50 to validate"),
        ({"test": 21}, "set has 20 test images, not 21: ask for fewer"),
        ({"train": 0}, "0 to train, 0 to validate and 20 to test: ask for 1 or more"),
        ({"test": 0}, "50 to train, 0 to validate and 0 to test: ask for 1 or more"),
        ({"validation": -1}, "-1 to validate"),
    ],
)
def test_more_images_than_there_are_or_none_are_refused_with_numbers(numbered, asked, part):
    assert part in refusal(load_images, "set", **asked)


def test_digits_are_taken_from_their_files_and_unknown_sets_refused():
    images = load_images("digits", train=100, validation=50)
    pixels, labels = read_set("digits").train
    there = {(*pixel.flatten().tolist(), int(label)) for pixel, label in zip(pixels, labels, strict=True)}
    for split in (images.train, images.validation):
        assert all((*p.flatten().tolist(), int(n)) in there for p, n in zip(split.images, split.labels, strict=True))
    assert "no image set 'digit'" in refusal(load_images, "digit")


# standardization


def test_images_are_standardized_by_the_training_part_alone():
    images = load_images("synthetic", train=90, validation=40)
    pixels = images.train.images.double()
    mean, deviation = pixels.mean((0, 2, 3), keepdim=True), pixels.std((0, 2, 3), keepdim=True, correction=0)
    assert torch.allclose(images.mean.double(), mean.flatten()) and images.mean.dtype == torch.float32
    assert torch.allclose(images.deviation.double(), deviation.flatten())
    for split in (images.train, images.validation, images.test):
        found = images.standardize(split.images)
        assert found.dtype == torch.float32
        assert torch.allclose(found.double(), (split.images.double() - mean) / deviation, atol=1e-5)
    assert "must be uint8 pixels, not torch.float32" in refusal(images.standardize, found)


def test_a_constant_channel_is_only_centred(numbered):
    images = load_images("set", train=1)
    assert torch.equal(images.standardize(images.train.images), torch.zeros(1, 2, 3, 4))


@pytest.mark.parametrize("validation", [0, 10])
def test_all_parts_move_to_a_device(validation):
    images = load_images("synthetic", validation=validation)
    moved = images.to("meta")
    assert isinstance(moved, Images) and (moved.shape, moved.classes) == (images.shape, images.classes)
    assert (moved.validation is None) == (validation == 0)
    tensors = [*moved.train, *(moved.validation or ()), *moved.test, moved.mean, moved.deviation]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert images.to("cpu").train.images is images.train.images


# synthetic images


def test_synthetic_images_are_the_same_every_time_and_can_be_learned():
    images, again = load_images("synthetic"), load_images("synthetic")
    assert (images.shape, images.classes) == ((3, 16, 16), 10)
    assert (len(images.train.labels), len(images.test.labels)) == (400, 200)
    assert torch.equal(images.train.images, again.train.images) and torch.equal(images.test.images, again.test.images)
    more = load_images("synthetic", train=1500, test=1000, validation=500)
    assert torch.equal(more.train.images[:400], images.train.images)
    assert "synthetic has 2,000 training images" in refusal(load_images, "synthetic", train=2001)

    centres = torch.stack([images.train.images[images.train.labels == k].float().mean(0) for k in range(10)])
    nearest = torch.cdist(images.test.images.float().flatten(1), centres.flatten(1)).argmin(1)
    assert (nearest == images.test.labels).float().mean() > 0.95


# augmentation


def one_by_one(images, drawn, pad):
    """The slow, obvious way."""
    _, _, height, width = images.shape
    made = []
    for image, row, column, mirrored in zip(images, *drawn.tolist(), strict=True):
        crop = F.pad(image, (pad,) * 4)[:, row : row + height, column : column + width]
        made.append(crop.flip(2) if mirrored else crop)
    return torch.stack(made)


@given(
    st.integers(1, 5), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(0, 5), st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.uint8]), st.integers(0, 99),
)  # fmt: skip
def test_a_batch_is_augmented_as_its_images_one_by_one(count, channels, height, width, pad, flip, dtype, seed):
    images = torch.randint(1, 256, (count, channels, height, width), generator=generator(seed)).to(dtype)
    before = images.clone()
    found = augment(images, generator(seed), pad=pad, flip=flip)
    assert found.dtype == dtype
    assert torch.equal(found, one_by_one(images, draws(count, generator(seed), pad, flip), pad))
    assert torch.equal(images, before)


def test_memory_format_does_not_matter_and_the_same_state_gives_the_same_bits():
    images = torch.randn(6, 3, 8, 8, generator=generator())
    first, state = augment(images, used := generator(1)), used.get_state()
    assert torch.equal(augment(images.to(memory_format=torch.channels_last), generator(1)), first)
    second = augment(images, used)
    assert not torch.equal(first, second)
    assert torch.equal(augment(images, torch.Generator().set_state(state)), second)


def test_offsets_are_uniform_each_image_has_its_own_and_half_are_mirrored():
    count, pad = 81 * 2000, 4
    rows, columns, mirrored = draws(count, generator(3), pad, True)
    for values, kinds in ((rows, 9), (columns, 9), (mirrored, 2), (rows * 9 + columns, 81), (rows * 2 + mirrored, 18)):
        found, wanted = values.bincount(minlength=kinds).double(), count / kinds
        assert len(found) == kinds
        chi2 = float(((found - wanted) ** 2 / wanted).sum())
        freedom = kinds - 1
        assert abs(chi2 - freedom) < 4 * (2 * freedom) ** 0.5
    independent = np.corrcoef(rows[:-1], rows[1:])[0, 1]
    assert abs(independent) < 4 / count**0.5
    assert not draws(1000, generator(), 4, False)[2].any()


def test_no_padding_and_no_mirror_image_change_nothing():
    images = torch.randn(3, 2, 4, 5)
    assert torch.equal(augment(images, generator(), pad=0, flip=False), images)


def test_augment_refuses_what_it_cannot_pad():
    assert "pads NCHW images by 0 or more pixels, not 3x8x8 by 4" in refusal(augment, torch.ones(3, 8, 8), generator())
    assert "not 1x3x8x8 by -1" in refusal(augment, torch.ones(1, 3, 8, 8), generator(), pad=-1)


# batches


@given(st.integers(2, 60), st.integers(1, 20), st.integers(0, 99))
def test_batches_hold_every_image_once_but_for_one_that_would_be_alone(count, size, seed):
    parts = list(batches(count, size, generator(seed)))
    alone = size > 1 and count % size == 1
    found = torch.cat(parts).tolist()
    assert len(set(found)) == len(found) == count - alone and set(found) <= set(range(count))
    assert all(len(part) == size for part in parts[:-1])
    assert 1 <= len(parts[-1]) <= size and (size == 1 or len(parts[-1]) > 1)
    again = list(batches(count, size, generator(seed)))
    assert all(torch.equal(left, right) for left, right in zip(parts, again, strict=True))


def test_each_epoch_has_its_own_order_and_no_batch_is_refused():
    used = generator()
    first, second = (torch.cat(list(batches(100, 10, used))) for _ in range(2))
    assert not torch.equal(first, second)
    assert [part.tolist() for part in batches(1, 1, generator())] == [[0]]
    for count, size in ((0, 1), (1, 2), (5, 0)):
        assert f"{count} images make no batch of up to {size}" in refusal(batches, count, size, generator())
