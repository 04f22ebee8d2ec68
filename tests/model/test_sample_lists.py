"""Lists of samples: counted as such in every container that loaders yield them in, and batches in lists are not."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import evenkeel as ek
from evenkeel.model.batches import samples
from evenkeel.model.sample_lists import listed_samples

Pair = namedtuple("Pair", "images targets")


@dataclass
class Batch:
    images: Any
    targets: Any


class Instances:
    """What belongs to an image, as detectron2 holds it."""


def images(channels, sizes):
    return [torch.rand(channels, *size) for size in sizes]


ALIKE, UNLIKE = [(8, 9)] * 4, [(8, 9), (7, 5), (8, 8), (6, 9)]
BOXES = tuple({"boxes": torch.rand(k, 4), "labels": torch.arange(k)} for k in (3, 1, 4, 2))
FORMS = {
    "lists": lambda found: (found, list(BOXES)),
    "tuples, as zip makes them": lambda found: (tuple(found), BOXES),
    "tuples and boxes": lambda found: (tuple(found), tuple(target["boxes"] for target in BOXES)),
    "named tuple": lambda found: Pair(tuple(found), BOXES),
    "mapping": lambda found: {"images": found, "targets": list(BOXES)},
    "mapping of tuples": lambda found: {"images": tuple(found), "targets": BOXES},
    "dataclass": lambda found: Batch(found, [1, 2, 3, 4]),
    "names": lambda found: (tuple(found), ("a", "b", "c", "d")),
    "records": lambda found: [{"image": image, "height": 8} for image in found],
    "records with objects": lambda found: [{"image": image, "instances": Instances()} for image in found],
    "records in a tuple": lambda found: ([{"image": image} for image in found],),
    "records of images and boxes": lambda found: tuple({"image": i, **b} for i, b in zip(found, BOXES, strict=True)),
    "alone": lambda found: found,
}


@pytest.mark.parametrize("sizes", [ALIKE, UNLIKE], ids=["of one size", "of any size"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("form", FORMS)
def test_images_are_counted(form, channels, sizes):
    assert samples(FORMS[form](images(channels, sizes))) == 4


X, Y = torch.rand(32, 5), torch.rand(32)
VIEW = {"image": torch.rand(32, 3, 8, 8), "mask": torch.rand(32, 8, 8)}


@pytest.mark.parametrize(
    "batch",
    [
        [X, Y],
        [[X, X], [Y, Y]],
        ((X, 2 * X), (X, Y)),
        (X, (torch.rand(1, 32, 6), torch.rand(1, 32, 6))),
        [VIEW, VIEW],
        (VIEW, {"labels": Y}),
        [torch.rand(32, 3, 8, 8), torch.rand(32, 8, 8)],
        {"x": X, "hidden": (torch.rand(3, 32, 6), torch.rand(3, 32, 6))},
    ],
    ids=["pair", "several of each", "several in tuples", "state", "views", "mappings", "masks", "state by name"],
)
def test_batches_in_lists_are_no_samples(batch):
    assert listed_samples(batch) is None
    assert samples(batch) == 32


@pytest.mark.parametrize("batch", [[torch.rand(4, 9, 5), torch.rand(4, 9, 2)], [torch.rand(1, 9, 5)] * 2])
def test_a_pair_of_sequences_is_no_two_images(batch):
    assert samples(batch) == len(batch[0])


class Detector(nn.Module):
    """Pads the images to one size, and runs them as one batch."""

    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 4, 3, bias=False), nn.BatchNorm2d(4))

    def forward(self, found):
        height, width = (max(image.shape[dim] for image in found) for dim in (1, 2))
        return self.body(
            torch.stack([nn.functional.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in found])
        )


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_prior_of_as_many_images_weighs_half_however_they_are_collated(channels):
    torch.manual_seed(0)
    model = Detector(channels)
    data = [FORMS["tuples, as zip makes them"]([1 + image for image in images(channels, UNLIKE)]) for _ in range(3)]
    done = ek.reestimate_(model, data, match="variance")
    new = model.body[1].running_mean.clone()
    done.undo()
    blended = ek.reestimate_(model, data, match="variance", prior=12)
    torch.testing.assert_close(model.body[1].running_mean, new / 2)  # of 0 before
    assert done.samples == blended.samples == 12
    assert not any("one by one" in note for note in blended.notes)
