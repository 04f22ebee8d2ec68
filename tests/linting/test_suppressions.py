"""`# evenkeel: ignore` silences the call that it stands by, and nothing else."""

import linecache
import sys
import textwrap
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.linting.suppressions import is_ignored


@pytest.fixture
def ignored(tmp_path):
    """Which lines of a source a code is ignored at."""
    file = tmp_path / "net.py"

    def lines(source, code="EK201"):
        file.write_text(textwrap.dedent(source), encoding="utf-8")
        return [n for n in range(-1, source.count("\n") + 4) if is_ignored(code, str(file), n)]

    return lines


@pytest.mark.parametrize(
    ("comment", "codes"),
    [
        ("# evenkeel: ignore", "EK201 EK202 EK401"),
        ("#evenkeel:ignore", "EK201 EK202 EK401"),
        ("#  Evenkeel  :  ignore", "EK201 EK202 EK401"),
        ("# EVENKEEL: ignore, since li2018 [3] is wrong here", "EK201 EK202 EK401"),
        ("# evenkeel: ignore[EK201]", "EK201"),
        ("# evenkeel: ignore[EK201]: Monte Carlo dropout", "EK201"),
        ("# evenkeel: ignore [ EK201 , EK4 ] on purpose", "EK201 EK401"),
        ("# evenkeel: ignore[EK201 EK4]", "EK201 EK401"),
        ("# evenkeel: ignore[EK2]", "EK201 EK202"),
        ("# type: ignore  # noqa: E501  # evenkeel: ignore[EK2]", "EK201 EK202"),
        ("# evenkeel: ignore[EK202] # evenkeel: ignore[EK4]", "EK202 EK401"),
        ("# evenkeel: ignore[]", ""),
        ("# evenkeel: ignore[EK201", ""),
        ("# evenkeel: ignore[K201]", ""),
        ("# evenkeel: ignored", ""),
        ("# evenkeel: ignore-file", ""),
        ("# evenkeel ignore", ""),
        ("# see evenkeel: ignore", ""),
        ("# xevenkeel: ignore", ""),
        ("# type: ignore", ""),
    ],
)
def test_a_comment_silences_the_codes_that_it_names(ignored, comment, codes):
    source = f"x = drop(x)  {comment}\ny = drop(y)\n"
    assert [code for code in ("EK201", "EK202", "EK401") if ignored(source, code) == [1]] == codes.split()
    assert all(ignored(source, code) in ([], [1]) for code in ("EK201", "EK202", "EK401"))


@pytest.mark.parametrize(
    "source",
    [
        'x = drop("# evenkeel: ignore")\n',
        "x = '''\n# evenkeel: ignore\n'''\n",
        'x = f"{drop(x)} # evenkeel: ignore"\n',
        "evenkeel = ignore\n",
        "",
        "\n\n",
    ],
)
def test_what_is_no_comment_silences_nothing(ignored, source):
    assert ignored(source) == []


def test_the_words_in_a_string_do_not_hide_a_comment_behind_it(ignored):
    assert ignored('x = drop("#")  # evenkeel: ignore\n') == [1]


@pytest.mark.parametrize("at", range(1, 6))
def test_a_comment_on_any_line_of_the_call_counts(ignored, at):
    lines = ["x = self.drop(", "    self.norm(", "        x,", "    ),", ")", "y = drop(x)"]
    lines[at - 1] += "  # evenkeel: ignore"
    expected = {at, 1, 2} if 2 <= at <= 4 else {at, 1}
    assert ignored("\n".join(lines)) == sorted(expected)


def test_of_the_calls_that_start_on_a_line_the_innermost_counts(ignored):
    source = """\
    x = cat([drop(x),
             x], 1)  # evenkeel: ignore
    """
    assert ignored(source) == [2]


def test_a_statement_that_is_no_call_has_its_line_alone(ignored):
    source = """\
    y = (x +
         x)  # evenkeel: ignore
    """
    assert ignored(source) == [2]


def test_the_calls_of_a_chain_are_told_apart(ignored):
    source = """\
    x = (
        self.drop(x)
        .relu()
        .view(
            1,  # evenkeel: ignore
        )
    )
    """
    assert ignored(source) == [4, 5]


def test_the_line_that_python_reports_of_a_call_is_where_the_comment_is_looked_for(tmp_path):
    """Of calls over several lines, and of every call in a chain of methods, whatever the version of Python."""
    source = """\
class Tensor:
    places = []
    def __call__(self, *args):
        self.places.append(sys._getframe(1).f_lineno)
        return self
    method = other = __call__
x = Tensor()
(
    x(
        1,
        x,
    )  # evenkeel: ignore[EK1]
    .method(
        2,  # evenkeel: ignore[EK2]
    )
    .other(
        3,
    )  # evenkeel: ignore[EK3]
)
"""
    file = tmp_path / "net.py"
    file.write_text(source)
    names = {"sys": sys}
    exec(compile(source, file, "exec"), names)
    calls = zip(("EK1", "EK2", "EK3"), names["Tensor"].places, strict=True)
    assert [(code, line) for code, line in calls if not is_ignored(code, str(file), line)] == []


@pytest.mark.parametrize(
    "rest",
    [
        "x = (\n",
        "'''\n",
        "  y = 1\n x = 2\n",
        "x = 'abc\n",
        "%matplotlib inline\n",
        "!ls ?\n",
        "x = 1 $ 2\n",
        "x = 0777\n",
        "\0\n",
        "x = (]\n",
        "{" * 500 + "\n",
    ],
)
def test_a_file_that_is_no_python_is_read_line_by_line(ignored, rest):
    line = "x = drop(x)  # evenkeel: ignore\n"
    assert ignored(line + rest) == [1]
    assert ignored(rest + line)[-1:] in ([rest.count("\n") + 1], []), "behind what is broken the words may be text"


@pytest.mark.filterwarnings("error")
def test_a_file_that_python_warns_of_is_read_in_silence(ignored):
    assert ignored("x = drop(  # evenkeel: ignore\n  '\\d' is '\\d')\n") == [1]


pieces = st.lists(st.sampled_from([*"x=()[]{}'\"#\\\n\t :,.f1@\0ä", "# evenkeel: ignore", "\n  drop("]), max_size=40)


@given(pieces.map("".join))
def test_no_text_raises(text):
    name = "<any text>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    try:
        for line in range(text.count("\n") + 2):
            is_ignored("EK201", name, line)
    finally:
        del linecache.cache[name]


@pytest.mark.parametrize(
    ("file", "line"), [(None, 1), ("net.py", None), (None, None), ("<string>", 1), ("absent.py", 1)]
)
def test_without_a_source_nothing_is_ignored(tmp_path, monkeypatch, file, line):
    monkeypatch.chdir(tmp_path)
    assert is_ignored("EK201", file, line) is False


def test_a_folder_and_a_file_of_bytes_are_no_source(tmp_path):
    assert is_ignored("EK201", str(tmp_path), 1) is False
    (tmp_path / "net.so").write_bytes(bytes(range(256)) + b"# evenkeel: ignore")
    assert is_ignored("EK201", str(tmp_path / "net.so"), 1) is False


def test_a_change_of_the_file_is_noticed(ignored):
    assert ignored("x = drop(x)\n") == []
    assert ignored("x = drop(x)  # evenkeel: ignore\n") == [1]
    assert ignored("\nx = drop(x)  # evenkeel: ignore[EK2]\n") == [2]


def test_a_source_that_only_linecache_knows_counts(monkeypatch):
    source = "def f(x):\n    return x.exp()  # evenkeel: ignore\n"
    monkeypatch.setitem(linecache.cache, "<cell 1>", (len(source), None, source.splitlines(True), "<cell 1>"))
    assert is_ignored("EK201", "<cell 1>", 2) and not is_ignored("EK201", "<cell 1>", 1)


def test_line_ends_of_windows_and_names_beyond_ascii_do_no_harm(tmp_path):
    file = tmp_path / "größe.py"
    file.write_bytes("x = drop(\r\n  'ä' '\u2028',\r\n)  # evenkeel: ignore, größer\r\ny = 1\r\n".encode())
    assert [is_ignored("EK201", str(file), line) for line in (1, 2, 3, 4)] == [True, False, True, False]


def test_reading_leaves_tracebacks_as_they_were(tmp_path):
    file = tmp_path / "net.py"
    file.write_text("def f():\n    raise ValueError  # evenkeel: ignore\n")
    names = {}
    exec(compile(file.read_text(), str(file), "exec"), names)
    assert is_ignored("EK201", str(file), 2)
    with pytest.raises(ValueError) as caught:
        names["f"]()
    assert traceback.extract_tb(caught.value.__traceback__)[-1].line == "raise ValueError  # evenkeel: ignore"
