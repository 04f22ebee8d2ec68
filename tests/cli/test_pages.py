"""--html of shift, lint and repair, and `evenkeel compare`."""

import json
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


def test_shift_writes_a_page_with_commands_that_can_be_run_as_they_are(folder, capsys):
    code, out, err = run(capsys, "shift", *TARGET, "--html", "page.html", "--json")
    assert (code, err) == (0, "") and json.loads(out)["rows"]
    text = page(folder)
    assert "1 of 1 norms is off" in text and "net.pt" in text
    repaired = "--input 1x8x8 --weights net.pt --out net-repaired.pt --html repair.html"
    assert f"evenkeel repair pagenets:net {repaired}" in text
    code, _, err = run(capsys, "repair", *TARGET, "--out", "net-repaired.pt", "--html", "repair.html")
    assert (code, err) == (0, "")
    assert "evenkeel shift pagenets:net --input 1x8x8 --weights net-repaired.pt" in page(folder, "repair.html")


def test_lint_writes_a_page_and_still_exits_with_1(folder, capsys):
    code, out, _ = run(capsys, "lint", *TARGET, "--guideline", "li2018", "--html", "page.html")
    assert code == 1 and "EK201" in out
    assert "EK201" in page(folder) and "evenkeel explain EK201" in page(folder)


def test_repair_by_data_shows_before_and_after(folder, capsys):
    arguments = ("--data", "digits", "--other-data", "--out", "new.pt", "--html", "page.html")
    code, _, err = run(capsys, "repair", *TARGET, *arguments)
    assert (code, err) == (0, "")
    assert "Repaired: the worst norm was off by" in page(folder) and "test samples" in page(folder)


def test_commands_of_pages_read_the_same_data(folder, capsys):
    given = ("--data", "digits", "--data-dir", "sets", "--mean", "0.3", "--std", "0.4")
    assert run(capsys, "shift", *TARGET, *given, "--html", "page.html")[::2] == (0, "")
    commands = "--data-dir sets --mean 0.3 --std 0.4"
    text = page(folder)
    assert f"evenkeel repair pagenets:net --input 1x8x8 {commands}" in text
    assert "evenkeel lint pagenets:net --input 1x8x8 --weights net.pt" in text
    repaired = ("--other-data", "--out", "new.pt", "--html", "page.html")
    assert run(capsys, "repair", *TARGET, *given, *repaired)[::2] == (0, "")
    assert f"evenkeel shift pagenets:net --input 1x8x8 {commands} --weights new.pt --data digits" in page(folder)


@pytest.mark.parametrize(
    ("out", "key", "loaded"),
    [("new.pt", " --key ema", ', key="ema"'), ("new.safetensors", "", "")],
)
def test_the_page_of_a_file_of_several_nets_says_what_reads_it(folder, capsys, out, key, loaded):
    state = torch.load(folder / "net.pt")
    torch.save({"state_dict": state, "ema": state}, folder / "two.pt")
    given = ("pagenets:net", "--input", "1x8x8", "--weights", "two.pt", "--key", "ema", "--out", out)
    assert run(capsys, "repair", *given, "--html", "page.html")[::2] == (0, "")
    checked = f"evenkeel shift pagenets:net --input 1x8x8{key} --weights {out}"
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
        "no JSON": ("nothing", "is no report"),
        "a number": ("3", "is no report"),
        "no rows": ('{"a": 1}', "is no report"),
        "other rows": ('{"rows": [1]}', "is no report"),
        "findings": ("[]", "name two of one kind"),
        "another net": ('{"rows": [{"path": "other", "ratio": 1.0}]}', "have no norm in common"),
    }.values(),
)
def test_what_cannot_be_compared_is_one_line(folder, capsys, content, said):
    (folder / "a.json").write_text('{"rows": [{"path": "3", "ratio": null}]}')
    (folder / "b.json").write_text(content)
    code, out, err = run(capsys, "compare", "a.json", "b.json")
    assert code == 2 and out == "" and said in err and err.count("\n") == 1


@pytest.mark.parametrize("html", ["no/page.html", "net.pt", "."])
@pytest.mark.parametrize("command", ["shift", "lint"])
def test_a_page_that_cannot_be_written_is_refused_before_the_work(folder, capsys, command, html):
    before = (folder / "net.pt").read_bytes()
    code, out, err = run(capsys, command, *TARGET, "--html", html)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert (folder / "net.pt").read_bytes() == before


def test_without_jinja2_one_line_says_what_to_install(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    code, out, err = run(capsys, "shift", *TARGET, "--html", "page.html")
    assert (code, out) == (2, "") and 'pip install "evenkeel[report]"' in err
