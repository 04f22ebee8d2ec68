"""Image sets are read from their standard files, byte for byte, and refused in one line where they are damaged."""

import gzip
import os
import pickle
import struct
import sys

import numpy as np
import pytest
import torch
from scipy.io import savemat

from evenkeel.errors import EvenkeelError
from evenkeel.io.downloads import SETS
from evenkeel.io.readers import read_set

SPLITS = ("train", "t10k")


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """No data but the test's own."""
    monkeypatch.delenv("EVENKEEL_DATA", raising=False)
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.chdir(tmp_path)


def refusal(*args, **kwargs):
    with pytest.raises(EvenkeelError) as caught:
        read_set(*args, **kwargs)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def same(split, images, labels):
    assert (split.images.dtype, split.labels.dtype) == (torch.uint8, torch.int64)
    return np.array_equal(split.images, images) and np.array_equal(split.labels, labels)


@pytest.mark.parametrize("name", ["", "imagenet", "digit", "folder:set"])
def test_an_unknown_name_is_told_with_the_known_ones(name):
    known = "digits, mnist, fashion-mnist, cifar10, cifar100, svhn"
    assert refusal(name) == f"no image set {name!r}: name {known}"
    assert ", ".join(SETS) == known


# digits


def test_digits_are_scikit_learns_1000_to_train_and_797_to_test():
    digits = read_set("digits", data_dir="absent", download=True)
    (images, labels), (test_images, test_labels) = digits.train, digits.test
    assert (images.shape, test_images.shape, digits.classes) == ((1000, 1, 8, 8), (797, 1, 8, 8), 10)
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64

    from sklearn.datasets import load_digits

    def rows(images, labels):
        return sorted((*image.flatten().tolist(), int(label)) for image, label in zip(images, labels, strict=True))

    theirs = load_digits()
    ours = rows(torch.cat([images, test_images]), torch.cat([labels, test_labels]))
    assert ours == rows(theirs.images.astype(int), theirs.target)


@pytest.mark.parametrize(
    ("name", "package", "message"),
    [
        ("digits", "sklearn", 'digits come with scikit-learn: pip install "evenkeel[papers]"'),
        ("svhn", "scipy", 'svhn is read by scipy, which comes with scikit-learn: pip install "evenkeel[papers]"'),
    ],
)
def test_a_set_without_the_package_that_reads_it(tmp_path, monkeypatch, name, package, message):
    write_svhn(tmp_path)
    for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)
    assert refusal(name, data_dir=tmp_path) == message


# mnist and fashion-mnist


def idx(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder, packed=False, counts=(12, 5)):
    """MNIST's four files; gives what is in them."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in zip(SPLITS, counts, strict=True):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = generator.integers(0, 10, count, dtype=np.uint8)
        arrays[split] = images[:, None], labels
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            name = f"{split}-{kind}-ubyte{'.gz' if packed else ''}"
            (folder / name).write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return arrays


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", ""),
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
        ("fashion-mnist", ""),
        ("fashion-mnist", "fashion-mnist"),
        ("fashion-mnist", "FashionMNIST/raw"),
    ],
)
def test_idx_files_are_read_packed_or_not_from_the_usual_folders(tmp_path, packed, name, folder):
    arrays = write_mnist(tmp_path / folder, packed)
    found = read_set(name, data_dir=tmp_path)
    assert found.classes == 10
    assert same(found.train, *arrays["train"]) and same(found.test, *arrays["t10k"])


def test_data_lie_where_the_environment_says_unless_a_folder_is_given(tmp_path, monkeypatch):
    write_mnist(tmp_path / "cache" / "evenkeel" / "mnist", counts=(2, 1))
    write_mnist(tmp_path / "a", counts=(3, 1))
    write_mnist(tmp_path / "b", counts=(4, 1))
    assert len(read_set("mnist").train.labels) == 2
    monkeypatch.setenv("EVENKEEL_DATA", str(tmp_path / "a"))
    assert len(read_set("mnist").train.labels) == 3
    assert len(read_set("mnist", data_dir=tmp_path / "b").train.labels) == 4


def test_mnist_is_not_taken_for_fashion_mnist_nor_the_other_way_round(tmp_path):
    first = {"mnist": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], "fashion-mnist": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]}  # as published
    for name, other in (("mnist", "fashion-mnist"), ("fashion-mnist", "mnist")):
        write_mnist(tmp_path)
        (tmp_path / LABELS).write_bytes(idx(np.array([*first[other], 0, 0], np.uint8)))
        message = refusal(name, data_dir=tmp_path)
        assert f"{tmp_path / LABELS} holds the labels of {other}, not of {name}: keep the files of {name} in" in message
        assert len(read_set(other, data_dir=tmp_path).train.labels) == 12
        write_mnist(tmp_path / name)
        assert len(read_set(name, data_dir=tmp_path).train.labels) == 12


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
    remedy = "name the folder that holds them by data_dir (--data-dir) or EVENKEEL_DATA"
    offer = ", or let evenkeel download them by download=True (--download)"
    assert refusal("mnist") == f"mnist is read from the files {', '.join(wanted)}: {remedy}{offer}"
    assert message.endswith(f"put them there, or {remedy}{offer}")

    write_mnist(tmp_path / "mnist", packed=True)
    (tmp_path / "mnist" / f"{LABELS}.gz").unlink()
    assert f"mnist: no {LABELS}.gz in {tmp_path / 'mnist'}: put" in refusal("mnist", data_dir=tmp_path)


# cifar

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
    found = read_set("cifar10", data_dir=tmp_path)
    assert found.classes == 10
    assert same(found.train, pixels[:5].reshape(-1, 3, 32, 32), labels[:5].flatten())
    assert same(found.test, pixels[5], labels[5])


@pytest.mark.parametrize("folder", ["cifar-10-batches-py", "cifar-10-batches-bin", "cifar10"])
def test_cifar10_is_found_in_its_usual_folders(tmp_path, folder):
    write_cifar(tmp_path / folder, FORMATS["binary" if folder.endswith("bin") else "protocol 4"])
    assert len(read_set("cifar10", data_dir=tmp_path).train.labels) == 20


def write_cifar100(folder, python, counts=(6, 4)):
    """CIFAR-100's two files: the coarse label, the fine one, the pixels; gives pixels and fine labels."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(2)
    arrays = {}
    for name, count in zip(("train", "test"), counts, strict=True):
        pixels = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        coarse, fine = (generator.integers(low, high, count, dtype=np.uint8) for low, high in ((0, 20), (20, 100)))
        arrays[name] = pixels.reshape(-1, 3, 32, 32), fine
        if python:
            content = {"filenames": ["a.png"], "coarse_labels": coarse.tolist(), "fine_labels": fine.tolist()}
            (folder / name).write_bytes(pickle.dumps({**content, "data": pixels}, 2))
        else:
            (folder / f"{name}.bin").write_bytes(np.concatenate([coarse[:, None], fine[:, None], pixels], 1).tobytes())
    return arrays


@pytest.mark.parametrize(
    ("python", "folder"), [(True, "cifar-100-python"), (False, "cifar-100-binary"), (True, "cifar100"), (False, "")]
)
def test_cifar100_is_read_with_its_fine_labels_in_both_layouts(tmp_path, python, folder):
    arrays = write_cifar100(tmp_path / folder, python)
    found = read_set("cifar100", data_dir=tmp_path)
    assert found.classes == 100
    assert same(found.train, *arrays["train"]) and same(found.test, *arrays["test"])


def test_damaged_files_of_cifar100_are_named(tmp_path):
    write_cifar100(tmp_path, python=False)
    (tmp_path / "test.bin").write_bytes(b"\x00\x64" + b"x" * 3072)
    assert f"{tmp_path / 'test.bin'} is damaged: label 100 of image 0" in refusal("cifar100", data_dir=tmp_path)
    cut(tmp_path / "test.bin", 3073)
    assert "its 3,073 bytes are 1.00 records of 3,074" in refusal("cifar100", data_dir=tmp_path)


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


# svhn


def write_svhn(folder, **changed):
    """SVHN's two files, with the test file's entries changed; gives what is in them."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(3)
    arrays = {}
    for name, count in (("train", 12), ("test", 10)):
        pixels = generator.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        digits = np.arange(count) % 10
        content = {"X": pixels.transpose(2, 3, 1, 0), "y": np.where(digits, digits, 10).astype(np.uint8)[:, None]}
        content = {
            key: value for key, value in {**content, **(changed if name == "test" else {})}.items() if len(value)
        }
        savemat(folder / f"{name}_32x32.mat", content, do_compression=True)
        arrays[name] = pixels, digits
    return arrays


@pytest.mark.parametrize("folder", ["", "svhn", "SVHN"])
def test_svhn_is_read_and_its_label_10_is_the_digit_0(tmp_path, folder):
    arrays = write_svhn(tmp_path / folder)
    found = read_set("svhn", data_dir=tmp_path)
    assert found.classes == 10 and 0 in found.train.labels
    assert found.train.images.is_contiguous()
    assert same(found.train, *arrays["train"]) and same(found.test, *arrays["test"])


DAMAGED_SVHN = {
    "no images": ({"X": []}, "is no file of SVHN (KeyError: 'X')"),
    "floats": ({"X": np.zeros((32, 32, 3, 10))}, "its X holds torch.float64 of 32x32x3x10"),
    "images first": ({"X": np.zeros((10, 32, 32, 3), np.uint8)}, "its X holds torch.uint8 of 10x32x32x3"),
    "one image": ({"X": np.zeros((32, 32, 3), np.uint8)}, "is damaged: 10 labels for 1 images"),
    "words": ({"y": np.array(["one"])}, "is no file of SVHN (TypeError"),
    "label 11": ({"y": np.full((10, 1), 11, np.uint8)}, "is damaged: label 11 of image 0 is none of 0 to 9"),
    "fewer labels": ({"y": np.ones((9, 1), np.uint8)}, "is damaged: 9 labels for 10 images"),
}


@pytest.mark.parametrize("case", DAMAGED_SVHN)
def test_damaged_files_of_svhn_are_named(tmp_path, case):
    changed, part = DAMAGED_SVHN[case]
    write_svhn(tmp_path, **changed)
    message = refusal("svhn", data_dir=tmp_path)
    assert message.startswith(f"{tmp_path / 'test_32x32.mat'} is ") and message.endswith("download it again")
    assert part in message


@pytest.mark.parametrize("content", [b"", b"<html>" * 99, None])
def test_a_file_of_svhn_that_is_no_mat_file_is_named(tmp_path, content):
    write_svhn(tmp_path)
    file = tmp_path / "train_32x32.mat"
    file.write_bytes(file.read_bytes()[:-500] if content is None else content)
    assert f"{file} is no file of SVHN (" in refusal("svhn", data_dir=tmp_path)
