"""Image sets are downloaded from a server on this machine: whole files with the right checksums, or none at all."""

import gzip
import hashlib
import http.server
import pickle
import socket
import sys
import tarfile
import threading
from functools import partial

import numpy as np
import pytest
from test_readers import IMAGES, LABELS, idx, same, write_cifar, write_cifar100, write_mnist, write_svhn

from evenkeel.errors import EvenkeelError
from evenkeel.io import downloads
from evenkeel.io.downloads import SETS, SOURCES, Publication, cache_folder
from evenkeel.io.readers import read_set


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files, remembers which, and breaks off in the middle of those that are to break."""

    asked: list[str]
    breaking: set[str]

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        self.asked.append(name)
        if name not in self.breaking:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        self.wfile.write(b"x" * 1000)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """Nothing but the test's own files and servers."""
    monkeypatch.delenv("EVENKEEL_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of tmp_path/public, which all sets are downloaded from."""
    handler = type("Served", (Handler,), {"asked": [], "breaking": set()})
    public = tmp_path / "public"
    public.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=public)) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        publish = partial(published, monkeypatch, f"http://127.0.0.1:{running.server_port}/")
        try:
            yield handler, publish
        finally:
            running.shutdown()
            thread.join()


def published(monkeypatch, url, name, *files):
    """Point a set's source at these files of a server."""
    checksums = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in files}
    monkeypatch.setitem(SOURCES, name, Publication(url, checksums))


def packed(archive, *folders):
    with tarfile.open(archive, "w:gz") as file:
        for folder in folders:
            file.add(folder, folder.name)
    return archive


def refusal(*args, **kwargs):
    with pytest.raises(EvenkeelError) as caught:
        read_set(*args, download=True, **kwargs)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file()) if folder.exists() else []


def test_every_set_of_files_has_a_source_and_nothing_else_has():
    assert ("digits", *SOURCES) == SETS
    for source in SOURCES.values():
        assert source.url.startswith("http") and source.url.endswith("/")
        assert all(len(bytes.fromhex(checksum)) == 16 for checksum in source.files.values())


@pytest.mark.slow
def test_checksums_are_those_that_torchvision_knows():
    from torchvision.datasets import CIFAR10, CIFAR100, MNIST, SVHN, FashionMNIST

    for name, theirs in (("mnist", MNIST), ("fashion-mnist", FashionMNIST)):
        assert SOURCES[name] == Publication(theirs.mirrors[0], dict(theirs.resources))
    for name, theirs in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        assert SOURCES[name].files == {theirs.filename: theirs.tgz_md5}
        assert theirs.url == f"{SOURCES[name].url}{theirs.filename}"
    splits = (SVHN.split_list["train"], SVHN.split_list["test"])
    assert SOURCES["svhn"].files == {file: checksum for _, file, checksum in splits}
    assert [url for url, _, _ in splits] == [f"{SOURCES['svhn'].url}{file}" for file in SOURCES["svhn"].files]


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("where", ["folder", "environment", "cache"])
def test_a_download_goes_where_the_set_is_then_found_without(tmp_path, server, monkeypatch, name, where):
    handler, publish = server
    arrays = write_mnist(tmp_path / "public", packed=True)
    publish(name, *sorted((tmp_path / "public").iterdir()))
    data_dir = tmp_path / "new" / "data" if where == "folder" else None
    if where == "environment":
        monkeypatch.setenv("EVENKEEL_DATA", str(tmp_path / "data"))
    found = read_set(name, data_dir=data_dir, download=True)
    assert same(found.train, *arrays["train"]) and same(found.test, *arrays["t10k"])
    assert len(handler.asked) == 4
    home = {"folder": tmp_path / "new" / "data", "environment": tmp_path / "data", "cache": cache_folder()}[where]
    assert files_in(home) == files_in(home / name) == files_in(tmp_path / "public")
    for download in (False, True):
        assert same(read_set(name, data_dir=data_dir, download=download).train, *arrays["train"])
    assert len(handler.asked) == 4


def test_archives_are_unpacked_and_removed(tmp_path, server):
    handler, publish = server
    parts = write_cifar(tmp_path / "cifar-10-batches-py", pickled)
    (tmp_path / "cifar-10-batches-py" / "batches.meta").write_bytes(b"names")
    (tmp_path / "cifar-10-batches-py" / "deep").mkdir()
    (tmp_path / "cifar-10-batches-py" / "deep" / "file").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    archive = tmp_path / "public" / "cifar-10-python.tar.gz"
    publish("cifar10", packed(archive, tmp_path / "cifar-10-batches-py", tmp_path / "elsewhere"))
    found = read_set("cifar10", download=True)
    assert same(found.test, parts[0][5], parts[1][5])
    assert handler.asked == [archive.name]
    assert [path.name for path in cache_folder().iterdir()] == ["cifar-10-batches-py"]
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    assert files_in(cache_folder()) == ["batches.meta", *names]

    arrays = write_cifar100(tmp_path / "cifar-100-python", python=True)
    publish("cifar100", packed(tmp_path / "public" / "cifar-100-python.tar.gz", tmp_path / "cifar-100-python"))
    assert same(read_set("cifar100", download=True).train, *arrays["train"])


def pickled(pixels, labels):
    return pickle.dumps({"data": pixels, "labels": labels.tolist()}, 2)


def test_svhn_is_downloaded(tmp_path, server):
    arrays = write_svhn(tmp_path / "public")
    server[1]("svhn", *sorted((tmp_path / "public").iterdir()))
    assert same(read_set("svhn", data_dir=tmp_path / "data", download=True).test, *arrays["test"])


def test_only_what_is_missing_is_downloaded(tmp_path, server):
    handler, publish = server
    write_mnist(tmp_path / "public", packed=True)
    publish("mnist", *sorted((tmp_path / "public").iterdir()))
    write_mnist(tmp_path / "data" / "mnist", packed=True)
    kept = tmp_path / "data" / "mnist" / f"{IMAGES}.gz"
    kept.write_bytes(gzip.compress(idx(np.full((12, 28, 28), 7, np.uint8))))
    (tmp_path / "data" / "mnist" / f"{LABELS}.gz").unlink()
    assert (read_set("mnist", data_dir=tmp_path / "data", download=True).train.images == 7).all()
    assert handler.asked == [f"{LABELS}.gz"]

    publish("cifar100", packed(tmp_path / "public" / "set.tar.gz", tmp_path / "data"))  # not asked for: all are there
    write_cifar100(tmp_path / "data", python=False)
    assert len(read_set("cifar100", data_dir=tmp_path / "data", download=True).train.labels) == 6
    assert handler.asked == [f"{LABELS}.gz"]


def test_half_of_one_layout_is_left_alone_and_the_other_downloaded(tmp_path, server):
    _, publish = server
    arrays = write_cifar100(tmp_path / "cifar-100-python", python=True, counts=(5, 3))
    publish("cifar100", packed(tmp_path / "public" / "cifar-100-python.tar.gz", tmp_path / "cifar-100-python"))
    home = tmp_path / "data"
    write_cifar100(home / "cifar-100-binary", python=False)
    (home / "cifar-100-binary" / "test.bin").unlink()
    write_cifar100(home / "cifar-100-python", python=True, counts=(9, 3))
    (home / "cifar-100-python" / "test").unlink()
    found = read_set("cifar100", data_dir=home, download=True)
    assert same(found.test, *arrays["test"])
    assert len(found.train.labels) == 9  # what was there was not touched
    assert files_in(home) == ["test", "train", "train.bin"]


@pytest.mark.parametrize("archive", [False, True])
def test_a_file_with_another_checksum_is_not_kept(tmp_path, server, archive):
    _, publish = server
    home = tmp_path / "data"
    if archive:
        name, folder, file = "cifar100", home, tmp_path / "public" / "cifar-100-python.tar.gz"
        write_cifar100(tmp_path / "cifar-100-python", python=True)
        publish(name, packed(file, tmp_path / "cifar-100-python"))
    else:
        name, folder, file = "svhn", home / "svhn", tmp_path / "public" / "train_32x32.mat"
        write_svhn(tmp_path / "public")
        publish(name, file)
    file.write_bytes(b"something else")
    message = refusal(name, data_dir=home)
    assert message.startswith(f"{name}: {file.name} could not be downloaded from {SOURCES[name].url}{file.name} (")
    assert "does not match the known hash" in message and SOURCES[name].files[file.name] in message
    assert message.endswith(f": try again, or put it into {folder} by hand")
    assert files_in(home) == []


def test_a_download_that_breaks_off_leaves_what_was_whole(tmp_path, server):
    handler, publish = server
    arrays = write_mnist(tmp_path / "public", packed=True)
    files = sorted((tmp_path / "public").iterdir())
    publish("mnist", *files)
    handler.breaking.add(files[2].name)
    message = refusal("mnist", data_dir=tmp_path / "data")
    assert f"mnist: {files[2].name} could not be downloaded from http://127.0.0.1" in message
    assert files_in(tmp_path / "data") == [files[0].name, files[1].name]
    handler.breaking.clear()
    handler.asked.clear()
    assert same(read_set("mnist", data_dir=tmp_path / "data", download=True).train, *arrays["train"])
    assert handler.asked == [files[2].name, files[3].name]


def test_an_archive_put_there_by_hand_is_taken(tmp_path, server):
    handler, publish = server
    arrays = write_cifar100(tmp_path / "cifar-100-python", python=True)
    publish("cifar100", packed(tmp_path / "public" / "cifar-100-python.tar.gz", tmp_path / "cifar-100-python"))
    home = tmp_path / "data"
    home.mkdir()
    (tmp_path / "public" / "cifar-100-python.tar.gz").rename(home / "cifar-100-python.tar.gz")
    assert same(read_set("cifar100", data_dir=home, download=True).train, *arrays["train"])
    assert handler.asked == []


def test_an_archive_that_cannot_be_unpacked_is_named(tmp_path, server):
    _, publish = server
    archive = tmp_path / "public" / "cifar-100-python.tar.gz"
    archive.write_bytes(b"no archive")
    publish("cifar100", archive)
    home = tmp_path / "data"
    message = refusal("cifar100", data_dir=home)
    assert f"{home / archive.name} cannot be unpacked into {home / 'cifar-100-python'} (ReadError" in message


def test_a_file_that_the_server_lacks_and_a_server_that_is_away_are_told(tmp_path, server, monkeypatch):
    _, publish = server
    file = tmp_path / "public" / "train_32x32.mat"
    file.touch()
    publish("svhn", file)
    file.unlink()
    assert "(HTTPError: 404 " in refusal("svhn", data_dir=tmp_path / "data")
    with socket.socket() as taken:  # bound, and listening to no one
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        monkeypatch.setitem(SOURCES, "svhn", Publication(url, {"train_32x32.mat": "0" * 32}))
        message = refusal("svhn", data_dir=tmp_path / "data")
    assert f"svhn: train_32x32.mat could not be downloaded from {url}train_32x32.mat (ConnectionError" in message
    assert message.endswith(f"or put it into {tmp_path / 'data' / 'svhn'} by hand")
    assert files_in(tmp_path / "data") == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path, server):
    write_svhn(tmp_path / "public")
    server[1]("svhn", *sorted((tmp_path / "public").iterdir()))
    (tmp_path / "data").touch()
    assert f"put it into {tmp_path / 'data' / 'svhn'} by hand" in refusal("svhn", data_dir=tmp_path / "data")


@pytest.mark.parametrize("named", [False, True])
def test_without_pooch_a_download_is_refused_and_reading_goes_on(tmp_path, monkeypatch, named):
    monkeypatch.setitem(sys.modules, "pooch", None)
    data_dir = tmp_path if named else None
    assert refusal("mnist", data_dir=data_dir) == 'mnist is downloaded by pooch: pip install "evenkeel[papers]"'
    assert cache_folder() is None
    with pytest.raises(EvenkeelError, match="mnist is read from the files train-images"):
        read_set("mnist")
    write_mnist(tmp_path)
    assert len(read_set("mnist", data_dir=tmp_path, download=True).train.labels) == 12


def test_a_download_shows_how_far_it_is_and_takes_that_off_when_it_fails(tmp_path, server, monkeypatch):
    handler, publish = server
    shown = []

    class Watched(downloads.Bar):
        def __init__(self, items, description, *, total=None):
            shown.append((description, total))
            super().__init__(items, description, total=total)

        def close(self):
            super().close()
            shown.append("closed")

    monkeypatch.setattr(downloads, "Bar", Watched)
    files = [tmp_path / "public" / f"{name}_32x32.mat" for name in ("train", "test")]
    for size, file in enumerate(files, 2):
        file.write_bytes(bytes((size << 20) - 1))
    publish("svhn", *files)
    handler.breaking.add(files[1].name)
    refusal("svhn")
    assert shown == [("train_32x32.mat, MiB", 2), "closed", ("test_32x32.mat, MiB", 1), "closed"]
