"""Calls in a method's source: which one is meant, and the text with it taken out, replaced or wrapped."""

from __future__ import annotations

import ast
import builtins
import hashlib
import os
import re
import sys
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from types import CodeType, FunctionType
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from evenkeel.errors import EvenkeelError


class RewriteError(EvenkeelError):
    """A method's source cannot be edited and is left to the user; the message is the reason, as a clause."""


@dataclass(frozen=True)
class Change:
    """A change to one call in a method's source.

    Attributes:
        file, line: of the call, as a frame that runs it shows them.
        target: what is called: a function, a method of tensors such as `torch.Tensor.mean`, or a child module.
        action: of a call `f(x, ...)`, "remove" leaves `x`, "replace" makes it `self.child(x)`, "before"
            `f(self.child(x), ...)`, and "after" `self.child(f(x, ...))`.
        child: name of the module to call, which the caller registers; of no meaning to "remove".
        end: line and column (in bytes) where the call ends, if known: which of several in the line is meant.
    """

    file: str
    line: int
    target: object
    action: Literal["remove", "replace", "before", "after"]
    child: str = ""
    end: tuple[int, int] | None = None


class SourceCode(NamedTuple):
    r"""The source text of a method: the lines of its def, decorators included, edited or not.

    Attributes:
        name: of the method.
        file: that the method was compiled from.
        first: number of the first line there.
        text: the lines.

    >>> source = SourceCode("forward", "net.py", 7, "    def forward(self, x):\n        return x\n")
    >>> source.parsed().body[0].lineno
    8
    """

    name: str
    file: str
    first: int
    text: str

    @property
    def label(self) -> str:
        """The file's name for the edited text; in angle brackets, so that nothing looks for it on disk."""
        digest = hashlib.sha256(repr(self).encode()).hexdigest()
        return f"<{os.path.basename(self.file)} rewritten {digest[:8]}>"

    @property
    def padded(self) -> str:
        """The text at its lines in its file, as a source of its own."""
        if self.text[:1] in " \t\f":
            return "\n" * (self.first - 2) + "if 1:\n" + self.text
        return "\n" * (self.first - 1) + self.text

    def parsed(self) -> ast.FunctionDef | ast.AsyncFunctionDef:
        """The def as a syntax tree."""
        with quiet():
            node = ast.parse(self.padded).body[0]
        node = node.body[0] if isinstance(node, ast.If) else node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            raise RewriteError(f"{self.name} is not written as a def")
        return node


def file_of(label: str) -> str:
    """The name of the file, without folders, of a file's name or a rewritten source's label.

    >>> file_of("<net.py rewritten 4c8c68c9>"), file_of("nets/net.py")
    ('net.py', 'net.py')
    """
    return os.path.basename(re.sub(r"^<(.+) rewritten \w+>$", r"\1", label))


@contextmanager
def quiet() -> Generator[None]:
    """Let Python compile a user's source once more without warnings of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """A code object and those of the functions inside.

    >>> [code.co_name for code in codes_in((lambda: [lambda: 1]).__code__)]
    ['<lambda>', '<lambda>']
    """
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_in(constant)


def cells_of(function: FunctionType) -> dict[str, Any]:
    """The cells of a function's free variables, by name."""
    return dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))


def owner_of(function: FunctionType) -> str:
    """Name of the class whose body holds a function's def; "" if none does.

    >>> owner_of(Scope.value), owner_of(owner_of)
    ('Scope', '')
    """
    owner = ("", *function.__qualname__.split("."))[-2]
    return owner if owner.isidentifier() else ""


class Scope:
    """What names mean in a method of a module, as far as that is known without running it.

    Args:
        module: the module.
        function: the method.

    Raises:
        RewriteError: the method has no parameter that is its module.

    >>> net = nn.Sequential(nn.ReLU())
    >>> scope = Scope(net, nn.Sequential.forward)
    >>> scope.value(ast.parse("self[0]", mode="eval").body)
    ReLU()
    """

    def __init__(self, module: nn.Module, function: FunctionType) -> None:
        code = function.__code__
        if not code.co_argcount:
            raise RewriteError(f"{function.__qualname__} has no name for its module")
        self.receiver = code.co_varnames[0]
        self._module, self._function, self._cells = module, function, cells_of(function)
        self._local = {name for c in codes_in(code) for name in (*c.co_varnames, *c.co_cellvars)}

    def value(self, node: ast.expr) -> Any:
        """What an expression is that begins with the module or a global name; LookupError if that is not known."""
        if isinstance(node, ast.Name):
            return self._named(self._mangled(node.id))
        if isinstance(node, ast.Subscript):
            return self.value(node.value)[ast.literal_eval(node.slice)]
        if isinstance(node, ast.Attribute) and not isinstance(value := self.value(node.value), Tensor):
            return getattr(value, self._mangled(node.attr))
        raise LookupError

    def _named(self, name: str) -> Any:
        if name == self.receiver:
            return self._module
        if name in self._local:
            raise LookupError
        if name in self._cells:
            return self._cells[name].cell_contents
        names = self._function.__globals__
        return names[name] if name in names else vars(builtins)[name]

    def _mangled(self, name: str) -> str:
        owner = owner_of(self._function).lstrip("_")
        return f"_{owner}{name}" if owner and name.startswith("__") and not name.endswith("__") else name


def place_of(source: SourceCode, scope: Scope, change: Change) -> int:
    """How many of the calls in the line that can be meant end before the one that is.

    Raises:
        RewriteError: there is none, or there are several, and it is not clear which.
    """
    ends = [(call.end_lineno, call.end_col_offset) for call, _ in _candidates(source, scope, change)]
    if change.end in ends:
        return ends.index(change.end)
    if len(ends) != 1:
        raise RewriteError(f"{len(ends) or 'no'} calls {_at(change)} can be the one meant")
    return 0


def edited(source: SourceCode, scope: Scope, change: Change, place: int | None = None) -> SourceCode:
    """A method's source with one call changed, in as many lines, and nothing else.

    Args:
        source: the source.
        scope: what its names mean.
        change: the change.
        place: as `place_of` gave it before calls that end later were taken out; found anew if None.

    Raises:
        RewriteError: as for `place_of`, or the call does not show its signal, or more than its value would change.

    >>> import inspect
    >>> class Net(nn.Module):
    ...     def forward(self, x):
    ...         return functional.dropout(x, 0.5, self.training)  # as in 2014
    >>> source = SourceCode("forward", "net.py", 2, inspect.getsource(Net.forward))
    >>> change = Change("net.py", 3, functional.dropout, "replace", "drop")
    >>> print(edited(source, Scope(Net(), Net.forward), change).text, end="")
        def forward(self, x):
            return self.drop(x)  # as in 2014
    """
    node, at = source.parsed(), _at(change)
    if sum(_binds(n, scope.receiver) for n in ast.walk(node)) > 1:
        raise RewriteError(f"{source.name} gives the name {scope.receiver} to something else, too")
    inside = _body(node)
    number = place_of(source, scope, change) if place is None else place
    call, callee = _candidates(source, scope, change, inside)[number]
    if any(isinstance(n, ast.JoinedStr) and call in ast.walk(n) for n in inside):
        raise RewriteError(f"the call {at} is in an f-string")  # whose positions are wrong before Python 3.12
    signal = call.func.value if callee == "method" and isinstance(call.func, ast.Attribute) else _argument(call, at)
    if change.action in ("remove", "replace") and _effects(call) > _effects(signal):
        raise RewriteError(f"an argument of the call {at} assigns or waits")
    if change.action != "remove" and any(isinstance(n, ast.Expr) and n.value is call for n in inside):
        raise RewriteError(f"the call {at} works in place: what it returns is not used")
    return _spliced(source, call, signal, change.action, f"{scope.receiver}.{change.child}(")


def _body(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.AST]:
    """All nodes of a def, but for its defaults and decorators."""
    return [inner for statement in node.body for inner in ast.walk(statement)]


def _candidates(
    source: SourceCode, scope: Scope, change: Change, inside: list[ast.AST] | None = None
) -> list[tuple[ast.Call, Literal["function", "method"]]]:
    """The calls that a change can mean, in the order in which they end, and how each is made."""
    nodes = _body(source.parsed()) if inside is None else inside
    calls = [node for node in nodes if isinstance(node, ast.Call) and change.line in _lines(node)]
    calls.sort(key=lambda call: (call.end_lineno, call.end_col_offset))
    return [(call, callee) for call in calls if (callee := _callee(call, scope, change.target))]


def _at(change: Change) -> str:
    return f"in {os.path.basename(change.file)}:{change.line}"


def _binds(node: ast.AST, name: str) -> bool:
    if isinstance(node, ast.Name):
        return node.id == name and not isinstance(node.ctx, ast.Load)
    return isinstance(node, ast.arg) and node.arg == name


def _lines(call: ast.Call) -> set[int | None]:
    """The lines that a frame may show while the call runs: of the name after the last dot, or where all begins."""
    if not isinstance(call.func, ast.Attribute):
        return {call.lineno}
    unpacked = any(isinstance(a, ast.Starred) for a in call.args) or not all(k.arg for k in call.keywords)
    # Python 3.10 takes calls with keywords for those of any function, later ones calls of what was imported.
    either = unpacked or (call.keywords and sys.version_info < (3, 11)) or isinstance(call.func.value, ast.Name)
    return {call.func.end_lineno, call.lineno} if either else {call.func.end_lineno}


def _callee(call: ast.Call, scope: Scope, target: object) -> Literal["function", "method", None]:
    """Whether the call is one of the target, and whether as a method of a tensor."""
    try:
        found = scope.value(call.func)
    except Exception:  # whatever attributes raise
        named = isinstance(call.func, ast.Attribute) and getattr(Tensor, call.func.attr, None) is target
        return "method" if named else None
    return "function" if found is target or found is _unseen(target) else None


def _unseen(target: object) -> object:
    """The function that recordings show as the method of tensors that it calls, as they do F.tanh; else the target."""
    name = getattr(target, "__name__", "")
    found = vars(functional).get(name) if getattr(Tensor, name, None) is target else None
    dispatched = not isinstance(found, FunctionType) or "handle_torch_function" in found.__code__.co_names
    return target if dispatched else found


def _argument(call: ast.Call, at: str) -> ast.expr:
    """The argument that is the signal."""
    named = [keyword.value for keyword in call.keywords if keyword.arg in ("input", "x")]
    signal = next(iter([*call.args[:1], *named]), None)
    if signal is None or isinstance(signal, (ast.Starred, ast.GeneratorExp)):
        raise RewriteError(f"the call {at} does not show which argument is the signal")
    return signal


def _effects(node: ast.AST) -> int:
    return sum(isinstance(n, (ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom)) for n in ast.walk(node))


def _spliced(source: SourceCode, call: ast.expr, signal: ast.expr, action: str, child: str) -> SourceCode:
    """The source with the call edited; what is taken out leaves its line breaks, in parentheses."""
    data = source.padded.encode()
    starts = [0, *accumulate(map(len, data.splitlines(keepends=True)))]
    first, begin = (starts[n.lineno - 1] + n.col_offset for n in (call, signal))
    last, end = (starts[(n.end_lineno or 0) - 1] + (n.end_col_offset or 0) for n in (call, signal))
    head, tail = data[first:begin], data[end:last]
    breaks, breaks_after = (b"\n" * part.count(b"\n") for part in (head, tail))

    def opening(at: int) -> bytes:
        return (b" " if data[at - 1 : at].isalnum() else b"") + child.encode()  # as in return(f)(x)

    if action == "remove":
        bare = isinstance(signal, (ast.Name, ast.Attribute, ast.Subscript, ast.Call)) and b"\n" not in data[first:last]
        touching = data[first - 1 : first].isalnum() or data[last : last + 1].isalnum()
        head, tail = (b"", b"") if bare and not touching else (b"(" + breaks, breaks_after + b")")
    elif action == "replace":
        head, tail = opening(first) + breaks, breaks_after + b")"
    elif action == "before":
        head, tail = head + opening(begin), b")" + tail
    else:
        head, tail = opening(first) + head, tail + b")"
    whole = (data[:first] + head + data[begin:end] + tail + data[last:]).decode()
    return source._replace(text=whole[len(source.padded) - len(source.text) :])
