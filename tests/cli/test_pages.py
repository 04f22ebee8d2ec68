"""--html of shift, lint and repair, and `evenkeel compare`."""

import html
import itertools
import json
import re
import shlex
import sys

import pytest
import torch
from html_pages import Reader

from evenkeel import cli

NET = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    body = nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.BatchNorm1d(16), nn.ReLU()
    return nn.Sequential(*body, nn.Linear(16, 10))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pagenets", raising=False)
    (tmp_path / "pagenets.py").write_text(NET)
    namespace = {}
    exec(NET, namespace)
    model = namespace["net"]()
    for _ in range(30):
        model(torch.randn(64, 1, 8, 8))
    torch.save(model.state_dict(), tmp_path / "net.pt")
    return tmp_path


def run(capsys, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evenkeel", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    out, err = capsys.readouterr()
    return stop.value.code or 0, out, err


TARGET = ("pagenets:net", "--input", "1x8x8", "--weights", "net.pt")


def page(folder, name="page.html"):
    return Reader((folder / name).read_text(encoding="utf-8")).text


def commands_in(text):
    """The commands in a page or in what was printed."""
    found = re.findall(r"<code>(evenkeel [^<]*)</code>", text) or re.findall(r"^ {4}(evenkeel .*)$", text, re.MULTILINE)
    return [shlex.split(html.unescape(command))[1:] for command in found]


def test_shift_writes_a_page_with_commands_that_can_be_run_as_they_are(folder, capsys):
    code, out, err = run(capsys, "shift", *TARGET, "--html", "page.html", "--json")
    assert (code, err) == (0, "") and json.loads(out)["rows"]
    assert "1 of 1 norms is off" in page(folder) and "net.pt" in page(folder)
    measured, repaired, found = commands_in((folder / "page.html").read_text(encoding="utf-8"))
    assert measured[measured.index("--data") + 1] == "NAME" and "in place of NAME" in page(folder)
    assert run(capsys, *repaired)[::2] == (0, "") and (folder / "net-repaired.pt").exists()
    assert run(capsys, *found)[::2] == (1, "")
    (checked,) = commands_in((folder / "repair.html").read_text(encoding="utf-8"))
    assert run(capsys, *checked)[::2] == (0, "") and "net-repaired.pt" in checked


def test_the_terminal_offers_the_same_with_the_shape_that_data_have(folder, capsys, monkeypatch):
    given = ("--weights", "net.pt", "--data", "digits", "--max-batches", "2", "--device", "cpu")
    code, out, _ = run(capsys, "shift", "pagenets:net", *given)
    repaired, found = commands_in(out)
    assert code == 0 and "SHAPE" not in out and "--html" not in found
    asked = ["--guideline", "li2018", "--weights", "net.pt", "--device", "cpu"]
    assert found == ["lint", "pagenets:net", "--input", "1x8x8", *asked]
    assert run(capsys, *found)[0] == 1
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    explained, fixed, shifted = commands_in(run(capsys, *found)[1])
    assert fixed == ["fix", "pagenets:net", "--guideline", "li2018", "--input", "1x8x8", "--diff", *asked[2:]]
    assert run(capsys, *explained)[0] == 0 and run(capsys, *fixed)[0] == 1 and run(capsys, *shifted)[0] == 0
    assert {"--max-batches", "--device", "--data"} <= set(repaired)
    code, out, _ = run(capsys, *repaired, "--other-data")
    (checked,) = commands_in(out)
    assert code == 0 and run(capsys, *checked)[0] == 0 and "model.load_state_dict(torch.load(" in out
    assert commands_in(run(capsys, "shift", "pagenets:net", "--weights", "net-repaired.pt", *given[2:])[1]) == []


def test_without_a_trained_checkpoint_there_is_nothing_to_repair(folder, capsys):
    out = run(capsys, "shift", "pagenets:net", "--data", "digits")[1]
    assert [command[0] for command in commands_in(out)] == ["shift", "lint"] and "in place of FILE" in out


def test_where_no_shape_is_known_the_command_says_what_it_stands_for(nets, capsys):
    data = ("--data", "anynets:text_batches", "--forward", "anynets:run_text")
    out = run(capsys, "shift", "anynets:Text", "--weights", "text.pt", *data)[1]
    repaired, found = commands_in(out)
    assert found[-2:] == ["--example", "MODULE:FUNCTION"] and "--forward" not in found and "--forward" in repaired


def test_lint_writes_a_page_and_still_exits_with_1(folder, capsys):
    code, out, _ = run(capsys, "lint", *TARGET, "--guideline", "li2018", "--html", "page.html")
    assert code == 1 and "EK201" in out
    assert "EK201" in page(folder) and "evenkeel explain EK201" in page(folder)


def test_lint_by_all_guidelines_asks_for_one_where_a_user_reads(folder, capsys, monkeypatch):
    assert commands_in(run(capsys, "lint", *TARGET)[1]) == []
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, _ = run(capsys, "lint", *TARGET, "--html", "page.html")
    assert "written: page.html" in out
    assert commands_in(out) == commands_in((folder / "page.html").read_text(encoding="utf-8"))
    *_, one, _ = commands_in(out)
    assert code == 1 and "they contradict each other" in out and run(capsys, *one)[0] == 1
    assert one[one.index("--guideline") + 1] == "li2018"
    (folder / "pyproject.toml").write_text('[tool.evenkeel]\nguideline = "kim2023"\n')
    assert all("--guideline kim2023" in shlex.join(c) for c in commands_in(run(capsys, "lint", *TARGET)[1])[-2:-1])
    assert commands_in(run(capsys, "lint", *TARGET, "--output", "found.txt")[1]) == []


def test_repair_by_data_shows_before_and_after(folder, capsys):
    arguments = ("--data", "digits", "--other-data", "--out", "new.pt", "--html", "page.html")
    code, _, err = run(capsys, "repair", *TARGET, *arguments)
    assert (code, err) == (0, "")
    assert "Repaired: the worst norm was off by" in page(folder) and "test samples" in page(folder)


def test_commands_of_pages_read_the_same_data(folder, capsys):
    given = ("--data", "digits", "--data-dir", "sets", "--mean", "0.3", "--std", "0.4", "--batch-size", "64")
    options = set(zip(given[::2], given[1::2], strict=True))
    assert run(capsys, "shift", *TARGET, *given, "--html", "page.html")[::2] == (0, "")
    repaired, found = commands_in((folder / "page.html").read_text(encoding="utf-8"))
    assert options <= set(itertools.pairwise(repaired)) and not set(given[::2]) & set(found)
    assert run(capsys, "repair", *TARGET, *given, "--other-data", "--out", "new.pt", "--html", "page.html")[0] == 0
    (checked,) = commands_in((folder / "page.html").read_text(encoding="utf-8"))
    assert options | {("--weights", "new.pt"), ("--input", "1x8x8")} <= set(itertools.pairwise(checked))
    assert "--other-data" not in checked, "shift has no such option"


@pytest.mark.parametrize(
    ("out", "key", "loaded"),
    [("new.pt", " --key ema", ', key="ema"'), ("new.safetensors", "", "")],
)
def test_the_page_of_a_file_of_several_nets_says_what_reads_it(folder, capsys, out, key, loaded):
    state = torch.load(folder / "net.pt")
    torch.save({"state_dict": state, "ema": state}, folder / "two.pt")
    given = ("pagenets:net", "--input", "1x8x8", "--weights", "two.pt", "--key", "ema", "--out", out)
    assert run(capsys, "repair", *given, "--html", "page.html")[::2] == (0, "")
    checked = f"evenkeel shift pagenets:net --input 1x8x8 --weights {out}{key}"
    assert checked in page(folder) and f'evenkeel.load_(model, "{out}"{loaded})' in page(folder)
    assert run(capsys, *checked.split()[1:])[0] == 0


def test_two_reports_lie_side_by_side(folder, capsys):
    (folder / "a.json").write_text(run(capsys, "shift", *TARGET, "--json")[1])
    repaired = ("--data", "digits", "--other-data", "--out", "new.pt", "--json")
    (folder / "b.json").write_text(run(capsys, "repair", *TARGET, *repaired)[1])
    (folder / "c.json").write_text(run(capsys, "repair", *TARGET, "--out", "c.pt", "--json")[1])
    for other in ("b.json", "c.json"):
        code, out, err = run(capsys, "compare", "a.json", other, "--html", "page.html")
        assert (code, err) == (0, "")
        assert f"In {other}, 1 of 1 norms are nearer to even than in a.json" in " ".join(out.split())
        assert f"In {other}, 1 of 1 norms are nearer to even" in page(folder)


def test_findings_that_came_and_went(folder, capsys):
    (folder / "a.json").write_text(run(capsys, "lint", *TARGET, "--format", "json")[1])
    (folder / "b.json").write_text(run(capsys, "lint", *TARGET, "--format", "json", "--ignore", "EK201")[1])
    code, out, _ = run(capsys, "compare", "a.json", "b.json")
    assert code == 0 and "1 findings are gone, 0 are new" in out


@pytest.mark.parametrize(
    ("content", "said"),
    {
        "no JSON": (b"nothing", "is no report: it is not JSON"),
        "a checkpoint": (b"PK\x03\x04\xff\xfe", "is no report: it is not JSON"),
        "too deep": (b"[" * 100_000, "is no report: it is not JSON"),
        "a number": (b"3", "is no report"),
        "no rows": (b'{"a": 1}', "is no report"),
        "other rows": (b'{"rows": [1]}', "is no report"),
        "findings": (b"[]", "name two of one kind"),
        "another net": (b'{"rows": [{"path": "other", "ratio": 1.0}]}', "have no norm in common"),
    }.values(),
)
def test_what_cannot_be_compared_is_one_line(folder, capsys, content, said):
    (folder / "a.json").write_text('{"rows": [{"path": "3", "ratio": null}]}')
    (folder / "b.json").write_bytes(content)
    code, out, err = run(capsys, "compare", "a.json", "b.json")
    assert code == 2 and out == "" and said in err and err.count("\n") == 1


@pytest.mark.parametrize("name", ["no/page.html", "net.pt", "."])
@pytest.mark.parametrize("command", ["shift", "lint"])
def test_a_page_that_cannot_be_written_is_refused_before_the_work(folder, capsys, command, name):
    before = (folder / "net.pt").read_bytes()
    code, out, err = run(capsys, command, *TARGET, "--html", name)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert (folder / "net.pt").read_bytes() == before


def test_without_jinja2_one_line_says_what_to_install(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    code, out, err = run(capsys, "shift", *TARGET, "--html", "page.html")
    assert (code, out) == (2, "") and 'pip install "evenkeel[report]"' in err
