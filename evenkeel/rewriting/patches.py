"""patch_of: one guideline's edits as a patch of the source that the model's classes are written in, or in words."""

from __future__ import annotations

import ast
import difflib
import inspect
import linecache
import sysconfig
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evenkeel.errors import TraceError
from evenkeel.graph.layer_graph import Layer
from evenkeel.linting.context import Context
from evenkeel.linting.dropout_module import dropout_like
from evenkeel.linting.edits import Correct, Edit, Initialize, Insert, Move, Remove, Swap
from evenkeel.linting.findings import Finding
from evenkeel.linting.linter import examine
from evenkeel.linting.settings import Settings
from evenkeel.model.hooks import free_name
from evenkeel.model.wrappers import unwrapped
from evenkeel.rewriting.fix_report import FixRow
from evenkeel.rewriting.fixer import agree, copy_of, is_safe
from evenkeel.rewriting.operations import Action, EditPlan
from evenkeel.rewriting.source_calls import Change, RewriteError, SourceCode
from evenkeel.rewriting.source_edits import changed_sources, method_of, rewrite_

_UNSAFE = "it changes what the model computes in eval mode, or is a guess: --unsafe allows it"
_NO_EDIT = "no edit does it"
_UNEQUAL = "together the edits would not give the dropouts that are wanted, or another output in eval mode"
_INSTALLED = [Path(sysconfig.get_paths()[name]) for name in ("purelib", "platlib", "stdlib")]


@dataclass(frozen=True)
class Patch:
    """What a guideline's findings ask for.

    Attributes:
        text: a unified diff, for `patch -p1` or `git apply`; "" if nothing can be written so.
        rows: every finding: done if the patch makes its edit, or else the reason why it is left in words.

    >>> Patch("", ()).left
    ()
    """

    text: str
    rows: tuple[FixRow, ...]

    @property
    def left(self) -> tuple[FixRow, ...]:
        """The findings that are left in words."""
        return tuple(row for row in self.rows if not row.done)


@dataclass(frozen=True)
class _Call:
    """A change to one call of a method, and the child that it needs.

    Attributes:
        path: of the module whose method makes the call.
        layer: the call.
        action: what to do with it.
        child: name of the child that it calls then; "" for none.
        module: the child, if it is a new one.
    """

    path: str
    layer: Layer
    action: Action
    child: str = ""
    module: nn.Module | None = None

    @property
    def change(self) -> Change:
        layer = self.layer
        assert layer.file is not None and layer.line is not None
        return Change(layer.file, layer.line, layer.module or layer.call, self.action, self.child, layer.end)

    @property
    def site(self) -> tuple[object, ...]:
        """What it has in common with the same change in other modules of the class."""
        return self.layer.file, self.layer.line, self.layer.end, self.action, self.child, str(self.module)


def patch_of(
    model: nn.Module, example: Any, settings: Settings, *, unsafe: bool = False, root: Path | None = None
) -> Patch:
    """Write one guideline's edits as a patch of the source of the model's classes, as far as that can be.

    A dropout that is a child of the class moves by its name; one that is new is made at the end of `__init__`. A class
    is edited only if all its instances in the model are to be edited alike. What the patch makes of the model is
    checked on a copy: the same output in eval mode, and the dropouts that are wanted.

    Args:
        model: the model.
        example: as for `trace`.
        settings: which findings are fixed, those of one guideline: `wanted("kim2023")`.
        unsafe: also those edits that change what the model computes in eval mode.
        root: the folder that paths in the patch are relative to; the current one if None.

    Raises:
        EvenkeelError: the model cannot be copied.
        TraceError: the forward pass raised.
    """
    with unwrapped(model) as plain:
        context = Context(plain, example)
        found = examine(context, settings)
        reasons = {id(finding): reason for finding in found if (reason := _obstacle(finding, unsafe=unsafe))}
        calls = _planned(context, found, reasons)
        active = [finding for finding in found if id(finding) not in reasons]
        if calls and (reason := _contradiction(context, active, calls)):
            reasons |= {id(finding): reason for finding in active}
            calls = []
        text = _diff(plain, calls, root or Path.cwd())
    return Patch(text, tuple(FixRow.of(finding, reasons.get(id(finding))) for finding in found))


def _obstacle(finding: Finding, *, unsafe: bool) -> str | None:
    if not finding.edits:
        return _NO_EDIT
    return None if unsafe or is_safe(finding) else _UNSAFE


def _planned(context: Context, found: Sequence[Finding], reasons: dict[int, str]) -> list[_Call]:
    """The changes of calls for all findings that can be written so; the others get their reasons."""
    while True:
        active = [finding for finding in found if id(finding) not in reasons]
        edits = [edit for finding in active for edit in finding.edits]
        gone = {edit.layer for edit in edits if isinstance(edit, (Remove, Move, Swap))}
        calls: dict[int, list[_Call]] = {}
        before = len(reasons)
        for finding in active:
            try:
                calls[id(finding)] = [c for edit in finding.edits for c in _calls_of(context, edit, gone)]
            except RewriteError as error:
                reasons[id(finding)] = str(error)
        every = [call for some in calls.values() for call in some]
        for finding in active:
            try:
                for call in calls.get(id(finding), ()):
                    _require_alike(context, call, every)
                    _new_text(context.model, [call])
            except RewriteError as error:
                reasons.setdefault(id(finding), str(error))
        if len(reasons) == before:
            return every


def _calls_of(context: Context, edit: Edit, gone: set[Layer]) -> list[_Call]:
    """The changes of calls that make an edit.

    Raises:
        RewriteError: no change of the user's source does.
    """
    if isinstance(edit, (Correct, Initialize)):
        raise RewriteError("it is of the model's values, not of its source")
    if isinstance(edit, Remove):
        if edit.given and edit.given not in gone:
            raise RewriteError(f"{edit.given.name}, which is to take its place, stays where it is")
        return [_call(context, edit.layer, "remove")]
    if isinstance(edit, Swap):
        return [_call(context, edit.layer, "replace", edit.module)]
    if isinstance(edit, Insert):
        return [_call(context, edit.target, edit.side, edit.module)]
    removed = _call(context, edit.layer, "remove")
    signal = edit.target.inputs[0] if edit.side == "before" else edit.target
    module, own = dropout_like(edit.layer, shape=signal.shape), edit.layer.module
    if module is None:
        raise RewriteError(f"there is no module for what {edit.layer.name} does")
    parent, _, name = edit.layer.path.rpartition(".")
    is_child = type(own) is type(module) and not getattr(own, "inplace", False)
    if is_child and parent == edit.target.caller == edit.layer.caller:  # the child itself moves
        return [removed, _Call(parent, _in_source(context, edit.target), edit.side, name)]
    return [removed, _call(context, edit.target, edit.side, module)]


def _call(context: Context, layer: Layer, action: Action, module: nn.Module | None = None) -> _Call:
    _in_source(context, layer)
    child = ""
    if module is not None:
        label = layer.function if layer.module is None else layer.path.rpartition(".")[2]
        child = free_name(context.model.get_submodule(layer.caller), label if "drop" in label else f"{label}_dropout")
    return _Call(layer.caller, layer, action, child, module)


def _in_source(context: Context, layer: Layer) -> Layer:
    """The layer, whose call a method of a class of the user's makes.

    Raises:
        RewriteError: none does.
    """
    caller = context.model.get_submodule(layer.caller)
    name = type(caller).__name__
    owner = f"{name} ({layer.caller or 'the model'})"
    if layer.file is None or layer.line is None or not Path(layer.file).is_file():
        raise RewriteError(f"no source line is known for {layer.name}, which {owner} calls")
    if any(Path(layer.file).is_relative_to(folder) for folder in _INSTALLED):
        raise RewriteError(
            f"{name} is an installed package's ({layer.where}), not yours to patch; in Python, ek.fix may do it in a "
            "copy of the model"
        )
    if method_of(caller, layer.file, layer.line) is None:
        raise RewriteError(f"{layer.where} is in no method of {owner}, which makes the call")
    return layer


def _require_alike(context: Context, call: _Call, every: Sequence[_Call]) -> None:
    """Refuse a change that another module of the class, or another call of the line, is not to get, too."""
    layer = call.layer
    changed = {other.layer for other in every if other.site == call.site}
    site = layer.site[1:-1]  # in whichever module of the class
    for other in context.graph:
        if other.site[1:-1] == site and other not in changed:
            raise RewriteError(f"{layer.where} also makes {other.name}, which is to stay as it is")


def _contradiction(context: Context, active: Sequence[Finding], calls: Sequence[_Call]) -> str:
    """What is wrong with a copy of the model with the changes made; "" if nothing is."""
    plan = EditPlan(context.model, context.graph, [edit for finding in active for edit in finding.edits])
    after = Context(copy_of(context.model), context.example)
    modules = dict(after.model.named_modules())
    try:
        for path, some in _by_caller(calls).items():
            for call in some:
                if call.module is not None and call.child not in modules[path]._modules:
                    modules[path].add_module(call.child, call.module.train(modules[path].training))
            rewrite_(modules[path], [_moved(call.change, context.model, after.model) for call in some])
        fine = plan.holds(after.graph) and (not all(map(is_safe, active)) or agree(context, after))
    except (RewriteError, TraceError) as error:
        return str(error)
    return "" if fine else _UNEQUAL


def _moved(change: Change, model: nn.Module, copy: nn.Module) -> Change:
    """The same change of a copy: where it is a module that is called, the copy's."""
    places = {id(module): path for path, module in model.named_modules()}
    target: Any = change.target
    target = copy.get_submodule(places[id(target)]) if isinstance(target, nn.Module) else target
    return Change(change.file, change.line, target, change.action, change.child, change.end)


def _by_caller(calls: Iterable[_Call]) -> Mapping[str, list[_Call]]:
    found: dict[str, list[_Call]] = defaultdict(list)
    for call in calls:
        found[call.path].append(call)
    return found


def _new_text(model: nn.Module, calls: Sequence[_Call]) -> tuple[SourceCode, ...]:
    """The methods of one module with its calls changed; also whether new children can be made in its class.

    Raises:
        RewriteError: as for `rewrite_`, or new children cannot be written into the class's `__init__`.
    """
    module = model.get_submodule(calls[0].path)
    sources = changed_sources(module, [call.change for call in calls])
    for call in calls:
        if call.module is not None:
            _made_in(module, sources[0], call.child, call.module)
    return sources


def _diff(model: nn.Module, calls: Sequence[_Call], root: Path) -> str:
    """The unified diff of all files that the changes touch."""
    edits: dict[str, dict[int, SourceCode]] = defaultdict(dict)  # by file and first line
    made: dict[str, dict[tuple[int, str], str]] = defaultdict(dict)  # by file, line to come after, and text
    for some in _by_caller(calls).values():
        module = model.get_submodule(some[0].path)
        for source in changed_sources(module, [call.change for call in some]):
            edits[source.file][source.first] = source
            for call in some:
                if call.module is not None:
                    line, text = _made_in(module, source, call.child, call.module)
                    made[source.file][line, text] = text
    return "".join(_file_diff(file, edits[file], made[file], root) for file in sorted(edits))


def _file_diff(file: str, edits: Mapping[int, SourceCode], made: Mapping[tuple[int, str], str], root: Path) -> str:
    old = _lines_of(file)
    new = list(old)
    for first, source in edits.items():
        for at, line in enumerate(source.text.splitlines(), first - 1):
            new[at] = line + _ending(old[at])
    for line, text in sorted(made, reverse=True):
        new[line - 1] = new[line - 1].rstrip("\r\n") + (_ending(old[line - 1]) or "\n")
        new.insert(line, text + (_ending(old[line - 1]) or "\n"))
    path = Path(file).resolve()
    name = path.relative_to(root.resolve()).as_posix() if path.is_relative_to(root.resolve()) else str(path).lstrip("/")
    lines = difflib.unified_diff(old, new, f"a/{name}", f"b/{name}")
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _lines_of(file: str) -> list[str]:
    """The lines of a file as they end there."""
    with open(file, "rb") as source:
        encoding, _ = tokenize.detect_encoding(source.readline)
    with open(file, encoding=encoding, newline="") as source:
        return list(source)


def _ending(line: str) -> str:
    return line[len(line.rstrip("\r\n")) :]


def _made_in(module: nn.Module, source: SourceCode, child: str, new: nn.Module) -> tuple[int, str]:
    """After which line of the file a new child is made, and by which text.

    Raises:
        RewriteError: the class has no `__init__` there, or no name for the child's class.
    """
    tree = ast.parse("".join(linecache.getlines(source.file)))
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.lineno <= source.first <= (node.end_lineno or 0)
    ]
    owner = max(around, key=lambda node: node.lineno, default=None)
    inits = [n for n in (owner.body if owner else ()) if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    if owner is None or not inits or inits[0].body[0].lineno == inits[0].lineno:
        raise RewriteError(f"{type(module).__name__} has no __init__ in its file where {child} could be made")
    last, line = inits[0].body[-1], linecache.getline(source.file, inits[0].body[0].lineno)
    indent = line[: len(line) - len(line.lstrip())]
    init = inspect.unwrap(type(module).__init__)
    text = f"{indent}{inits[0].args.args[0].arg}.{child} = {_written(new, getattr(init, '__globals__', {}))}"
    return last.end_lineno or last.lineno, text


def _written(module: nn.Module, names: Mapping[str, Any]) -> str:
    """How a dropout module is made, in a file with these global names."""
    kind, rate = type(module), getattr(module, "p", None)
    prefixes = {"nn.": names.get("nn") is torch.nn, "torch.nn.": names.get("torch") is torch}
    prefixes[""] = names.get(kind.__name__) is kind
    prefix = next((prefix for prefix, known in prefixes.items() if known), None)
    plain = kind.__module__ == nn.Dropout.__module__ or prefix == ""
    if prefix is None or not plain or not isinstance(rate, float) or [*module.children()]:
        raise RewriteError(f"{kind.__name__} has no name in the file, or takes more than a rate")
    return f"{prefix}{kind.__name__}({rate:g})"
