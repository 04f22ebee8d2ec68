"""resolve: each failure is one line that says what to do."""

import pytest

from evenkeel.errors import EvenkeelError
from evenkeel.io.resolving import resolve


def test_dots_after_the_colon_are_followed():
    assert resolve("os:path.join").__name__ == "join"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("os:pathh", "did you mean path?"),
        ("os:path.joyn", "did you mean join"),
        ("no_such_module:x", "no module 'no_such_module'"),
        ("os.py:x", r"without \.py"),
        ("broken_here:x", r"raised RuntimeError: first second \(broken_here.py:1\)"),
    ],
)
def test_failures_are_one_line(target, message, tmp_path, monkeypatch):
    (tmp_path / "broken_here.py").write_text("raise RuntimeError('first\\nsecond')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EvenkeelError, match=message) as failure:
        resolve(target)
    assert "\n" not in str(failure.value)
