"""Data sets are read from their standard files, standardized, and refused in one line where they are damaged."""

import gzip
import os
import pickle
import struct
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evenkeel.datasets import Batches, load_data
from evenkeel.errors import EvenkeelError

SPLITS = ("train", "t10k")


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """No data but the test's own, and no trace of what it imports."""
    monkeypatch.delenv("EVENKEEL_DATA", raising=False)
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


# digits


def test_digits_are_scikit_learns_1000_to_train_and_797_to_test():
    data = load_data("digits", batch_size=100)
    assert (data.name, data.shape, data.classes) == ("digits", (1, 8, 8), 10)
    (images, labels), (test_images, test_labels) = joined(data.train), joined(data.test)
    assert (images.shape, test_images.shape) == ((1000, 1, 8, 8), (797, 1, 8, 8))
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    assert float(images.mean()) == pytest.approx(0, abs=1e-6)
    assert float(images.std()) == pytest.approx(1, abs=1e-3)

    from sklearn.datasets import load_digits

    def rows(images, labels):
        return sorted((*image.flatten().tolist(), int(label)) for image, label in zip(images, labels, strict=True))

    unit = (data.train.deviation, data.train.mean)
    ours = torch.cat([images, test_images]) * unit[0] + unit[1]
    theirs = load_digits()
    assert rows(ours.round().int(), torch.cat([labels, test_labels])) == rows(theirs.images.astype(int), theirs.target)


def test_digits_are_the_same_every_time_whatever_the_random_state():
    first = joined(load_data("digits").train)
    torch.manual_seed(12345)
    state = torch.get_rng_state()
    again = joined(load_data("digits", batch_size=7).train)
    assert all(torch.equal(left, right) for left, right in zip(first, again, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_digits_without_scikit_learn(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert refusal("digits") == 'digits come with scikit-learn: pip install "evenkeel[papers]"'


# mnist


def idx(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder, packed=False, counts=(12, 5)):
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in zip(SPLITS, counts, strict=True):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = generator.integers(0, 10, count, dtype=np.uint8)
        arrays[split] = images[:, None], torch.from_numpy(labels).long()
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            name = f"{split}-{kind}-ubyte{'.gz' if packed else ''}"
            (folder / name).write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return arrays


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("folder", ["", "MNIST/raw", "mnist"])
def test_mnist_is_read_packed_or_not_from_the_usual_folders(tmp_path, packed, folder):
    arrays = write_mnist(tmp_path / folder, packed)
    data = load_data("mnist", data_dir=tmp_path, batch_size=5)
    assert (data.shape, data.classes, len(data.train), len(data.test)) == ((1, 28, 28), 10, 3, 1)
    for batches, split in ((data.train, "train"), (data.test, "t10k")):
        images, labels = joined(batches)
        assert torch.allclose(images, standardized(arrays[split][0], arrays["train"][0]), atol=1e-5)
        assert torch.equal(labels, arrays[split][1])


def test_data_lie_where_the_environment_says_unless_a_folder_is_given(tmp_path, monkeypatch):
    write_mnist(tmp_path / "a", counts=(3, 1))
    write_mnist(tmp_path / "b", counts=(4, 1))
    monkeypatch.setenv("EVENKEEL_DATA", str(tmp_path / "a"))
    assert len(joined(load_data("mnist").train)[0]) == 3
    assert len(joined(load_data("mnist", data_dir=tmp_path / "b").train)[0]) == 4


def cut(path, size=-10):
    path.write_bytes(path.read_bytes()[:size])


def overwrite(path, content):
    path.write_bytes(content)


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
DAMAGED_IDX = {
    "cut": (IMAGES, cut, ["is damaged: 9,398 bytes of data", "12x28x28 = 9,408"]),
    "header cut": (IMAGES, lambda p: cut(p, 9), ["its 9 bytes start with 00 00 08 03"]),
    "empty": (IMAGES, lambda p: overwrite(p, b""), ["its 0 bytes start with nothing"]),
    "a web page": (IMAGES, lambda p: overwrite(p, b"<html>" * 9), ["its 54 bytes start with 3c 68 74 6d"]),
    "labels for images": (IMAGES, lambda p: overwrite(p, idx(np.zeros(3, np.uint8))), ["3 dimensions", "00 00 08 01"]),
    "no images": (IMAGES, lambda p: overwrite(p, idx(np.zeros((0, 28, 28), np.uint8))), ["0x28x28 = 0"]),
    "fewer labels": (LABELS, lambda p: overwrite(p, idx(np.zeros(7, np.uint8))), ["7 labels for 12 images"]),
    "label 77": (LABELS, lambda p: overwrite(p, idx(np.array([1, 77] * 6, np.uint8))), ["label 77 of image 1 is none"]),
    "packed, cut": (f"{IMAGES}.gz", cut, ["cannot be read (EOFError"]),
    "not packed": (f"{IMAGES}.gz", lambda p: overwrite(p, b"plain"), ["cannot be read (BadGzipFile"]),
    "packed, changed": (f"{IMAGES}.gz", lambda p: overwrite(p, p.read_bytes()[:50] + b"x" * 50), ["cannot be read"]),
}


@pytest.mark.parametrize("case", DAMAGED_IDX)
def test_damaged_idx_files_are_named_with_numbers(tmp_path, case):
    name, damage, parts = DAMAGED_IDX[case]
    write_mnist(tmp_path, packed=name.endswith(".gz"))
    damage(tmp_path / name)
    message = refusal("mnist", data_dir=tmp_path)
    assert [part for part in [str(tmp_path / name), "download it again", *parts] if part not in message] == []


def test_missing_files_are_named_with_the_places_looked_at(tmp_path):
    message = refusal("mnist", data_dir=tmp_path)
    wanted = [f"{split}-{kind}-ubyte" for split in SPLITS for kind in ("images-idx3", "labels-idx1")]
    places = [str(tmp_path / place) for place in ("mnist", "MNIST/raw", "")]
    assert [part for part in [*wanted, *places, "--data-dir", "EVENKEEL_DATA"] if part not in message] == []
    assert "name the folder that holds them by data_dir" in refusal("mnist")

    write_mnist(tmp_path / "mnist", packed=True)
    (tmp_path / "mnist" / f"{LABELS}.gz").unlink()
    assert f"mnist: no {LABELS}.gz in {tmp_path / 'mnist'}: put" in refusal("mnist", data_dir=tmp_path)


# cifar10

NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def python_2_pickle(pixels, labels):
    """The bytes that Python 2 with its numpy wrote, as in the published files."""
    data = b"".join(
        [
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR",
            b"(K\x01(J" + struct.pack("<i", len(pixels)) + b"M\x00\x0ct",
            b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"\x89T" + struct.pack("<i", pixels.nbytes) + pixels.tobytes() + b"tb",
        ]
    )
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    return b"\x80\x02}(U\x04data" + data + b"U\x06labels](" + numbers + b"eU\x0bbatch_labelU\x01xu."


def python_3_pickle(protocol, layout=np.ascontiguousarray, key=str):
    def write(pixels, labels):
        content = {"data": layout(pixels), "labels": labels.tolist(), "filenames": ["a.png"]}
        return pickle.dumps({key(k): value for k, value in content.items()}, protocol)

    return write


def encoded(text):
    return text.encode()


def binary(pixels, labels):
    return np.concatenate([labels[:, None], pixels], axis=1).tobytes()


FORMATS = {
    "binary": binary,
    "python 2": python_2_pickle,
    "protocol 0": python_3_pickle(0),
    "protocol 2": python_3_pickle(2),
    "protocol 4": python_3_pickle(4),
    "protocol 4, bytes as keys": python_3_pickle(4, key=encoded),
    "protocol 4, by columns": python_3_pickle(4, layout=np.asfortranarray),
    "protocol 5": python_3_pickle(5),
    "protocol 5, by columns": python_3_pickle(5, layout=np.asfortranarray),
}


def write_cifar(folder, write, count=4):
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 256, (6, count, 3072), dtype=np.uint8)
    labels = generator.integers(0, 10, (6, count), dtype=np.uint8)
    for name, *content in zip(NAMES, pixels, labels, strict=True):
        (folder / (f"{name}.bin" if write is binary else name)).write_bytes(write(*content))
    return pixels.reshape(6, count, 3, 32, 32), torch.from_numpy(labels).long()


@pytest.mark.parametrize("written", FORMATS)
def test_cifar10_is_read_in_every_layout(tmp_path, written):
    pixels, labels = write_cifar(tmp_path, FORMATS[written])
    data = load_data("cifar10", data_dir=tmp_path, batch_size=6)
    assert (data.shape, data.classes, len(data.train), len(data.test)) == ((3, 32, 32), 10, 4, 1)
    train = pixels[:5].reshape(-1, 3, 32, 32)
    for batches, images, wanted in ((data.train, train, labels[:5].flatten()), (data.test, pixels[5], labels[5])):
        found, found_labels = joined(batches)
        assert torch.allclose(found, standardized(images, train), atol=1e-5)
        assert torch.equal(found_labels, wanted)


@pytest.mark.parametrize("folder", ["cifar-10-batches-py", "cifar-10-batches-bin", "cifar10"])
def test_cifar10_is_found_in_its_usual_folders(tmp_path, folder):
    write_cifar(tmp_path / folder, FORMATS["binary" if folder.endswith("bin") else "protocol 4"])
    assert len(joined(load_data("cifar10", data_dir=tmp_path).train)[1]) == 20


def test_missing_batches_of_cifar10_are_named(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-bin", binary)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    message = refusal("cifar10", data_dir=tmp_path)
    assert f"cifar10: no data_batch_3.bin in {tmp_path / 'cifar-10-batches-bin'}: put" in message


class Evil:
    def __reduce__(self):
        return os.mkdir, ("harm",)


class Pointer:
    """An array of Python objects made from bytes, which numpy's own constructor would take for pointers."""

    def __reduce__(self):
        return np.ndarray, ((1,), np.dtype("O"), b"\xde\xad\xbe\xef\xde\xad\xbe\xef")


def pickled(**content):
    return lambda path: path.write_bytes(pickle.dumps(content))


def pixels(count, dtype=np.uint8):
    return np.zeros((count, 3072), dtype)


DAMAGED_CIFAR = {
    "binary, cut": ("data_batch_2.bin", cut, ["its 12,282 bytes are 4.00 records of 3,073"]),
    "binary, empty": ("data_batch_2.bin", lambda p: overwrite(p, b""), ["its 0 bytes are 0.00 records"]),
    "binary, label 10": ("test_batch.bin", lambda p: overwrite(p, b"\x0a" * 3073), ["label 10 of image 0 is none"]),
    "pickle, cut": ("data_batch_1", cut, ["is no CIFAR batch"]),
    "pickle, empty": ("data_batch_1", lambda p: overwrite(p, b""), ["is no CIFAR batch (EOFError"]),
    "no pickle": ("data_batch_1", lambda p: overwrite(p, b"<html>"), ["is no CIFAR batch"]),
    "code": (
        "data_batch_1",
        pickled(data=Evil(), labels=[1]),
        ["is no CIFAR batch", f"asks for {os.mkdir.__module__}.mkdir"],
    ),
    "eval": ("data_batch_1", lambda p: overwrite(p, b"cbuiltins\neval\n(V1\ntR."), ["asks for builtins.eval"]),
    "inside numpy": ("data_batch_1", lambda p: overwrite(p, b"cnumpy\nsave\n."), ["asks for numpy.save"]),
    "pointers": ("data_batch_1", pickled(data=Pointer(), labels=[1]), ["is no CIFAR batch"]),
    "floats": ("data_batch_1", pickled(data=pixels(1, np.float32), labels=[1]), ["its array holds f4, not bytes"]),
    "a list": ("data_batch_1", lambda p: overwrite(p, pickle.dumps([1])), ["is no CIFAR batch (AttributeError"]),
    "no labels": ("data_batch_1", pickled(data=pixels(1)), ["is no CIFAR batch (KeyError: 'labels'"]),
    "fine labels": ("data_batch_1", pickled(data=pixels(1), labels=["cat"]), ["is no CIFAR batch"]),
    "fewer labels": ("data_batch_1", pickled(data=pixels(3), labels=[1]), ["1 labels for 3 images"]),
    "negative label": ("data_batch_1", pickled(data=pixels(1), labels=[-1]), ["label -1 of image 0 is none of 0 to 9"]),
    "another size": ("data_batch_1", pickled(data=np.zeros((1, 300), np.uint8), labels=[1]), ["is no CIFAR batch"]),
}


@pytest.mark.parametrize("case", DAMAGED_CIFAR)
def test_damaged_cifar_files_are_named_and_run_no_code(tmp_path, case):
    name, damage, parts = DAMAGED_CIFAR[case]
    write_cifar(tmp_path, binary if name.endswith(".bin") else FORMATS["protocol 4"])
    damage(tmp_path / name)
    message = refusal("cifar10", data_dir=tmp_path)
    assert [part for part in [str(tmp_path / name), "download it again", *parts] if part not in message] == []
    assert not (tmp_path / "harm").exists()


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
    assert "no shape: give one of 1 or 3 channels" in refusal("folder:absent")
    assert "shape 2x8x8: give one" in refusal("folder:absent", shape=(2, 8, 8))
    assert "there is no folder absent" in refusal("folder:absent", shape=(3, 8, 8))
    (tmp_path / "set").mkdir()
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


@pytest.mark.parametrize("name", ["", "imagenet", "digit", "folder", "folder:", ":batches", "my_data:"])
def test_an_unknown_name_is_told_with_the_known_ones(name):
    assert refusal(name) == (
        f"no data set {name!r}: name digits, mnist, cifar10, folder:PATH or package.module:callable"
    )


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
