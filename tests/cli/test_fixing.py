"""fix prints a patch of the user's source, words where there is none, and changes nothing by itself."""

import json
import subprocess

import pytest
from commands import run

TEXT = ("anynets:Text", "--example", "anynets:text_example", "--guideline", "li2018")


def test_the_patch_applies_and_the_finding_is_gone(nets, capsys):
    source = (nets / "anynets.py").read_text()
    code, out, err = run(capsys, "fix", *TEXT, "--diff")
    assert code == 0 and err == "" and (nets / "anynets.py").read_text() == source
    assert out.startswith("# li2018: 1 finding, 1 in this patch, 0 in words\n--- a/anynets.py\n+++ b/anynets.py\n")
    assert "+        return self.out(self.drop(F.relu(self.norm(self.lin(h)))))\n" in out
    subprocess.run(["git", "apply", "-"], input=out, text=True, check=True, cwd=nets)
    pairs = zip(source.splitlines(), (nets / "anynets.py").read_text().splitlines(), strict=True)
    assert sum(before != after for before, after in pairs) == 1


def test_without_diff_a_table_of_what_fix_does_in_a_copy(nets, capsys):
    code, out, err = run(capsys, "fix", *TEXT)
    assert code == 0 and err == "" and "EK201" in out and "li2018: 1 fixed, 0 left" in out
    code, out, _ = run(capsys, "fix", *TEXT, "--json")
    assert code == 0 and json.loads(out)["rows"][0]["done"] is True


def test_what_no_patch_can_do_is_said_in_words_and_exits_with_1(nets, capsys):
    (nets / "sequence.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential(\n        nn.Linear(4, 8), nn.Dropout(0.5), "
        "nn.BatchNorm1d(8), nn.Linear(8, 2))\n"
    )
    code, out, err = run(capsys, "fix", "sequence:net", "--input", "4", "--guideline", "li2018", "--diff")
    assert code == 1 and err == ""
    first, second = out.splitlines()
    assert first == "# li2018: 1 finding, 0 in this patch, 1 in words"
    assert second.startswith("# by hand: EK201 1: move 1 to before 3, since ")
    code, out, _ = run(capsys, "fix", "sequence:net", "--input", "4", "--guideline", "li2018", "--diff", "--json")
    assert code == 1 and json.loads(out)["patch"] == "" and json.loads(out)["rows"][0]["done"] is False


def test_a_reason_that_several_findings_share_is_said_once(nets, capsys):
    text = ("fix", "anynets:Text", "--example", "anynets:text_example", "--guideline", "chen2019")
    lines = run(capsys, *text, "--diff")[1].splitlines()
    (at,) = [place for place, line in enumerate(lines) if "--unsafe allows it" in line]
    named = [line.split()[1] for line in lines[at + 1 :] if line.startswith("#   ")]
    assert set(named) == {"EK301", "EK302"} and len(named) >= 2
    assert lines[at].startswith(f"# by hand, {len(named)} findings, since it changes what the model computes in eval")
    out = run(capsys, *text)[1] or run(capsys, *text)[2]
    assert out.count("--unsafe") <= 1 and "unsafe=True" not in out
    (nets / "twice.py").write_text(
        "from torch import nn\n\n\ndef net():\n    some = [nn.Linear(8, 8), nn.Dropout(0.5), nn.BatchNorm1d(8)]\n"
        "    return nn.Sequential(*some, nn.Linear(8, 8), nn.Dropout(0.2), nn.BatchNorm1d(8), nn.Linear(8, 2))\n"
    )
    _, out, err = run(capsys, "fix", "twice:net", "--input", "8", "--guideline", "li2018", "--diff")
    assert err == "" and "# by hand, 2 findings, since " in out and out.count(", since ") == 1


def test_without_findings_there_is_nothing_to_print(nets, capsys):
    text = ("anynets:Text", "--example", "anynets:text_example", "--guideline", "kim2023", "--diff")
    assert run(capsys, "fix", *text) == (0, "# kim2023: 0 findings, 0 in this patch, 0 in words\n", "")


def test_codes_and_unsafe_edits_are_chosen(nets, capsys):
    text = ("fix", "anynets:Text", "--example", "anynets:text_example", "--guideline", "chen2019", "--diff")
    code, out, _ = run(capsys, *text)
    assert code == 1 and "--unsafe allows it" in out
    assert "--unsafe allows it" not in run(capsys, *text, "--unsafe")[1]
    assert "EK301" not in run(capsys, *text, "--ignore", "EK301")[1]
    assert run(capsys, *text, "--select", "EK2")[0] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--guideline", "li2019"), "no guideline 'li2019': choose hendrycks2016"),
        (("--guideline", "li2018", "--example", "anynets:gone"), "has no 'gone'"),
        (("--guideline", "li2018"), "--input must give the shape of one input"),
        ((), "--guideline"),
    ],
)
def test_bad_input_costs_one_line(nets, capsys, options, message):
    code, out, err = run(capsys, "fix", "anynets:Text", *options)
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err
