"""[tool.evenkeel] says which findings are wanted, or in one line what is wrong with it."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.errors import EvenkeelError
from evenkeel.linting.settings import Settings, chosen, read_settings, require_codes

KNOWN = ("EK101", "EK102", "EK201", "EK202", "EK301", "EK401")
GUIDELINES = ("li2018", "chen2019", "kim2023")
FULL = """
[tool.other]
select = 3

[tool.evenkeel]
guideline = "kim2023"
select = ["EK2", "EK401"]
ignore = ["EK202"]

[tool.evenkeel.per-path-ignores]
"head.*" = ["EK1", "EK4"]
"""


def read(folder, text=None):
    if text is not None:
        (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return read_settings(folder, known=KNOWN, guidelines=GUIDELINES)


def refusal(folder, text):
    with pytest.raises(EvenkeelError) as caught:
        read(folder, text)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(str(folder / "pyproject.toml"))
    return message


def test_every_key_is_read(tmp_path):
    expected = Settings("kim2023", ("EK2", "EK401"), ("EK202",), {"head.*": ("EK1", "EK4")})
    assert read(tmp_path, FULL) == expected


def test_the_nearest_file_counts_from_any_folder_below(tmp_path, monkeypatch):
    (tmp_path / "pack" / "deep").mkdir(parents=True)
    above = read(tmp_path, FULL)
    assert read(tmp_path / "pack" / "deep") == above != Settings()
    (tmp_path / "pack" / "pyproject.toml").write_text("[project]")
    assert read(tmp_path / "pack" / "deep") == Settings()
    monkeypatch.chdir(tmp_path)
    assert read_settings(type(tmp_path)(), known=KNOWN, guidelines=GUIDELINES) == above, "a relative folder"


@pytest.mark.parametrize("text", ["", "[project]", "[tool.other]", "tool = 3", "[tool.evenkeel]"])
def test_without_a_section_the_defaults_hold(tmp_path, text):
    assert read(tmp_path, text) == Settings() == Settings(None, (), (), {})


def test_without_a_file_the_defaults_hold(tmp_path, monkeypatch):
    monkeypatch.setattr("evenkeel.linting.settings.Path.is_file", lambda path: False)
    assert read(tmp_path) == Settings()


@pytest.mark.parametrize(
    ("section", "parts"),
    [
        ('gideline = "li2018"', ["tool.evenkeel has no key 'gideline'", "did you mean guideline?"]),
        ("zzz = 1", ["no key 'zzz'", "the keys are guideline, select, ignore, per-path-ignores"]),
        ("per_path_ignores = {}", ["no key 'per_path_ignores'", "did you mean per-path-ignores?"]),
        ("guideline = 3", ["tool.evenkeel.guideline is a number, not a string", "li2018, chen2019, kim2023"]),
        ('guideline = "kim2024"', ["tool.evenkeel.guideline: there is no guideline 'kim2024'", "did you mean kim2023"]),
        ('guideline = "x"', ["no guideline 'x': li2018, chen2019, kim2023"]),
        ('select = "EK2"', ["tool.evenkeel.select is a string: write a list of strings"]),
        ("select = true", ["tool.evenkeel.select is a boolean"]),
        ("ignore = {}", ["tool.evenkeel.ignore is a table"]),
        ("ignore = ['EK2', 301]", ["tool.evenkeel.ignore holds a number"]),
        ("ignore = [['EK2']]", ["tool.evenkeel.ignore holds a list"]),
        ("ignore = 2020-01-01", ["tool.evenkeel.ignore is a date or a time"]),
        ("select = ['EK210']", ["tool.evenkeel.select: no code begins with 'EK210'", "did you mean EK", "EK201"]),
        ("select = ['ALL']", ["no code begins with 'ALL'", "the codes are EK101, EK102, EK201"]),
        ("select = ['']", ["no code begins with ''"]),
        ("per-path-ignores = ['EK2']", ["tool.evenkeel.per-path-ignores is a list, not a table"]),
        ("per-path-ignores = { 'a.*' = 'EK2' }", ['tool.evenkeel.per-path-ignores."a.*" is a string']),
        ("per-path-ignores = { 'a.*' = ['EK9'] }", ["per-path-ignores.\"a.*\": no code begins with 'EK9'"]),
    ],
)
def test_what_is_wrong_is_told_in_one_line_with_file_and_key(tmp_path, section, parts):
    message = refusal(tmp_path, f"[tool.evenkeel]\n{section}")
    assert [part for part in parts if part not in message] == []


def test_a_section_that_is_no_table_is_told(tmp_path):
    assert "tool.evenkeel is a list, not a table: write [tool.evenkeel]" in refusal(tmp_path, "tool.evenkeel = []")


def test_a_file_that_is_no_toml_is_told(tmp_path):
    assert "cannot be read: TOMLDecodeError" in refusal(tmp_path, "[tool.evenkeel\n\nselect = [")
    (tmp_path / "pyproject.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(EvenkeelError, match="cannot be read: UnicodeDecodeError"):
        read(tmp_path)


def test_a_file_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    def refuse(path, **options):
        raise PermissionError(f"no right to read {path.name}")

    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr("evenkeel.linting.settings.Path.read_text", refuse)
    with pytest.raises(EvenkeelError, match="cannot be read: PermissionError: no right to read"):
        read(tmp_path)


def test_text_beyond_ascii_is_read_whatever_the_locale(tmp_path):
    settings = read(tmp_path, "[tool.evenkeel.per-path-ignores]\n'schicht_ä.*' = ['EK1']  # größer")
    assert settings.per_path_ignores == {"schicht_ä.*": ("EK1",)}


@pytest.mark.skipif(sys.version_info >= (3, 11), reason="tomllib is there from Python 3.11 on")
def test_before_tomllib_there_is_tomli():
    import tomli

    assert tomli.loads("a = 1") == {"a": 1}


def test_codes_of_an_option_are_required_in_the_same_words():
    assert require_codes(" EK2 ,EK301".split(","), KNOWN, place="--select") == ("EK2", "EK301")
    with pytest.raises(EvenkeelError, match=r"^--select: no code begins with 'EK9': the codes are EK101, .*EK401$"):
        require_codes(["EK2", "EK9"], KNOWN, place="--select")


def test_nothing_said_chooses_everything():
    assert all(chosen(code, "layer1.0.drop", Settings()) for code in KNOWN)


@pytest.mark.parametrize(
    ("select", "ignore", "wanted"),
    [
        (("EK2",), (), "EK201 EK202"),
        (("EK201", "EK3"), (), "EK201 EK301"),
        ((), ("EK2", "EK1"), "EK301 EK401"),
        (("EK2",), ("EK2",), ""),
        (("EK2",), ("EK201",), "EK202"),
        (("EK201",), ("EK2",), "EK201"),
        (("EK",), ("EK2", "EK301"), "EK101 EK102 EK401"),
        (("EK", "EK201"), ("EK2",), "EK101 EK102 EK201 EK301 EK401"),
        ((), ("EK",), ""),
    ],
)
def test_the_longer_beginning_counts_and_ignoring_among_equals(select, ignore, wanted):
    assert [code for code in KNOWN if chosen(code, "drop", Settings(None, select, ignore))] == wanted.split()


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("head.*", "head.drop", True),
        ("head.*", "head", False),
        ("*.drop", "layer1.0.drop", True),
        ("layer[12].*", "layer2.0.drop", True),
        ("layer[12].*", "layer3.0.drop", False),
        ("Head.*", "head.drop", False),
        ("*", "", True),
        ("relu#2", "relu#2", True),
    ],
)
def test_a_pattern_ignores_codes_at_the_paths_that_it_matches(pattern, path, matches):
    settings = Settings(None, ("EK201",), (), {"nothing": ("EK",), pattern: ("EK2",)})
    assert chosen("EK201", path, settings) is not matches
    assert chosen("EK201", path, Settings(per_path_ignores={pattern: ("EK3",)}))


beginnings = st.lists(
    st.sampled_from(KNOWN).flatmap(lambda code: st.integers(1, 5).map(lambda n: code[:n])), max_size=4
)


@given(beginnings, beginnings, st.sampled_from(KNOWN))
def test_choosing_equals_the_slow_and_obvious_way(select, ignore, code):
    verdict = not select
    for length in range(1, 6):  # what is said later, and so more closely, counts
        verdict = (verdict or code[:length] in select) and code[:length] not in ignore
    assert chosen(code, "drop", Settings(None, tuple(select), tuple(ignore))) is verdict


def test_a_byte_order_mark_is_passed_over(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[tool.evenkeel]\nselect = ["EK2"]\n', encoding="utf-8-sig")
    assert read_settings(tmp_path, known=["EK201"], guidelines=["li2018"]).select == ("EK2",)
