"""Methods of single modules, rewritten: a call taken out, replaced or wrapped, the rest of the source unchanged."""

from __future__ import annotations

import ast
import functools
import inspect
import io
import linecache
import os
import sys
import tokenize
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import CodeType, FunctionType
from typing import Any, cast

import torch
from torch import nn

from evenkeel.errors import brief
from evenkeel.rewriting.source_calls import (
    Change,
    RewriteError,
    Scope,
    SourceCode,
    cells_of,
    codes_in,
    edited,
    owner_of,
    place_of,
    quiet,
)


def method_of(module: nn.Module, file: str, line: int) -> str | None:
    """Name of the method of the module's class, or of its bases, whose source holds a line.

    Args:
        module: the module, rewritten or not.
        file: the file's name, as code objects have it; of a rewritten method also that of the original.
        line: the line.

    Returns:
        The name; None if no method holds the line.

    >>> code = nn.Sequential.forward.__code__
    >>> method_of(nn.Sequential(), code.co_filename, code.co_firstlineno + 1)
    'forward'
    """
    return next((name for name, _, _ in _methods_at(module, file, line)), None)


def rewrite_(module: nn.Module, changes: Sequence[Change]) -> None:
    """Change calls in methods of one module, and of no other: it becomes of a subclass that overrides these methods.

    All else stays: the class's name and other methods, the state dict, control flow, line numbers. The module can be
    copied, pickled, compiled and rewritten again. All changes are made, or none.

    Args:
        module: the module whose methods make the calls.
        changes: the changes, all of them to the source as it is now; the same one twice counts once.

    Raises:
        RewriteError: a call was not found, or not for certain, or the method is no plain one with source.

    >>> class Net(nn.Module):
    ...     def forward(self, x):
    ...         return nn.functional.dropout(x.relu(), 0.5, self.training)
    >>> net, code = Net(), Net.forward.__code__
    >>> line = code.co_firstlineno + 1
    >>> rewrite_(net, [Change(code.co_filename, line, nn.functional.dropout, "remove")])
    >>> print(inspect.getsource(type(net).forward), end="")
        def forward(self, x):
            return x.relu()
    >>> net, isinstance(net, Net), net(torch.tensor([-1.0, 2.0]))
    (Net(), True, tensor([0., 2.]))
    """
    if sources := changed_sources(module, changes):
        _become_(module, _original(type(module)), sources)


def changed_sources(module: nn.Module, changes: Sequence[Change]) -> tuple[SourceCode, ...]:
    """The methods that `rewrite_` gives a module, and those given before; the module stays as it is.

    Raises:
        RewriteError: as for `rewrite_`.
    """
    if isinstance(module, (torch.jit.ScriptModule, torch.fx.GraphModule)):
        raise RewriteError(f"a {type(module).__bases__[0].__name__} runs code that was generated")
    sources = {source.name: source for source in _sources(type(module))}
    planned: list[tuple[int, str, Scope, Change]] = []
    for change in dict.fromkeys(changes):
        name, function = _method_at(module, change.file, change.line)
        source, scope = sources.setdefault(name, sources.get(name) or _read(name, function)), Scope(module, function)
        planned.append((place_of(source, scope, change), name, scope, change))
    for place, name, scope, change in sorted(planned, key=lambda plan: -plan[0]):  # the last first, so that places stay
        sources[name] = edited(sources[name], scope, change, place)
    return tuple(sorted(sources.values()))


class _Rewritten:
    """Base of rewritten classes, before the original."""

    _evenkeel_sources: tuple[SourceCode, ...]

    def __init_subclass__(cls) -> None:
        """Keep the original from registering the class as one more of its subclasses."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        if isinstance(reduced, str):
            return reduced
        cls, original = type(self), _original(type(self))
        make, args, *state = reduced
        make, *args = (original if value is cls else value for value in (make, *args))
        return (_rebuilt, (original, tuple(map(tuple, cls._evenkeel_sources)), make, tuple(args)), *state)


def _rebuilt(original: type, sources: Sequence[tuple[Any, ...]], make: Callable[..., Any], args: Sequence[Any]) -> Any:
    """What pickles and copies of rewritten modules call: a module as the original class makes it, rewritten."""
    module = make(*args)
    _become_(module, original, tuple(SourceCode(*source) for source in sources))
    return module


def _original(cls: type) -> type:
    return cls.__bases__[1] if cls.__bases__[0] is _Rewritten else cls


def _sources(cls: type) -> tuple[SourceCode, ...]:
    return cast("type[_Rewritten]", cls)._evenkeel_sources if cls.__bases__[0] is _Rewritten else ()


def _become_(module: nn.Module, original: type, sources: tuple[SourceCode, ...]) -> None:
    """Make the module one of the subclass of its class with these methods, which is made once."""
    known = (cls for cls in type.__subclasses__(original) if _sources(cls) == sources)
    cls = next(known, None) or _subclass(original, sources)
    try:
        object.__setattr__(module, "__class__", cls)
    except TypeError as error:
        raise RewriteError(f"{original.__name__} cannot be subclassed in place: {brief(error)}") from error


def _subclass(original: type, sources: tuple[SourceCode, ...]) -> type:
    names = ("__doc__", "__module__", "__firstlineno__")
    body: dict[str, Any] = {name: vars(original)[name] for name in names if name in vars(original)}
    body |= {"__qualname__": original.__qualname__, "_evenkeel_sources": sources}
    for source in sources:
        function = inspect.getattr_static(original, source.name, None)
        if not isinstance(function, FunctionType):
            raise RewriteError(f"{original.__name__}.{source.name} is no longer a plain method")
        body |= dict.fromkeys(_names(original, function), _function(function, source))
    try:
        return type(original)(original.__name__, (_Rewritten, original), body)
    except Exception as error:
        raise RewriteError(f"{original.__name__} cannot be subclassed: {brief(error)}") from error


def _function(original: FunctionType, source: SourceCode) -> FunctionType:
    """The original function with another body: its globals, defaults and closure."""
    code = _compiled(source, original, source.label)
    cells = cells_of(original)
    closure = tuple(cells[name] for name in code.co_freevars)
    function = FunctionType(code, original.__globals__, original.__name__, original.__defaults__, closure)
    functools.update_wrapper(function, original)
    del vars(function)["__wrapped__"]  # or else what asks for its source would get the original's
    function.__kwdefaults__ = original.__kwdefaults__
    lines = ["\n"] * (source.first - 1) + list(io.StringIO(source.text))
    linecache.cache[source.label] = (len(source.text), None, lines, source.label)  # None: never out of date
    return function


def _compiled(source: SourceCode, original: FunctionType, file: str) -> CodeType:
    """The code of a def, compiled where its names mean what they mean to the original."""
    old, owner = original.__code__, owner_of(original)
    free = ", ".join(name for name in old.co_freevars if name != "__class__")
    outer = f"def _({free})" if old.co_flags & inspect.CO_NESTED else "if 1"
    nest: Any = ast.parse(f"{outer}:\n {f'class {owner}' if owner else 'if 1'}:\n  pass")
    flags = old.co_flags & annotations.compiler_flag
    try:
        nest.body[0].body[0].body = [source.parsed()]
        with quiet():
            whole = compile(nest, file, "exec", flags, dont_inherit=True)
    except SyntaxError as error:
        raise RewriteError(f"{original.__qualname__} cannot be compiled: {brief(error)}") from error
    found = (c for c in codes_in(whole) if (c.co_name, c.co_firstlineno) == (old.co_name, old.co_firstlineno))
    code = next(found, None)
    if code is None or not set(code.co_freevars) <= set(old.co_freevars):
        raise RewriteError(f"{original.__qualname__} cannot be compiled by itself")
    return code.replace(co_qualname=original.__qualname__) if sys.version_info >= (3, 11) else code


@functools.lru_cache(64)
def _read(name: str, function: FunctionType) -> SourceCode:
    """The source of a function, for certain: the file, compiled again, gives the function's code."""
    code, file = function.__code__, function.__code__.co_filename
    linecache.checkcache(file)
    lines = linecache.getlines(file, function.__globals__)
    flags = code.co_flags & annotations.compiler_flag
    with suppress(SyntaxError, tokenize.TokenError), quiet():
        known = codes_in(compile("".join(lines), file, "exec", flags, dont_inherit=True))
        if code in known:
            block = "".join(inspect.getblock(lines[code.co_firstlineno - 1 :]))
            source = SourceCode(name, file, code.co_firstlineno, block)
            if _symbols(_compiled(source, function, file)) == _symbols(code):
                return source
    what = "has changed since it was imported, or was compiled from another" if lines else "cannot be found"
    raise RewriteError(f"the source of {function.__qualname__} {what}")


def _symbols(code: CodeType) -> tuple[object, ...]:
    return code.co_flags, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars


def _method_at(module: nn.Module, file: str, line: int) -> tuple[str, FunctionType]:
    """The one plain method that holds a line, and that the module's class calls by its name."""
    cls = _original(type(module))
    name, value, function = next(_methods_at(module, file, line), ("", None, None))
    if function is None:
        raise RewriteError(f"no method of {cls.__name__} holds {os.path.basename(file)}:{line}")
    if value is not function:
        raise RewriteError(f"a decorator wraps {function.__qualname__}")
    for alias in _names(cls, function):
        if inspect.getattr_static(cls, alias) is not function:
            raise RewriteError(f"{function.__qualname__} is called by another method of its name, in a subclass")
        if alias in vars(module):
            raise RewriteError(f"{alias} of this {cls.__name__} is set on the instance")
    return name, function


def _methods_at(module: nn.Module, file: str, line: int) -> Iterator[tuple[str, object, FunctionType]]:
    """Names, attributes and functions whose source holds a line, of the original class."""
    labels = {source.name: source.label for source in _sources(type(module))}
    for base in _original(type(module)).__mro__:
        for name, value in vars(base).items():
            function = _innermost(value)
            if function and file in (function.__code__.co_filename, labels.get(name)) and _holds(function, line):
                yield name, value, function


def _innermost(value: object) -> FunctionType | None:
    """The function as it was defined, in an attribute of a class."""
    value = value.fget if isinstance(value, property) else value
    if isinstance(value, (FunctionType, staticmethod, classmethod)):
        value = inspect.unwrap(cast("Any", value))
    return value if isinstance(value, FunctionType) else None


def _holds(function: FunctionType, line: int) -> bool:
    code = function.__code__
    return code.co_firstlineno <= line <= max(at or 0 for c in codes_in(code) for *_, at in c.co_lines())


def _names(cls: type, function: FunctionType) -> list[str]:
    return [name for base in cls.__mro__ for name, value in vars(base).items() if value is function]
