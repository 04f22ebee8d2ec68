"""kind_of_call: the kind of a call by its function, and by what it is given."""

import pytest

from evenkeel.graph.call_kinds import kind_of_call
from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import Layer
from evenkeel.graph.randomness import Law

SIGNAL, OTHER = (Layer(name, Kind.INPUT, "", None, function="input") for name in "ab")
MASK, FIELD = Law(1.0, 1.0), Law(0.0, 1.0)  # what keeps a signal on average, and what replaces it by noise


@pytest.mark.parametrize(
    ("name", "signals", "values", "operands", "factor", "kind"),
    [
        ("add", (SIGNAL, OTHER), 2, 2, None, Kind.JOIN),
        ("add", (SIGNAL,), 1, 2, None, Kind.PASS),
        ("add", (SIGNAL,), 1, 2, FIELD, Kind.NOISE),
        ("mul", (SIGNAL, OTHER), 2, 2, None, Kind.GATE),
        ("mul", (SIGNAL,), 1, 2, MASK, Kind.DROPOUT),
        ("mul", (SIGNAL,), 1, 2, FIELD, Kind.NOISE),
        ("matmul", (SIGNAL,), 1, 2, None, Kind.WEIGHT),
        ("matmul", (SIGNAL, OTHER), 2, 2, None, Kind.GATE),
        ("relu", (SIGNAL,), 1, 1, None, Kind.ACTIVATION),
        ("relu", (SIGNAL,), 1, 1, MASK, Kind.OPAQUE),
    ],
)
def test_the_kind_is_that_of_what_is_done_to_the_signal(name, signals, values, operands, factor, kind):
    assert kind_of_call(name, signals, values, operands, factor) is kind
