"""docs/linting/continuous-integration.md and the pre-commit hook: what they say is what the program takes."""

import json
import re
import shlex
import sys
from pathlib import Path

import jsonschema
import pytest
import typer
import yaml
from schemas import SARIF, schema

from evenkeel.cli import app, main
from evenkeel.linting.rule import GUIDELINES
from evenkeel.linting.rules import ALL
from evenkeel.linting.settings import Settings, read_settings
from evenkeel.linting.suppressions import is_ignored

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "linting" / "continuous-integration.md").read_text(encoding="utf-8")
CODES = [rule.code for rule in ALL]
NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        x = self.drop(x)
        return self.norm(x)

def build_net():
    return Net()
"""


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.M | re.S)


SHELL, TOML, PYTHON = blocks("sh"), blocks("toml"), blocks("py")
LOCAL, WORKFLOW = map(yaml.safe_load, blocks("yaml"))
(HOOK,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
STEPS = WORKFLOW["jobs"]["lint"]["steps"]
(IN_WORKFLOW,) = (step["run"] for step in STEPS if step.get("run", "").startswith("evenkeel"))


def of_hook(hook, args):
    return shlex.join([*shlex.split(hook["entry"]), *args])


LOCAL_HOOK = LOCAL["repos"][0]["hooks"][0]
COMMANDS = [
    *(line for block in SHELL for line in block.splitlines()),
    IN_WORKFLOW,
    of_hook(LOCAL_HOOK, LOCAL_HOOK["args"]),
    of_hook(HOOK, LOCAL_HOOK["args"]),
]


def parsed(command):
    """The parameters that the program reads in a command, which is not run."""
    name, verb, *args = shlex.split(command)
    assert name == "evenkeel"
    subcommand = typer.main.get_command(app).commands[verb]
    return subcommand.make_context(f"{name} {verb}", args).params


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one_that_the_program_takes(command):
    taken = parsed(command)
    assert taken["target"] == "mypackage.models:build_net" and taken["input_shape"] == ["3x32x32"]
    assert taken["guideline"] in (*GUIDELINES, None)
    for given in (taken["select"], taken["ignore"]):
        for code in (code for item in given or () for code in item.split(",")):
            assert any(full.startswith(code) for full in CODES)


def test_a_command_that_the_program_does_not_take_would_be_noticed():
    for wrong in ("lint --input", "lint x:y --format pdf", "lint x:y --frobnicate"):
        with pytest.raises(Exception, match=r"(?i)missing|requires|not one of|no such option"):
            parsed(f"evenkeel {wrong}")


def test_every_command_and_every_block_of_the_page_is_tested():
    assert (len(SHELL), len(TOML), len(PYTHON), len(blocks("yaml"))) == (1, 1, 1, 2)
    assert PAGE.count("```") == 2 * 5
    assert (
        sum(line.lstrip().startswith(("evenkeel", "- run: evenkeel")) for line in PAGE.splitlines())
        == len(SHELL[0].splitlines()) + 1
    )


def test_explain_is_a_command():
    for code in re.findall(r"`evenkeel explain (\w+)`", PAGE):
        assert parsed(f"evenkeel explain {code}")["code"] in CODES


def test_the_section_is_read_as_it_stands(tmp_path):
    (tmp_path / "pyproject.toml").write_text(TOML[0], encoding="utf-8")
    assert read_settings(tmp_path, known=CODES, guidelines=GUIDELINES) == Settings(
        "kim2023", ("EK1", "EK4"), ("EK103",), {"classifier.*": ("EK404",)}
    )


def test_the_comments_silence_what_the_page_says(tmp_path):
    file = tmp_path / "net.py"
    file.write_text(PYTHON[0], encoding="utf-8")
    assert [line for line in range(1, 6) if is_ignored("EK101", str(file), line)] == [2, 3, 5]
    assert [line for line in range(1, 6) if is_ignored("EK201", str(file), line)] == [3, 5]


def test_the_hook_of_the_page_is_the_hook_of_the_repository():
    shared = {key: HOOK[key] for key in HOOK if key != "description"}
    assert {key: LOCAL_HOOK[key] for key in LOCAL_HOOK if key != "args"} == shared
    assert (HOOK["id"], HOOK["entry"], HOOK["language"]) == ("evenkeel-lint", "evenkeel lint", "system")
    assert HOOK["always_run"] is True and HOOK["pass_filenames"] is False


@pytest.mark.parametrize(("name", "value"), [("pre-commit-config.json", LOCAL), ("github-workflow.json", WORKFLOW)])
def test_the_files_are_valid_by_their_schemas(name, value):
    value = {"on" if key is True else key: entry for key, entry in value.items()}  # YAML 1.1 reads on as true
    validator = jsonschema.Draft7Validator(schema(name))
    assert [error.message for error in validator.iter_errors(value)] == []
    assert not validator.is_valid({**value, "repos": 3, "jobs": 3})


def test_the_workflow_uploads_what_lint_writes_also_when_lint_fails():
    upload = STEPS[-1]
    file = str(parsed(IN_WORKFLOW)["output"])
    assert parsed(IN_WORKFLOW)["form"].value == "sarif"
    assert upload["uses"].startswith("github/codeql-action/upload-sarif@") and upload["with"]["sarif_file"] == file
    assert upload["if"] == f"${{{{ !cancelled() && hashFiles('{file}') != '' }}}}"
    assert WORKFLOW["jobs"]["lint"]["permissions"]["security-events"] == "write"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command beside a package whose net breaks a guideline."""
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "models.py").write_text(NET, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])

    def code(command):
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code or 0

    yield code
    for name in [name for name in sys.modules if name.partition(".")[0] == "mypackage"]:
        del sys.modules[name]


@pytest.mark.slow
def test_the_workflows_command_writes_a_log_with_the_lines_of_the_model(run):
    assert run(IN_WORKFLOW.replace("kim2023", "li2018")) == 1
    log = json.loads(Path("evenkeel.sarif").read_text(encoding="utf-8"))
    assert SARIF.is_valid(log)
    places = [result["locations"][0]["physicalLocation"] for result in log["runs"][0]["results"]]
    line = NET.splitlines().index("        x = self.drop(x)") + 1
    assert {
        "artifactLocation": {"uri": "mypackage/models.py", "uriBaseId": "%SRCROOT%"},
        "region": {"startLine": line},
    } in places


@pytest.mark.slow
def test_exit_codes_are_those_of_the_page(run, capsys):
    command = "evenkeel lint mypackage.models:build_net --input 3x32x32"
    assert run(f"{command} --guideline li2018") == 1
    assert run(f"{command} --guideline li2018 --ignore EK2") == 0
    capsys.readouterr()
    assert run(f"{command} --guideline li2019") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_is_written_in_the_project_counts(run):
    command = "evenkeel lint mypackage.models:build_net --input 3x32x32 --guideline li2018"
    Path("pyproject.toml").write_text('[tool.evenkeel.per-path-ignores]\n"dr*" = ["EK2"]\n', encoding="utf-8")
    assert run(command) == 0
    Path("pyproject.toml").write_text("[tool.evenkeel]\nignored = []\n", encoding="utf-8")
    assert run(command) == 2
