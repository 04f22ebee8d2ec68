"""SARIF: lint's findings in the format that code scanning services read."""

from __future__ import annotations

import hashlib
import math
import os
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import quote

from evenkeel.errors import EvenkeelError
from evenkeel.linting.findings import Finding
from evenkeel.linting.rule import Rule
from evenkeel.output.files import finite

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_ADVICE_ONLY = "chen2019"  # its layers are an offer: a network without them has no fault
_ERROR = 1.5  # folded shift above which a finding is an error
_HELP = (
    "## On the command line\n`evenkeel explain {code}` shows this with a bad and a good example. `evenkeel fix TARGET "
    "--input SHAPE --guideline {guideline} --diff` prints the edits as a patch, or in words, with TARGET and SHAPE as "
    "for `evenkeel lint`."
)
_MOST = 1024  # letters of a description that GitHub takes


def to_sarif(findings: Sequence[Finding], rules: Sequence[Rule], *, root: Path, version: str) -> dict[str, Any]:
    """The findings as a SARIF 2.1.0 log, ready for JSON.

    GitHub refuses the whole log if a result has no file. A finding that no source line makes gets the address
    `layers/` and its layer's path, which names no file; the result's logical location is the layer's path in any case.

    Args:
        findings: the findings.
        rules: all rules that were asked, those of the findings among them.
        root: of the source tree, which a code scanning service takes for the root of the repository.
        version: evenkeel's.

    Raises:
        EvenkeelError: a finding's rule is not among the rules.

    >>> log = to_sarif([], [], root=Path(), version="1.0")
    >>> log["version"], log["runs"][0]["results"]
    ('2.1.0', [])
    """
    index = {rule.code: place for place, rule in enumerate(rules)}
    for finding in findings:
        if finding.code not in index:
            raise EvenkeelError(
                f"{finding.path}: {finding.code or 'a finding without code'} is of none of the {len(index)} rules given"
                ": give its rule, too"
            )
    driver = {"name": "evenkeel", "version": version, "rules": [_rule(rule) for rule in rules]}
    run = {
        "tool": {"driver": driver},
        "originalUriBaseIds": {"%SRCROOT%": {"description": {"text": "The root of the source tree."}}},
        "results": [_result(finding, index[finding.code], root.resolve()) for finding in findings],
    }
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(rule: Rule) -> dict[str, Any]:
    first = rule.text.partition("\n\n")[2].partition("\n\n")[0]  # paragraph, which may have a heading
    prose = " ".join(line for line in first.splitlines() if not line.startswith("#"))
    summary = textwrap.shorten(rule.summary or rule.name, _MOST, placeholder=" ...")
    text = f"{rule.text or summary}\n\n{_HELP.format(code=rule.code, guideline=rule.guideline)}"
    return {
        "id": rule.code,
        "name": "".join(word[:1].upper() + word[1:] for word in rule.name.split("-")),
        "shortDescription": {"text": summary},
        "fullDescription": {"text": textwrap.shorten(prose, _MOST, placeholder=" ...") or summary},
        "help": {"text": text, "markdown": text},
        "defaultConfiguration": {"level": _level(rule.guideline, None)},
        "properties": {"tags": [rule.guideline]},
    }


def _result(finding: Finding, index: int, root: Path) -> dict[str, Any]:
    relative = _relative(finding.file, root)
    prints = {"evenkeel/v1": _fingerprint(finding)}
    if relative is None:
        # the one that GitHub reads; its uploader hashes the source line where it has one, and warns of another hash
        prints["primaryLocationLineHash"] = prints["evenkeel/v1"]
    location = {
        "physicalLocation": {
            "artifactLocation": relative or _elsewhere(finding),
            "region": {"startLine": max(finding.line or 1, 1)},
        },
        "logicalLocations": [{"fullyQualifiedName": finding.path, "kind": "module"}],
    }
    return {
        "ruleId": finding.code,
        "ruleIndex": index,
        "level": _level(finding.guideline, finding.shift),
        "message": {"text": f"{finding.path}: {finding.message} {finding.advice}"},
        "locations": [location],
        "partialFingerprints": prints,
        "properties": {
            "shift": finite(finding.shift),
            "inherited": finite(finding.inherited),
            "norm": finding.norm,
            "guideline": finding.guideline,
            "edits": [str(edit) for edit in finding.edits],
        },
    }


def _level(guideline: str, shift: float | None) -> str:
    if guideline == _ADVICE_ONLY:
        return "note"
    folded = 1.0 if shift is None else max(shift, 1 / shift if shift else math.inf)
    return "error" if folded > _ERROR else "warning"


def _relative(file: str | None, root: Path) -> dict[str, str] | None:
    """The address of a file under the root; None for all others."""
    path = None if file is None or _is_no_file(file) or _is_windows(file) else Path(file).resolve()
    if path is None or not path.is_relative_to(root):
        return None
    return {"uri": quote(os.fsencode(path.relative_to(root).as_posix())), "uriBaseId": "%SRCROOT%"}


def _elsewhere(finding: Finding) -> dict[str, str]:
    """The address of a file outside of the root, or of none."""
    if finding.file is None or _is_no_file(finding.file):
        return {"uri": "layers/" + quote(finding.path, errors="surrogatepass"), "uriBaseId": "%SRCROOT%"}
    if _is_windows(finding.file):
        return {"uri": "file:///" + quote(PureWindowsPath(finding.file).as_posix(), safe="/:")}
    return {"uri": Path(finding.file).resolve().as_uri()}


def _is_no_file(file: str) -> bool:
    """Whether a source has a name only, such as "<stdin>"."""
    return file.startswith("<")


def _is_windows(file: str) -> bool:
    """Whether a name stems from Windows, but is read elsewhere."""
    return os.name != "nt" and PureWindowsPath(file).drive[1:2] == ":"


def _fingerprint(finding: Finding) -> str:
    """The same wherever in its file the call is."""
    message = re.sub(r"(?<=\.py):\d+|\bline \d+", "", finding.message)
    return hashlib.sha256("\n".join((finding.code, finding.path, message)).encode(errors="surrogatepass")).hexdigest()
