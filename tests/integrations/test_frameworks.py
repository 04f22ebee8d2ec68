"""A framework that cannot be imported: one line that says what to do."""

import sys

import pytest

import evenkeel as ek
from evenkeel.integrations.frameworks import importing

OPERATORS = "operator torchvision::nms does not exist"


def refusal(error):
    with pytest.raises(ek.EvenkeelError) as caught, importing("lightning", extra="lightning"):
        raise error
    assert isinstance(caught.value, ImportError) and "\n" not in str(caught.value)
    return str(caught.value)


def chained(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(OPERATORS),
        ImportError(f"DLL load failed while importing\ntorchvision: {OPERATORS}"),
        OSError("torchvision/_C.so: undefined symbol"),
        chained(ModuleNotFoundError("Could not import module 'Trainer'"), RuntimeError(OPERATORS)),
    ],
)
def test_a_torchvision_of_another_torch_is_named(error):
    message = refusal(error)
    assert message.startswith("lightning cannot be imported beside torch ")
    assert "torchvision was built for another torch" in message and "or uninstall it" in message
    assert "torchvision::nms" in message or "undefined symbol" in message


def test_what_is_missing_is_to_be_installed():
    missing = ModuleNotFoundError("No module named 'lightning'", name="lightning")
    assert refusal(missing) == 'lightning is not installed: pip install "evenkeel[lightning]"'
    message = refusal(ImportError("cannot import name 'Trainer' from 'lightning'"))
    assert (
        "cannot import name" in message
        and "torchvision" not in message
        and 'pip install "evenkeel[lightning]"' in message
    )


def test_other_errors_are_none_of_its_business():
    with pytest.raises(ValueError, match="other"), importing("lightning", extra="lightning"):
        raise ValueError("other")


@pytest.mark.parametrize(("door", "framework"), [("lightning", "lightning"), ("hf", "transformers")])
def test_a_broken_framework_is_told_where_users_import(tmp_path, monkeypatch, door, framework):
    (tmp_path / framework).mkdir()
    (tmp_path / framework / "__init__.py").write_text(f"raise RuntimeError({OPERATORS!r})", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [*sys.modules]:
        if name.partition(".")[0] == framework or name in (f"evenkeel.{door}", f"evenkeel.integrations.{door}"):
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ek.EvenkeelError, match=f"{framework} cannot be imported.*torchvision"):
        __import__(f"evenkeel.{door}")
