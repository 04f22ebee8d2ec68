"""whole: a file appears whole, or the folder is as before."""

import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from evenkeel.errors import EvenkeelError
from evenkeel.output.files import atomic_write, is_same_file, require_folder


def test_an_error_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_places_where_no_file_can_be_made_are_refused(tmp_path):
    with pytest.raises(EvenkeelError, match="there is no folder"):
        require_folder(tmp_path / "gone" / "a.txt")
    with pytest.raises(EvenkeelError, match="is a folder"):
        require_folder(tmp_path)


def written(path, text="new"):
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def test_a_symlink_is_followed_and_stays_one(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "a.txt", tmp_path / "link"
    link.symlink_to(target)
    for text in ("made", "replaced"):  # first the link leads to nothing
        written(link, text)
        assert link.is_symlink() and target.read_text() == text
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["a.txt"] and is_same_file(link, target)


def test_symlinks_that_lead_nowhere_are_refused(tmp_path):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "gone").symlink_to(tmp_path / "no" / "a.txt")
    with pytest.raises(EvenkeelError, match="leads back to itself"):
        written(tmp_path / "circle")
    with pytest.raises(EvenkeelError, match=r"there is no folder .*no"):
        written(tmp_path / "gone")
    assert (tmp_path / "circle").is_symlink() and (tmp_path / "gone").is_symlink()


def test_a_device_is_written_into_and_not_replaced(tmp_path):
    before = os.stat("/dev/null")
    written(Path("/dev/null"))
    written_by_link = tmp_path / "null"
    written_by_link.symlink_to("/dev/null")
    written(written_by_link)
    after = os.stat("/dev/null")
    assert stat.S_ISCHR(after.st_mode) and (after.st_ino, after.st_rdev) == (before.st_ino, before.st_rdev)
    assert written_by_link.is_symlink() and not [name for name in os.listdir("/dev") if "tmp" in name]


def test_a_pipe_is_written_into(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    while not read:
        try:
            written(pipe, "through the pipe")
            reader.join()
        except EvenkeelError:  # the reader has not opened it yet
            continue
    assert read == ["through the pipe"] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_pipe_that_nobody_reads_is_an_error_and_stays(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(EvenkeelError, match="nobody reads this pipe: start its reader first; nothing was written"):
        written(tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_socket_is_refused_before_work_begins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets must be short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
        with pytest.raises(EvenkeelError, match="socket is a socket, which is not written to"):
            require_folder(Path("socket"))
        with pytest.raises(EvenkeelError, match="is a socket"):
            written(Path("socket"))
    assert stat.S_ISSOCK(os.stat("socket").st_mode)


@pytest.mark.slow
def test_standard_output_by_name_goes_on_where_it_is(tmp_path):
    code = (
        "from pathlib import Path\nfrom evenkeel.output.files import atomic_write\nprint('one')\n"
        "with atomic_write(Path('/dev/stdout')) as t: t.write_text('two\\n')\nprint('three')"
    )
    with (tmp_path / "out.txt").open("w") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert (tmp_path / "out.txt").read_text() == "one\ntwo\nthree\n"
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert piped.stdout == "one\ntwo\nthree\n"


def test_an_error_while_writing_into_a_pipe_leaves_nothing(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "pipe") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert not temporary.exists() and not temporary.parent.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
