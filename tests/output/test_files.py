"""whole: a file appears whole, or the folder is as before."""

import pytest

from evenkeel.errors import EvenkeelError
from evenkeel.output.files import atomic_write, require_folder


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
