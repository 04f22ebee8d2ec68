"""The program: what it prints, how it exits, and that bad input costs one line and nothing else."""

import importlib
import json
import subprocess
import sys

import pytest
import torch
from commands import run
from safetensors.torch import load_file, save_file
from torch import nn

import evenkeel as ek
from evenkeel import demo
from evenkeel.io.datasets import load_data
from evenkeel.io.preprocessing import Preprocessing
from evenkeel.linting.explanation import overview, without_links
from evenkeel.linting.rules import ALL

NET = """
import torch
from torch import nn
from evenkeel.demo import build_net as residual

def net(classes=10):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.Dropout(0.5), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, classes))

def plain():
    return nn.Linear(4, 4)

def same(images):
    return images

def scripted():
    return torch.jit.script(net())

def exported():
    return torch.export.export(net(), (torch.zeros(2, 1, 8, 8),)).module()

def scripted_in_part():
    return nn.Sequential(torch.jit.script(net()), nn.Sigmoid())

def batches():
    return [torch.randn(32, 1, 8, 8) for _ in range(3)]

def broken():
    raise RuntimeError("no such\\nluck")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a module of models, and a trained checkpoint of one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVENKEEL_DATA", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mynets.py").write_text(NET)
    monkeypatch.delitem(sys.modules, "mynets", raising=False)
    torch.manual_seed(0)
    namespace = {}
    exec(NET, namespace)
    model = namespace["net"]()
    for _ in range(30):
        model(torch.randn(64, 1, 8, 8))
    torch.save(model.state_dict(), tmp_path / "net.pt")
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    torch.save(namespace["net"](3).state_dict(), tmp_path / "three.pt")
    return tmp_path


@pytest.mark.slow
def test_version_of_both_spellings():
    module = subprocess.run([sys.executable, "-m", "evenkeel", "--version"], capture_output=True, text=True, check=True)
    assert module.stdout.startswith("evenkeel 0.")


def test_shift_prints_the_table(folder, capsys):
    code, out, err = run(capsys, "shift", "mynets:net", "--weights", "net.pt", "--data", "digits")
    assert code == 0 and err == ""
    assert "eval/train" in out and "2 p=0.5" in out


def test_shift_as_json_and_its_limit(folder, capsys):
    common = ("shift", "mynets:net", "--weights", "net.safetensors", "--data", "digits", "--json")
    code, out, _ = run(capsys, *common, "--fail-above", "1.0001")
    report = json.loads(out)
    assert code == 1 and [row["path"] for row in report["rows"]] == ["3"] and report["worst"] > 1.0001
    assert run(capsys, *common, "--fail-above", "1000")[0] == 0


def test_shift_of_a_fresh_model_with_arguments_on_data_of_ones_own(folder, capsys):
    arguments = ("--data", "mynets:batches", "--arg", "classes=3", "--max-batches", "2")
    code, out, _ = run(capsys, "shift", "mynets:net", *arguments)
    assert code == 0 and "worst" in out


@pytest.mark.parametrize(("source", "out"), [("net.pt", "new.pt"), ("net.safetensors", "new.safetensors")])
def test_repair_writes_the_checkpoint_with_only_the_statistics_changed(folder, capsys, source, out):
    arguments = ("--weights", source, "--data", "digits", "--out", out, "--html", "page.html")
    code, printed, err = run(capsys, "repair", "mynets:net", *arguments)
    assert code == 0 and err == ""
    assert "before" in printed and "797 test samples" in printed
    assert "<html" in (folder / "page.html").read_text()
    read = load_file if out.endswith("safetensors") else torch.load
    old, new = read(folder / source), read(folder / out)
    changed = [key for key in old if not torch.equal(old[key], new[key])]
    assert changed == ["3.running_mean", "3.running_var"]
    assert sorted(p.name for p in folder.iterdir() if "tmp" in p.name) == []


@pytest.mark.parametrize("given", [("--data", "mynets:batches"), ("--input", "1x8x8")])
def test_repair_says_what_it_may_harm_once_and_without_a_warning_of_pythons(folder, capsys, recwarn, given):
    arguments = ("repair", "mynets:net", "--weights", "net.pt", "--out", "new.pt", *given)
    code, out, err = run(capsys, *arguments)
    assert code == 0 and err == "" and "regression's error" in " ".join(out.split())
    assert [warning for warning in recwarn if issubclass(warning.category, ek.StretchWarning)] == []
    assert "regression's error" in "".join(json.loads(run(capsys, *arguments, "--json")[1])["notes"])


def test_a_repaired_checkpoint_passes_the_gate_without_data(folder, capsys):
    gate = ("shift", "mynets:net", "--input", "1x8x8", "--fail-above", "1.1", "--weights")
    assert run(capsys, *gate, "net.pt")[0] == 1
    assert (
        run(capsys, "repair", "mynets:net", "--data", "digits", "--weights", "net.pt", "--out", "a.pt", "--other-data")[
            0
        ]
        == 0
    )
    assert run(capsys, *gate, "a.pt")[0] == 0


def test_repair_as_json_without_labels(folder, capsys):
    arguments = ("--weights", "net.pt", "--data", "mynets:batches", "--out", "new.pt", "--json", "--tolerance", "0.5")
    code, out, _ = run(capsys, "repair", "mynets:net", *arguments)
    result = json.loads(out)
    assert code == 0 and result["batches"] == 3 and result["before"]["score"] is None
    assert result["after"]["shift"]["worst"] < result["before"]["shift"]["worst"] + 1e-9


def test_without_data_the_shift_is_predicted_from_the_shape_of_an_input(folder, capsys):
    arguments = ("shift", "mynets:net", "--weights", "net.pt", "--input", "1x8x8")
    code, out, err = run(capsys, *arguments)
    assert code == 0 and err == "" and "2 p=0.5 100 %" in out
    code, out, _ = run(capsys, *arguments, "--json", "--fail-above", "1.0001")
    (row,) = json.loads(out)["rows"]
    assert code == 1 and row["ratio"] < 0.9 and row["causes"][0]["name"] == "2"


@pytest.fixture
def scaled(folder):
    """The checkpoint of a net trained on digits from 0 to 1."""
    torch.manual_seed(0)
    namespace = {}
    exec(NET, namespace)
    model = namespace["net"]()
    for _ in range(10):
        for images, _labels in load_data("digits", preprocessing=Preprocessing()).train:
            model(images)
    torch.save(model.state_dict(), folder / "scaled.pt")
    return folder


def test_repair_refuses_data_that_are_not_those_of_training(scaled, capsys):
    arguments = ("repair", "mynets:net", "--weights", "scaled.pt", "--data", "digits", "--out", "new.pt")
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and not (scaled / "new.pt").exists()
    assert "norm 3 meets x" in err and "not the data of training" in err and "--scale" in err and "--other-data" in err
    code, out, err = run(capsys, *arguments, "--other-data")
    assert code == 0 and "--other-data: 3 meets x" in out and (scaled / "new.pt").exists()


@pytest.mark.parametrize("options", [("--scale", "1"), ("--mean", "0", "--std", "1"), ("--transform", "mynets:same")])
def test_the_preprocessing_of_training_makes_them_those_of_training(scaled, capsys, options):
    common = ("mynets:net", "--weights", "scaled.pt", "--data", "digits")
    code, out, err = run(capsys, "repair", *common, "--out", "new.pt", *options)
    assert code == 0 and err == "" and (scaled / "new.pt").exists()
    code, out, _ = run(capsys, "shift", *common, *options, "--json")
    assert code == 0 and json.loads(out)["other_data"] == {}
    code, out, _ = run(capsys, "shift", *common, "--json")
    assert code == 0 and list(json.loads(out)["other_data"]) == ["3"]


REGRESSION = """
def regressor():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.BatchNorm1d(32), nn.Linear(32, 1))


def pairs():
    x = torch.randn(600, 8, generator=torch.Generator().manual_seed(1))
    return list(zip(x.split(50), x.sum(1, keepdim=True).split(50)))
"""


@pytest.fixture
def regression(folder, monkeypatch):
    """A regression, trained with dropout right before a norm."""
    (folder / "mynets_regression.py").write_text("import torch\nfrom torch import nn\n" + REGRESSION)
    monkeypatch.syspath_prepend(str(folder))
    module = importlib.import_module("mynets_regression")
    model = module.regressor()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for x, y in module.pairs() * 20:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    torch.save(model.state_dict(), folder / "regressor.pt")
    yield folder
    sys.modules.pop("mynets_regression")


@pytest.mark.parametrize("given", [("--data", "mynets_regression:pairs"), ("--input", "8")])
def test_held_out_data_keep_a_regression_from_being_made_worse(regression, capsys, given):
    arguments = ("repair", "mynets_regression:regressor", "--weights", "regressor.pt", "--out", "new.pt", *given)
    arguments = (*arguments, "--match", "variance")
    code, out, err = run(capsys, *arguments, "--held-out", "mynets_regression:pairs")
    assert code == 2 and out == "" and not (regression / "new.pt").exists()
    assert len(err.splitlines()) == 1 and "nothing is written: the held-out loss gets no lower: squared error" in err
    code, out, err = run(capsys, *arguments)
    assert code == 0 and err == "" and "a regression's error may grow" in " ".join(out.split())


def test_the_stored_statistics_may_count_in_repair(folder, capsys):
    arguments = ("repair", "mynets:net", "--weights", "net.pt", "--data", "digits", "--out", "new.pt", "--json")
    ratios = []
    for prior in ("0", "1000", "1e12", "auto"):
        code, out, _ = run(capsys, *arguments, "--prior", prior)
        assert code == 0
        ratios.append(json.loads(out)["after"]["shift"]["rows"][0]["ratio"])
    before = json.loads(out)["before"]["shift"]["rows"][0]["ratio"]
    assert ratios[0] == pytest.approx(1, abs=1e-3) and ratios[2] == pytest.approx(before, rel=1e-3)
    assert before < ratios[1] < ratios[0] and abs(ratios[3] - 1) < 0.05
    assert run(capsys, *arguments, "--prior", "much")[0] == 2


def test_norms_that_were_never_updated_are_repaired_only_if_told(folder, capsys):
    state = torch.load(folder / "net.pt")
    for name, values in state.items():
        if name.startswith("3."):  # the weight and bias are those of training
            values.copy_(torch.tensor(float(name.endswith("var"))) if "running" in name else torch.randn(values.shape))
    torch.save(state, folder / "never.pt")
    arguments = ("repair", "mynets:net", "--weights", "never.pt", "--data", "digits", "--out", "new.pt")
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == "" and "never updated" in err and "--unsure write" in err
    assert not (folder / "new.pt").exists()
    code, out, _ = run(capsys, *arguments, "--unsure", "write")
    assert code == 0 and "x1.00 after" in out
    without_data = ("--weights", "net.pt", "--input", "1x8x8", "--out", "new.pt", "--unsure", "write", "--json")
    code, out, _ = run(capsys, "repair", "mynets:net", *without_data)
    assert code == 0 and json.loads(out)["rows"]
    assert run(capsys, *arguments, "--unsure", "maybe")[0] == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -3.0])
def test_repair_mends_statistics_that_cannot_be(folder, capsys, value):
    state = torch.load(folder / "net.pt")
    state["3.running_var"][5] = value
    torch.save(state, folder / "bad.pt")
    arguments = ("--weights", "bad.pt", "--data", "digits", "--out", "new.pt")
    code, out, err = run(capsys, "repair", "mynets:net", *arguments)
    assert code == 0 and err == "" and "worst norm: xinf before, x1.00 after" in out and "running_var holds" in out
    assert (torch.load(folder / "new.pt")["3.running_var"] >= 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -3.0])
@pytest.mark.parametrize("how", [("--data", "digits"), ("--input", "1x8x8")])
def test_the_gate_stops_statistics_that_cannot_be(folder, capsys, value, how):
    state = torch.load(folder / "net.pt")
    state["3.running_var"][5] = value
    torch.save(state, folder / "bad.pt")
    arguments = ("shift", "mynets:net", "--weights", "bad.pt", *how, "--fail-above", "1e9")
    code, out, _ = run(capsys, *arguments)
    assert code == 1 and "worst xinf at 3" in out and "running_var holds" in out
    code, out, _ = run(capsys, *arguments, "--json")
    (row,) = json.loads(out)["rows"]
    assert code == 1 and row["bad"].startswith("running_var holds") and row["folded"] is None


@pytest.mark.parametrize("how", [("--data", "digits"), ("--input", "1x8x8")])
def test_an_infinite_variance_reads_inf_and_what_it_is(folder, capsys, how):
    state = torch.load(folder / "net.pt")
    state["3.running_var"][5] = float("inf")
    torch.save(state, folder / "bad.pt")
    lines = run(capsys, "shift", "mynets:net", "--weights", "bad.pt", *how)[1].splitlines()
    (row,) = (line for line in lines if line.split()[:2] == ["3", "inf"])
    assert "nan" not in row and "running_var holds" in row


@pytest.mark.parametrize("extra", [(), ("--json",), ("--html", "page.html")])
def test_without_data_a_checkpoint_is_corrected(folder, capsys, extra):
    arguments = ("--weights", "net.pt", "--input", "1x8x8", "--out", "new.pt")
    code, printed, err = run(capsys, "repair", "mynets:net", *arguments, *extra)
    assert code == 0 and err == ""
    old, new = torch.load(folder / "net.pt"), torch.load(folder / "new.pt")
    assert [key for key in old if not torch.equal(old[key], new[key])] in (
        ["3.running_mean", "3.running_var"],
        ["3.running_var"],
    )
    assert (new["3.running_var"] < old["3.running_var"]).all()
    if extra == ("--json",):
        result = json.loads(printed)
        assert result["rows"][0]["path"] == "3" and result["before"]["shift"]["rows"][0]["ratio"] < 0.9
    else:
        assert "1 norm corrected without data" in printed and "written: new.pt" in printed
    if "--html" in extra:
        assert "corrected" in (folder / "page.html").read_text()


LINT = ("lint", "mynets:net", "--input", "1x8x8")


def test_lint_prints_findings_and_exits_with_1(folder, capsys):
    code, out, err = run(capsys, *LINT, "--guideline", "li2018")
    first, last = out.splitlines()
    assert code == 1 and err == ""
    assert first.startswith("EK201 2: dropout p=0.5 is fed to the norm 3 ") and "[predicted eval/train 0." in first
    assert last == "1 finding: 1 of li2018"


def test_lint_without_findings_exits_with_0(folder, capsys):
    assert run(capsys, *LINT, "--guideline", "kim2023") == (0, "no findings\n", "")
    assert run(capsys, "lint", "mynets:plain", "--input", "4") == (0, "no findings\n", "")


@pytest.mark.parametrize("kind", ["scripted", "exported"])
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_lint_does_not_pass_what_it_cannot_read(folder, capsys, kind):
    code, out, err = run(capsys, "lint", f"mynets:{kind}", "--input", "1x8x8", "--guideline", "li2018")
    assert (code, out) == (2, "") and err.startswith(f"evenkeel: the model is {kind}")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_lint_does_not_pass_a_part_that_it_cannot_read(folder, capsys):
    code, out, _ = run(capsys, "lint", "mynets:scripted_in_part", "--input", "1x8x8", "--guideline", "li2018")
    assert code == 1 and out.startswith("EK104 0: 0 is scripted")


def test_lint_is_what_the_verb_says(folder, capsys):
    code, out, _ = run(capsys, *LINT, "--format", "json", "--arg", "classes=3", "--weights", "three.pt")
    sys.path.append(str(folder))
    from mynets import net

    model = net(3)
    model.load_state_dict(torch.load("three.pt"))
    findings = [f.to_dict() for f in ek.lint(model, torch.zeros(1, 1, 8, 8))]
    assert code == 1 and json.loads(out) == findings != []


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        (("--select", "EK2"), ["EK201"]),
        (("--select", "EK2,EK301"), ["EK201", "EK301"]),
        (("--select", "EK2", "--select", "EK301"), ["EK201", "EK301"]),
        (("--ignore", "EK3"), ["EK102", "EK201"]),
        (("--select", "EK3", "--ignore", "EK302"), ["EK301"]),
        (("--guideline", "chen2019"), ["EK301", "EK302"]),
    ],
)
def test_lint_takes_codes_in_every_form(folder, capsys, options, codes):
    code, out, _ = run(capsys, *LINT, "--weights", "net.pt", "--format", "json", *options)
    assert code == 1 and [finding["code"] for finding in json.loads(out)] == codes


def test_lint_writes_sarif_with_all_rules(folder, capsys):
    code, out, err = run(capsys, *LINT, "--format", "sarif", "--output", "log.sarif")
    (log,) = json.loads((folder / "log.sarif").read_text())["runs"]
    assert (code, out, err) == (1, "", "")
    assert [rule["id"] for rule in log["tool"]["driver"]["rules"]] == [rule.code for rule in ALL]
    assert [result["ruleId"] for result in log["results"]] == ["EK201", "EK301", "EK302"]
    assert [path.name for path in folder.iterdir() if "tmp" in path.name] == []


@pytest.mark.parametrize("form", ["text", "json"])
def test_lint_writes_to_a_file_what_it_would_print(folder, capsys, form):
    asked = (*LINT, "--weights", "net.pt", "--format", form)
    printed = run(capsys, *asked)[1]
    assert run(capsys, *asked, "--output", "out.txt") == (1, "", "")
    assert (folder / "out.txt").read_text() == printed


def settings(folder, text):
    (folder / "pyproject.toml").write_text(f"[tool.evenkeel]\n{text}\n")


@pytest.mark.parametrize(
    ("text", "options", "codes"),
    [
        ("", (), ["EK201", "EK301", "EK302"]),
        ('guideline = "chen2019"', (), ["EK301", "EK302"]),
        ('guideline = "chen2019"', ("--guideline", "li2018"), ["EK201"]),
        ('select = ["EK2"]', (), ["EK201"]),
        ('select = ["EK2"]', ("--select", "EK301"), ["EK301"]),
        ('ignore = ["EK3"]', (), ["EK201"]),
        ('ignore = ["EK301"]', ("--ignore", "EK2"), ["EK302"]),
        ('per-path-ignores = { "[23]" = ["EK"] }', (), ["EK302"]),
    ],
)
def test_lint_heeds_pyproject_and_options_come_first(folder, capsys, text, options, codes):
    settings(folder, text)
    code, out, _ = run(capsys, *LINT, "--format", "json", *options)
    assert code == (1 if codes else 0) and [finding["code"] for finding in json.loads(out)] == codes


def test_explain_prints_a_page_or_the_table(folder, capsys):
    assert run(capsys, "explain", "EK201") == (0, ek.explain("EK201").rstrip() + "\n", "")
    assert run(capsys, "explain", "ek201") == run(capsys, "explain", "EK201")
    assert run(capsys, "explain") == (0, without_links(overview()).rstrip() + "\n", "")
    assert "](" not in run(capsys, "explain")[1] and "| EK101 | hendrycks2016 |" in run(capsys, "explain")[1]


def test_explain_writes_pages(folder, capsys):
    (folder / "rules").mkdir()
    code, out, _ = run(capsys, "explain", "--write", "rules")
    assert code == 0 and out == f"written: {len(ALL) + 1} pages in rules\n"
    assert sorted(p.name for p in (folder / "rules").iterdir()) == sorted(["README.md", *(f"{r.code}.md" for r in ALL)])


@pytest.mark.slow
def test_demo_small(folder, capsys):
    pytest.importorskip("sklearn")
    code, out, _ = run(capsys, "demo", "--seeds", "1", "--epochs", "1")
    assert code == 0 and "torch update_bn" in out and "1 seeds" in out
    code, out, _ = run(capsys, "demo", "--seeds", "1", "--epochs", "1", "--json")
    assert code == 0 and set(json.loads(out)["scores"]) == set(demo.TREATMENTS)


SHIFT = ("shift", "mynets:net", "--data", "digits")
REPAIR = ("repair", "mynets:net", "--data", "digits", "--out", "new.pt")
BAD = {
    "missing weights": ((*REPAIR, "--weights", "gone.pt"), "gone.pt does not exist"),
    "pickle that is no state dict": ((*REPAIR, "--weights", "list.pt"), "list.pt holds a list"),
    "file that is no pickle": ((*REPAIR, "--weights", "mynets.py"), "mynets.py of"),
    "truncated safetensors": ((*REPAIR, "--weights", "cut.safetensors"), "cut.safetensors of"),
    "pickle that runs code": ((*REPAIR, "--weights", "code.pt"), "code.pt holds more than tensors"),
    "mismatched keys": ((*REPAIR, "--weights", "other.pt"), "other.pt does not fit the model Sequential: 8 missing"),
    "mismatched shapes": ((*REPAIR, "--weights", "net.pt", "--arg", "classes=7"), "of another shape (5.weight"),
    "missing folder to write to": (
        ("repair", "mynets:net", "--data", "digits", "--weights", "net.pt", "--out", "no/new.pt"),
        "no/new.pt cannot be written: there is no folder no",
    ),
    "missing folder for the page": (
        (*REPAIR, "--weights", "net.pt", "--html", "no/page.html"),
        "there is no folder no",
    ),
    "page over the checkpoint": ((*REPAIR, "--weights", "net.pt", "--html", "new.pt"), "is the checkpoint's own file"),
    "page over the weights": ((*REPAIR, "--weights", "net.pt", "--html", "net.pt"), "is the checkpoint's own file"),
    "page that cannot be written": (
        (*REPAIR, "--weights", "net.pt", "--html", "/proc/page.html"),
        "nothing was written",
    ),
    "limit that no ratio can be above": ((*SHIFT, "--fail-above", "nan"), "at least 1, not nan"),
    "negative tolerance": (
        (*REPAIR, "--weights", "net.pt", "--tolerance", "-1"),
        "tolerance must be above 0 and finite, not -1",
    ),
    "too many batches": ((*REPAIR, "--weights", "net.pt", "--max-batches", "99"), "ran short: 8 of --max-batches 99"),
    "wrong shape": ((*SHIFT, "--input", "3x32x32"), "images of digits are 1x8x8, not 3x32x32"),
    "wrong shape for the model": (
        ("shift", "evenkeel.demo:build_net", "--data", "mynets:wide"),
        "'wide'",
    ),
    "not a shape": ((*SHIFT, "--input", "3xx32"), "3xx32"),
    "no norm in the model": (
        ("shift", "mynets:plain", "--data", "digits"),
        "Linear has no norm layer with running statistics",
    ),
    "unknown data set": (("shift", "mynets:net", "--data", "imagenet9"), "imagenet9"),
    "data set that is not here": (("shift", "mynets:net", "--data", "mnist"), "mnist"),
    "no such module": (("shift", "nonets:net", "--data", "digits"), "nonets"),
    "no such function": (("shift", "mynets:nett", "--data", "digits"), "nett"),
    "no colon": (("shift", "mynets", "--data", "digits"), "'mynets'"),
    "model that raises": (("shift", "mynets:broken", "--data", "digits"), "RuntimeError"),
    "neither data nor shape": (("shift", "mynets:net"), "without --data, --input must give the shape"),
    "neither data nor shape to repair by": (
        ("repair", "mynets:net", "--weights", "net.pt", "--out", "new.pt"),
        "without --data, --input must give the shape",
    ),
    "a tolerance without data": (
        ("repair", "mynets:net", "--weights", "net.pt", "--out", "new.pt", "--input", "1x8x8", "--tolerance", "0.1"),
        "--tolerance says how to use data, and there is no --data",
    ),
    "preprocessing without data": (
        ("shift", "mynets:net", "--input", "1x8x8", "--mean", "0.5"),
        "--mean says how to use data, and there is no --data",
    ),
    "preprocessing of batches of one's own": (
        ("shift", "mynets:net", "--data", "mynets:batches", "--scale", "255"),
        "mynets:batches yields what the model is given",
    ),
    "numbers that are none": ((*SHIFT, "--std", "0.5;0.5"), "--std 0.5;0.5: write one number"),
    "a shape that the model does not take": (
        ("shift", "mynets:net", "--input", "1x9x9"),
        "has the shape and dtype that the model takes",
    ),
    "nothing to correct": (
        ("repair", "mynets:net", "--weights", "fresh.pt", "--out", "new.pt", "--input", "1x8x8"),
        "nothing can be corrected without data, so nothing is written: layer 3: untrained",
    ),
    "unknown guideline": ((*LINT, "--guideline", "li2019"), "no guideline 'li2019': choose hendrycks2016"),
    "unknown code to select": ((*LINT, "--select", "EK2,EK9"), "select: no code begins with 'EK9'"),
    "unknown code to ignore": ((*LINT, "--ignore", "2"), "ignore: no code begins with '2'"),
    "no code": ((*LINT, "--select", ""), "no code begins with ''"),
    "unknown format": ((*LINT, "--format", "xml"), "xml"),
    "no shape to lint by": (("lint", "mynets:net"), "--input must give the shape of one input"),
    "what is no shape": (("lint", "mynets:net", "--input", "1xa"), "1xa"),
    "a shape that the model to lint does not take": (
        ("lint", "mynets:net", "--input", "1x9x9"),
        "has the shape and dtype that the model takes",
    ),
    "a missing folder for findings": ((*LINT, "--output", "no/log.json"), "no/log.json cannot be written"),
    "a folder for findings": ((*LINT, "--output", "."), "is a folder"),
    "findings that cannot be written": ((*LINT, "--output", "/proc/log.json"), "nothing was written"),
    "weights that do not fit what is linted": ((*LINT, "--weights", "other.pt"), "does not fit the model"),
    "an unknown rule": (("explain", "EK999"), "there is no rule 'EK999'"),
    "no folder for pages": (("explain", "--write", "gone"), "there is no folder gone"),
    "missing option": (("repair", "mynets:net", "--out", "new.pt"), "--weights"),
    "unknown option": ((*SHIFT, "--wieghts", "net.pt"), "--wieghts"),
    "no seeds": (("demo", "--seeds", "0"), "--seeds"),
}


class _Code:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("case", BAD)
def test_bad_input_costs_one_clear_line_and_nothing_is_written(case, folder, capsys):
    arguments, message = BAD[case]
    torch.save([1, 2, 3], folder / "list.pt")
    torch.save(nn.Linear(2, 2).state_dict(), folder / "other.pt")
    torch.save({"x": _Code()}, folder / "code.pt")
    fresh = [nn.Flatten(), nn.Linear(64, 32), nn.Dropout(0.5), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)]
    torch.save(nn.Sequential(*fresh).state_dict(), folder / "fresh.pt")
    (folder / "cut.safetensors").write_bytes((folder / "net.safetensors").read_bytes()[:300])
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert err.startswith("evenkeel: ") and err.count("\n") == 1 and message in err
    assert out == "" and "executed" not in err
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("guideline = li2018", "pyproject.toml cannot be read"),
        ('guideline = "li2019"', "tool.evenkeel.guideline: there is no guideline 'li2019'"),
        ("guideline = 3", "tool.evenkeel.guideline is a number, not a string"),
        ('select = "EK2"', "tool.evenkeel.select is a string: write a list of strings"),
        ('ignore = ["EK9"]', "tool.evenkeel.ignore: no code begins with 'EK9'"),
        ('exclude = ["x"]', "tool.evenkeel has no key 'exclude'"),
        ('per-path-ignores = ["EK2"]', "tool.evenkeel.per-path-ignores is a list, not a table"),
    ],
)
def test_a_broken_pyproject_costs_one_clear_line(folder, capsys, text, message):
    settings(folder, text)
    code, out, err = run(capsys, *LINT)
    assert (code, out) == (2, "")
    assert err.startswith("evenkeel: ") and err.count("\n") == 1 and message in err
