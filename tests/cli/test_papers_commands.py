"""`evenkeel reproduce` and `evenkeel report`: what they write, how they exit, one line for bad input."""

import json
import sys

import pytest

from evenkeel import cli


def run(capsys, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evenkeel", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            cli.main()
    printed = capsys.readouterr()
    return exited.value.code or 0, printed.out, printed.err


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVENKEEL_DATA", raising=False)
    return tmp_path / "out"


@pytest.mark.slow
def test_runs_are_written_shown_skipped_and_reported(capsys, out):
    asked = ("reproduce", "hendrycks2016/moments", "--scale", "smoke", "--out", out, "--workers", 1)
    code, shown, _ = run(capsys, *asked)
    assert code == 0 and "5 runs made, 0 skipped, 0 failed" in shown and "published" in shown
    written = sorted(path.name for path in (out / "hendrycks2016" / "moments").iterdir())
    assert written == [f"{name}-0.json" for name in ("elu", "gelu", "identity", "relu", "tanh")]
    assert (out / "hendrycks2016" / "moments-bars.svg").stat().st_size > 0
    code, shown, _ = run(capsys, *asked, "--resume")
    assert code == 0 and "0 runs made, 5 skipped" in shown

    code, shown, _ = run(capsys, "report", out, "--html", out / "page.html", "--markdown", out / "claims.md")
    assert code == 0 and shown.count("written: ") == 2
    assert "<svg" in (out / "page.html").read_text(encoding="utf-8")
    assert "Table 1" in (out / "claims.md").read_text(encoding="utf-8")
    assert "hendrycks2016/moments: Table 1, smoke scale" in run(capsys, "report", out)[1]


def test_the_status_is_shown_and_nothing_run(capsys, out):
    asked = ("hendrycks2016/moments", "li2018/shift", "--scale", "desk", "--out", out, "--accelerator", "cpu")
    code, shown, _ = run(capsys, "reproduce", *asked, "--status")
    assert code == 0 and not out.exists()
    lines = shown.splitlines()
    assert [line.split(":")[0] for line in lines] == ["hendrycks2016/moments", "li2018/shift"]
    assert all("0 finished, 0 begun" in line and "time left unknown" in line for line in lines)


def test_without_bfloat16_desk_scale_says_so(capsys, out, monkeypatch):
    asked = ("reproduce", "li2018/shift", "--scale", "desk", "--out", out, "--accelerator", "cpu", "--status")
    monkeypatch.setattr("evenkeel.papers.lab.hardware.has_bf16", lambda _: False)
    assert "bfloat16 is not faster" in run(capsys, *asked)[2]
    assert run(capsys, *asked, "--precision", "32-true")[2] == ""


@pytest.mark.slow
def test_arms_and_seeds_can_be_chosen(capsys, out):
    asked = ("reproduce", "hendrycks2016/mnist", "--scale", "smoke", "--out", out, "--workers", 1)
    code, *_ = run(capsys, *asked, "--arms", "relu-0.5-ours-0.001", "--seeds", 1, "--accelerator", "cpu")
    (path,) = (out / "hendrycks2016" / "mnist").iterdir()
    record = json.loads(path.read_text(encoding="utf-8"))
    assert code == 0 and path.name == "relu-0.5-ours-0.001-0.json"
    assert {"spec": record["factors"], "epochs": len(record["history"])} == {
        "spec": {"activation": "relu", "keep": 0.5, "init": "ours", "lr": 0.001},
        "epochs": 2,
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["reproduce", "he2015", "--scale", "smoke"], "no paper 'he2015': choose from hendrycks2016, li2018"),
        (["reproduce", "li2018/table9", "--scale", "smoke"], "no experiment 'table9'"),
        (["reproduce", "li2018", "--scale", "tiny"], "tiny"),
        (["reproduce", "li2018/shift", "--scale", "smoke", "--arms", "vgg*"], "no arm of li2018/shift is like 'vgg*'"),
        (["reproduce", "li2018"], "--scale"),
        (["report", "nowhere"], "no folder nowhere"),
        (["report", "."], "no results in ."),
        (["report", ".", "--html", "no/page.html"], "no folder no"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, out, arguments, words):
    code, shown, errors = run(capsys, *arguments)
    assert code == 2 and shown == "" and words in errors and len(errors.splitlines()) == 1


def test_each_missing_set_is_one_line_and_exit_code_1(capsys, out):
    asked = ("reproduce", "hendrycks2016/mnist", "li2018/adjust", "--scale", "quick", "--out", out)
    code, shown, errors = run(capsys, *asked, "--workers", 1, "--accelerator", "cpu")
    lines = errors.splitlines()
    assert code == 1 and shown == "" and not out.exists()
    assert [line.split()[1].strip(":") for line in lines] == ["mnist", "cifar10"]
    assert all(line.startswith("evenkeel: ") and "--data-dir" in line for line in lines)


def test_a_folder_or_an_engine_that_is_not_there_is_one_line_and_exit_code_1(capsys, out, monkeypatch):
    asked = ("reproduce", "hendrycks2016/moments", "--scale", "smoke", "--workers", 1)
    out.touch()
    assert run(capsys, *asked, "--out", out / "results")[::2] == (
        1,
        f"evenkeel: {out} cannot be written to (Not a directory): name another folder by --out\n",
    )
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run(capsys, *asked, "--engine", "ray")[::2] == (
        1,
        'evenkeel: --engine ray needs Ray: pip install "evenkeel[cluster]"\n',
    )
