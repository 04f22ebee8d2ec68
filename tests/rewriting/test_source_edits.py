"""Methods rewritten: the module does what its twin written by hand does, and all else is as it was."""

import abc
import ast
import copy
import gc
import inspect
import linecache
import pickle
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
from marked import ACTIONS, ONLY_REMOVED, SHAPES, imported, plain, twin, whole
from paths import ROOT
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from benchmarks.torchvision_cpu import import_torchvision
from evenkeel.rewriting.source_edits import Change, RewriteError, method_of, rewrite_

X = torch.linspace(-1, 2, 12).reshape(3, 4)


class Net(nn.Module):
    """A network with one dropout."""

    def __init__(self, p=0.5):
        super().__init__()
        self.p, self.fc, self.new = p, nn.Linear(4, 4), nn.Dropout(0.25)

    def forward(self, x):
        y = F.dropout(self.fc(x), self.p, self.training)
        return F.relu(y)

    def doubled(self, x):
        return 2 * F.dropout(x, self.p, self.training)


class Marker(torch.overrides.TorchFunctionMode):
    """Where a function is called, as the interpreter tells it."""

    def __init__(self, file, target):
        super().__init__()
        self.file, self.target, self.line = file, target, None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is self.target and self.line is None:
            self.mark()
        return func(*args, **(kwargs or {}))

    def mark(self, *_):
        frame = sys._getframe(1)
        while frame.f_code.co_filename != self.file or frame.f_locals.get("self") is self:
            frame = frame.f_back
        self.line = frame.f_lineno


def change(net, target=F.dropout, action="remove", child="new", example=X, call=None):
    """A change of the first call of a target that a forward pass makes in the file of the module's class."""
    child_module = net.get_submodule(target) if isinstance(target, str) else None
    file = inspect.getfile(call or type(net).forward)
    marker = Marker(file, target)
    hook = child_module.register_forward_hook(marker.mark) if child_module else None
    with marker:
        (call or net)(example)
    if hook:
        hook.remove()
    return Change(file, marker.line, child_module or target, action, child)


def same(net, other, example=X):
    """Whether two modules return the same bits in both modes."""
    for mode in (True, False):
        outputs = []
        for module in (net, other):
            torch.manual_seed(3)
            outputs.append(module.train(mode)(example))
        if not torch.equal(*outputs):
            return False
    return True


def rewritten(action="remove", net=None):
    net = net or Net()
    rewrite_(net, [change(net, action=action)])
    return net


def tree(function):
    return ast.dump(ast.parse("if 1:\n" + inspect.getsource(function)))


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_twin_written_by_hand(shape, action, tmp_path):
    target, methods = SHAPES[shape]
    if shape in ONLY_REMOVED and action != "remove":
        return
    old = imported(tmp_path, plain(whole(methods)))
    net, other = old.Net(), imported(tmp_path, twin(whole(methods), action)).Net()
    other.load_state_dict(net.state_dict())
    found = change(net, target, action)
    name = method_of(net, found.file, found.line)
    before = inspect.getattr_static(type(net), name)
    rewrite_(net, [found])
    after = inspect.getattr_static(type(net), name)
    assert same(net, other)
    assert tree(after) == tree(inspect.getattr_static(type(other), name))
    assert inspect.getsourcelines(after)[1] == inspect.getsourcelines(before)[1]
    assert len(inspect.getsourcelines(after)[0]) == len(inspect.getsourcelines(before)[0])
    assert inspect.signature(after) == inspect.signature(before)
    assert vars(after) == vars(before) and after.__qualname__ == before.__qualname__
    assert before is inspect.getattr_static(old.Net, name) and type(old.Net()) is old.Net


@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"])
def test_annotations_and_defaults_stay(future, tmp_path):
    methods = """
        return self.inner(x)

    def inner(self, x: torch.Tensor, y: "int" = 1, *, z: float = 2.0) -> torch.Tensor:
        total: Unknown = x
        make = lambda a=y: ⟦F.dropout(⟨a * total⟩, 0.5, self.training)⟧ + z
        return make()
    """
    net = imported(tmp_path, plain(whole(methods, future))).Net()
    before = type(net).inner
    rewrite_(net, [change(net)])
    after = type(net).inner
    assert (after.__annotations__, after.__defaults__, after.__kwdefaults__) == (
        before.__annotations__,
        before.__defaults__,
        before.__kwdefaults__,
    )
    assert torch.equal(net(X), X + 2) and torch.equal(net.inner(X, y=2, z=0.0), 2 * X)


def test_closures_and_cells_stay():
    factor, drop = torch.tensor(2.0), F.dropout

    class Base(nn.Module):
        def forward(self, x):
            return x + 1

    class Local(Base):
        def forward(self, x):
            def inner(y):
                return drop(y * factor, 0.5) if isinstance(self, Local) else y

            return inner(super().forward(x))

    net = Local()
    rewrite_(net, [change(net)])
    assert torch.equal(net(X), (X + 1) * 2)
    factor = torch.tensor(3.0)
    assert torch.equal(net(X), (X + 1) * 3)


def test_changes_of_one_call_after_another_and_of_several_methods():
    net, other = Net(), Net()
    net.a, net.b, net.c = other.a, other.b, other.c = nn.Dropout(0.1), nn.Dropout(0.2), nn.Hardtanh(-1, 2)
    other.load_state_dict(net.state_dict())
    dropout, linear, relu = (
        change(net, action="replace", child="a"),
        change(net, "fc", "after", "b"),
        change(net, F.relu),
    )
    wrapped = Change(relu.file, relu.line, F.relu, "before", "c")
    doubled = change(net, call=net.doubled)
    rewrite_(net, [dropout, linear, dropout, wrapped, doubled])
    other.forward = lambda x: F.relu(other.c(other.a(other.b(other.fc(x)))))
    assert same(net, other) and torch.equal(net.doubled(X), 2 * X)


def test_all_else_is_as_it_was():
    other, net = Net(), Net()
    before = repr(net), list(net.state_dict()), dict(vars(net))
    net = rewritten("replace", net)
    assert (repr(net), list(net.state_dict()), dict(vars(net))) == before
    assert isinstance(net, Net) and type(other) is Net and type(Net()) is Net
    assert Net.forward.__code__.co_filename == __file__
    names = ("__name__", "__qualname__", "__module__", "__doc__")
    assert all(getattr(type(net), name) == getattr(Net, name) for name in names)
    assert net.doubled.__func__ is Net.doubled and type(type(net)(0.1)) is type(net)


def test_the_same_edits_share_a_class_that_goes_when_no_module_needs_it():
    class Local(Net):
        pass

    nets = [rewritten(net=Local()) for _ in range(3)]
    different = rewritten("replace", Local())
    assert len({type(net) for net in nets}) == 1 and type(different) is not type(nets[0])
    assert len(Local.__subclasses__()) == 2
    del nets, different
    gc.collect()
    assert Local.__subclasses__() == []


@pytest.mark.parametrize("stale", [True, False], ids=["by the lines of the original", "by a new recording"])
def test_a_rewritten_module_is_rewritten_again(stale):
    net, other = rewritten("after"), Net()
    first, forward = type(net), change(Net(), action="replace")
    again = forward if stale else change(net, action="replace")
    assert (again.file == __file__) is stale and again.line == forward.line
    rewrite_(net, [again, change(net, call=net.doubled)])
    other.forward = lambda x: F.relu(other.new(other.new(other.fc(x))))
    other.load_state_dict(net.state_dict())
    assert same(net, other) and torch.equal(net.doubled(X), 2 * X)
    assert type(net).__bases__ == (first.__bases__[0], Net) and first is not type(net)


def test_recordings_show_the_lines_of_the_file():
    net = Net()
    layers = {layer.name: layer.line for layer in ek.trace(net, X)}
    rewrite_(net, [change(net)])
    again = ek.trace(net, X)
    assert {layer.name: layer.line for layer in again} == {n: line for n, line in layers.items() if "dropout" not in n}
    assert {layer.file for layer in again if layer.file} == {type(net).forward.__code__.co_filename}


def test_tracebacks_show_the_edited_lines_and_the_original_is_never_taken_for_them():
    net = rewritten()
    try:
        net(torch.ones(3, 5))
    except RuntimeError:
        assert "    y = self.fc(x)\n" in traceback.format_exc()
    source = inspect.getsource(type(net).forward)
    assert "y = self.fc(x)\n" in source and "dropout" not in source
    linecache.checkcache()
    assert inspect.getsource(type(net).forward) == source
    linecache.clearcache()
    with pytest.raises(OSError, match="source"):
        inspect.getsource(type(net).forward)
    rewrite_(net, [change(net, F.relu)])
    assert "return y\n" in inspect.getsource(type(net).forward)


@pytest.mark.parametrize("action", ACTIONS)
def test_copies_and_pickles_are_rewritten_too(action, tmp_path):
    net = rewritten(action)
    torch.save(net, tmp_path / "net.pt")
    copies = [copy.copy(net), copy.deepcopy(net), torch.load(tmp_path / "net.pt", weights_only=False)]
    copies += [pickle.loads(pickle.dumps(net, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    copies += [pickle.loads(pickle._dumps(copies[1]))]  # by Python's own code, and of a copy
    assert all(same(net, other) and type(other) is type(net) for other in copies)
    both = copy.deepcopy(nn.ModuleList([net, net, Net()]))
    assert both[0] is both[1] and type(both[2]) is Net


READ = """
import inspect, pickle, sys, torch
loaded = [pickle.load(open("net.pkl", "rb")), torch.load("net.pt", weights_only=False)]
for net in loaded:
    torch.manual_seed(3)
    x = torch.linspace(-1, 2, 12).reshape(3, 4)
    assert torch.equal(net.train()(x), torch.load("out.pt")), net
    assert "self.new(x)" in inspect.getsource(type(net).forward)
assert type(loaded[0]) is type(loaded[1])
"""


@pytest.mark.slow
def test_another_process_reads_them(tmp_path):
    net = imported(tmp_path, plain(whole(SHAPES["plain"][1]))).Net()
    rewrite_(net, [change(net, action="replace")])
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(net))
    torch.save(net, tmp_path / "net.pt")
    torch.manual_seed(3)
    torch.save(net(X), tmp_path / "out.pt")
    path = [str(tmp_path), str(ROOT)]
    program = f"import sys; sys.path[:0] = {path}\n{READ}"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Stateful(Net):
    def __getstate__(self):
        return {"state": super().__getstate__()}

    def __setstate__(self, state):
        super().__setstate__(state["state"])
        self.restored = True


class Reduced(Net):
    def __reduce__(self):
        return make_reduced, (self.p,)


class ReducedByClass(Net):
    def __reduce__(self):
        return type(self), (self.p,), self.__dict__


def make_reduced(p):
    return Reduced(p)


@pytest.mark.parametrize("cls", [Stateful, Reduced, ReducedByClass])
def test_how_a_class_is_pickled_is_respected(cls):
    net = rewritten("replace", cls(0.3))
    net.restored = False
    for other in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert type(other) is type(net) and other.p == 0.3
        assert getattr(other, "restored", None) is {Stateful: True, Reduced: None, ReducedByClass: False}[cls]


def test_a_local_class_is_copied_and_refuses_to_be_pickled_as_ever():
    class Local(Net):
        pass

    net = rewritten(net=Local())
    assert same(net, copy.deepcopy(net))
    with pytest.raises((AttributeError, pickle.PicklingError), match="Local"):
        pickle.dumps(net)


@pytest.mark.parametrize("action", ["remove", "replace"])
def test_compiled_it_returns_the_same_bits(action):
    torch._dynamo.reset()
    nets = nn.Sequential(rewritten(action), rewritten(action), Net())
    assert same(torch.compile(nets, backend="eager", fullgraph=True), nets)


def test_scripted_it_returns_the_same_bits():
    net = rewritten("replace")
    assert same(torch.jit.script(net), net)


def test_hooks_and_flags_stay():
    net, calls = Net().eval(), []
    net.register_forward_hook(lambda *args: calls.append(args[0] is net))
    parameters = {name: id(p) for name, p in net.named_parameters()}
    rewrite_(net, [change(net)])
    net(X)
    assert calls == [True] * 2 and not net.training
    assert parameters == {name: id(p) for name, p in net.named_parameters()}


def test_no_registry_hears_of_the_new_class():
    known = []

    class Registered(Net):
        def __init_subclass__(cls, *, key, **kwargs):
            known.append((cls, key))

    class One(Registered, key="one"):
        pass

    net = rewritten(net=One())
    assert known == [(One, "one")] and isinstance(net, One)


def test_a_metaclass_makes_the_new_class():
    class Abstract(Net, abc.ABC):
        @abc.abstractmethod
        def name(self): ...

    class Concrete(Abstract):
        def name(self):
            return "concrete"

    net = rewritten(net=Concrete())
    assert net.name() == "concrete" and isinstance(net, Abstract) and isinstance(net, type(net))
    assert not isinstance(Concrete(), type(net))


class Refusing(type(nn.Module)):
    def __new__(cls, name, bases, body):
        if Net not in bases:
            raise ValueError(f"{name} is taken")
        return super().__new__(cls, name, bases, body)


class Taken(Net, metaclass=Refusing):
    pass


class Slotted(Net):
    __slots__ = ("slot",)


class Overridden(Net):
    def forward(self, x):
        return super().forward(x)


def wrapping(function):
    def wrapper(self, x):
        return function(self, x)

    return wrapper


class Wrapped(Net):
    @torch.no_grad()
    def forward(self, x):
        return F.dropout(x, 0.5)


class Autocast(Net):
    @torch.autocast("cpu", enabled=False)
    def forward(self, x):
        return F.dropout(x, 0.5)


class Hidden(Net):
    @wrapping
    def forward(self, x):
        return F.dropout(x, 0.5)


class Property(Net):
    @property
    def dropped(self):
        return F.dropout(X, 0.5)

    def forward(self, x):
        return self.dropped + x


class Static(Net):
    @staticmethod
    def inner(x):
        return F.dropout(x, 0.5)

    def forward(self, x):
        return self.inner(x)


class Lambda(Net):
    forward = lambda self, x: F.dropout(x, 0.5)  # noqa: E731


def helper(x):
    return F.dropout(x, 0.5)


class Helped(Net):
    def forward(self, x):
        return helper(x)


def on_the_instance():
    net = Net()
    net.forward = net.forward
    return net


def from_text(text):
    names = {"Net": Net, "F": F}
    exec(text, names)
    return names["Text"]()


TEXT = "class Text(Net):\n    def forward(self, x):\n        return F.dropout(x, 0.5)\n"
REFUSED = {
    "metaclass": (Taken, "Taken cannot be subclassed: ValueError: Taken is taken"),
    "overridden": (Overridden, "Net.forward is called by another method of its name, in a subclass"),
    "no_grad": (Wrapped, "a decorator wraps Wrapped.forward"),
    "autocast": (Autocast, "a decorator wraps Autocast.forward"),
    "decorator": (Hidden, "no method of Hidden holds test_source_edits.py:"),
    "property": (Property, "a decorator wraps Property.dropped"),
    "static method": (Static, "a decorator wraps Static.inner"),
    "lambda": (Lambda, "forward is not written as a def"),
    "helper": (Helped, "no method of Helped holds"),
    "instance": (on_the_instance, "forward of this Net is set on the instance"),
    "no source": (lambda: from_text(TEXT), "the source of Text.forward cannot be found"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_rewritten_is_left_as_it_was(case):
    make, reason = REFUSED[case]
    net = make()
    cls, before, subclasses = type(net), dict(vars(net)), type(net).__subclasses__()
    file = "<string>" if case == "no source" else __file__
    marker = Marker(file, F.dropout)
    with marker:
        net(X)
    with pytest.raises(RewriteError, match=reason):
        rewrite_(net, [Change(file, marker.line, F.dropout, "remove")])
    assert type(net) is cls and vars(net) == before
    assert cls.__subclasses__() == subclasses


def test_generated_code_is_refused():
    for net in (torch.fx.symbolic_trace(Net()), torch.jit.script(Net())):
        with pytest.raises(RewriteError, match=r"a .*(GraphModule|ScriptModule) runs code that was generated"):
            rewrite_(net, [change(Net())])


def test_slots_are_no_hindrance():
    net = Slotted()
    net.slot = 1
    assert rewritten(net=net).slot == 1


def test_one_change_that_fails_undoes_all():
    net = Net()
    good = change(net)
    for bad in (Change(__file__, good.line, F.relu, "remove"), Change(__file__, good.line, "fc", "replace", "0")):
        with pytest.raises(RewriteError, match=r"in test_source_edits.py:\d+"):
            rewrite_(net, [good, bad])
        assert type(net) is Net
    with pytest.raises(RewriteError, match="cannot be compiled: SyntaxError"):
        rewrite_(net, [change(net, action="after", child="0")])
    assert type(net) is Net
    rewrite_(net, [])
    assert type(net) is Net


def test_a_file_that_changed_since_it_was_imported_is_not_edited(tmp_path):
    net = imported(tmp_path, plain(whole(SHAPES["plain"][1]))).Net()
    found = change(net)
    file = Path(found.file)
    text = file.read_text(encoding="utf-8")
    for changed in (
        text.replace("return F", "return 2 * F"),
        text.replace("def forward", "\n\n    def forward"),
        "x = (",
    ):
        file.write_text(changed, encoding="utf-8")
        with pytest.raises(RewriteError, match=r"the source of Net\.forward has changed since it was imported"):
            rewrite_(net, [found])
    file.write_text(f"# -*- coding: utf-8 -*-\n{text}"[24:], encoding="utf-8")
    rewrite_(net, [found])
    assert same(net, nn.Identity())


def test_sources_that_python_warns_of_are_edited_without_a_word(tmp_path):
    with pytest.warns((SyntaxWarning, DeprecationWarning)):
        net = imported(tmp_path, plain(whole(r"return ⟦F.dropout(⟨x⟩, 0.5)⟧ if '\d' else x"))).Net()
    rewrite_(net, [change(net)])
    assert same(net, nn.Identity())


def test_methods_by_line():
    net = Net()
    lines, first = inspect.getsourcelines(Net.forward)
    assert [method_of(net, __file__, first + i) for i in range(-1, len(lines))] == [None, *["forward"] * len(lines)]
    assert method_of(net, "other.py", first) is None
    net = rewritten(net=net)
    label = type(net).forward.__code__.co_filename
    assert method_of(net, label, first) == method_of(net, __file__, first) == "forward"
    assert method_of(Net(), label, first) is None and method_of(net, label, first - 20) is None


def dense_layer():
    import_torchvision()
    from torchvision.models.densenet import _DenseLayer

    return lambda p: _DenseLayer(4, 3, 2, drop_rate=p), torch.randn(2, 4, 5, 5)


def timm_dense_layer():
    import_torchvision()
    from timm.models.densenet import DenseLayer

    return lambda p: DenseLayer(4, 3, 2, drop_rate=p), torch.randn(2, 4, 5, 5)


def timm_model(name):
    import_torchvision()
    import timm

    return lambda p: timm.create_model(name, drop_rate=p, num_classes=5), torch.randn(2, 3, 64, 64)


REAL = {
    "torchvision DenseLayer": dense_layer,
    "timm DenseLayer": timm_dense_layer,
    "timm EfficientNet": lambda: timm_model("efficientnet_b0"),
    "timm ResNet": lambda: timm_model("resnet18"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_models_lose_their_dropout_and_nothing_else(name):
    make, x = REAL[name]()
    net, other = make(0.5), make(0.0)
    other.load_state_dict(net.state_dict())
    layer = next(layer for layer in ek.trace(net, x) if layer.call is F.dropout)
    state = copy.deepcopy(net.state_dict())
    rewrite_(net, [Change(layer.file, layer.line, layer.call, "remove")])
    assert same(net, other, x)
    other.load_state_dict(state)
    net.load_state_dict(state)
    assert same(pickle.loads(pickle.dumps(net)), other, x)
    assert not any(layer.call is F.dropout for layer in ek.trace(net, x))
