"""Advice in the command line's words: what messages say in Python's, where an option does the same."""

from __future__ import annotations

import re
from typing import Any, TypeVar

T = TypeVar("T")

# What Python's users are told, and what those of the command line are; the longest come first.
_WORDS = (
    (r"judge by held_out= \(with choose=\"best\"\), or undo\(\) where outputs count", "let --held-out decide"),
    (
        r"pass unsure=['\"]write['\"] \(--unsure write\) to replace them, or held_out= and choose=['\"]best['\"] "
        r"\(--held-out\) to let a score decide",
        "--unsure write replaces them, --held-out lets a score decide",
    ),
    (r"call undo\(\) first, or load what training left", "repair the checkpoint that training left"),
    (r"held_out= tells more", "--held-out tells more"),
    (r"held_out= and choose=['\"]best['\"]", "--held-out"),
    (r"held_out=(?:data, choose=\"best\")?", "--held-out"),
    (r"call reestimate_ with unsure=['\"]write['\"]", "repair it with --data and --unsure write"),
    (r"pass prior=['\"]auto['\"]|prior=['\"]auto['\"]", "--prior auto"),
    (r"prior= needs", "--prior needs"),
    (r": pass samples=", ": yield batches whose first tensor has one row a sample"),
    (r"pass match=['\"](\w+)['\"]", r"use --match \1"),
    (r"match=['\"](\w+)['\"]", r"--match \1"),
    (r"relative=True", "--relative"),
    (r"unsure=['\"]write['\"]", "--unsure write"),
    (r"pass forward=lambda model, batch: \.\.\.", "name what runs it: --forward package.module:callable"),
    (
        r"pass score=torch\.nn\.functional\.mse_loss",
        "use --score torch.nn.functional:mse_loss",
    ),
    (r"pass score=lambda outputs, targets: \.\.\.", "use --score package.module:callable, of outputs and targets"),
    (r"pass memory=0", "repair it from Python with memory=0"),
    (r"use drop_last=True or another batch size", "use another --batch-size, or batches of more than one sample"),
    (r"of max_batches=(\d+); ask for fewer or pass None", r"of --max-batches \1; ask for fewer or leave it out"),
    (r"pass a list or a DataLoader", "let the callable return a list or a DataLoader"),
    (
        r"as reestimate_ or correct_ wrote it since training",
        "as a repair wrote it since training",
    ),
    (r"of what reestimate_ or correct_ wrote", "of what a repair wrote"),
    (r"they store what reestimate_ or correct_ wrote", "they store what a repair wrote"),
    (r"reestimate_ or correct_ has taken", "a repair has taken"),
    (r"; reestimate_ repairs it from data", "; `evenkeel repair --data` repairs it"),
    (
        r"[Rr]e-estimate the statistics by reestimate_, or by correct_ if there are no data",
        "Repair the checkpoint by `evenkeel repair`, with --data or without",
    ),
    (r"Re-estimate it from data by reestimate_", "Repair it by `evenkeel repair --data`"),
    (r"re-estimate what is stored by reestimate_", "repair what is stored by `evenkeel repair --data`"),
    (r"to_dict\(\) and save_html\(\) hold them", "--json, --html and a wider terminal show them"),
    (r"which needs unsafe=True", "which needs --unsafe"),
    (r"data_dir \(--data-dir\)", "--data-dir"),
    (r"download=True \(--download\)", "--download"),
    (r"its weights were not loaded", "its weights were not loaded (--weights)"),
    (r", in Python key='[^']*'", ""),
    (r"^((?:held-out data: )?)score (raised|must return|must be called)", r"\1--score \2"),
    (
        r"^prior must be a number of samples, at least 0, one for every norm",
        "--prior must be a number of samples, at least 0",
    ),
    (r"^(tolerance|score|prior|match|unsure|forward) (must|says|is|has)\b", r"--\1 \2"),
    (r"^(mean|std|scale) has (\d+) numbers", r"--\1 has \2 numbers"),
    (r"without mean, std, scale", "without --mean, --std and --scale"),
    (
        r"^held_out is scored twice, and a (\w+) is used up by then",
        r"--held-out is scored twice, and a \1 is used up by then",
    ),
    (
        r"the loader is empty: it yielded no batch",
        "the data are empty: they yielded no batch",
    ),
    (
        r"check that the example has the shape and dtype that the model takes",
        "check that --input, repeated for each input, or what --example returns has the shape and dtype that the model "
        "takes",
    ),
    (r"(?<![.\w`])`?(?:reestimate_|correct_)(?: or correct_)?`?(?![\w(.])", "`evenkeel repair`"),
    (r"`variance_shift`", "`evenkeel shift --data`"),
    (r"`predict_shift`", "`evenkeel shift`"),
    (r"Value error, ", ""),
)
_PATTERNS = tuple((re.compile(pattern), words) for pattern, words in _WORDS)


def for_command_line(value: T) -> T:
    """The same text, or plain data with texts in it, with options in place of Python's arguments.

    >>> for_command_line("the mean was tried: pass match='variance'")
    'the mean was tried: use --match variance'
    """
    return _worded(value)


def _worded(value: Any) -> Any:
    if isinstance(value, str):
        for pattern, words in _PATTERNS:
            value = pattern.sub(words, value)
        return value
    if isinstance(value, dict):
        return {key: _worded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_worded(item) for item in value]
    return value
