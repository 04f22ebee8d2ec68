"""Errors in one line."""

from evenkeel.errors import brief, raised


def test_long_messages_are_cut():
    assert len(brief(ValueError("x" * 999))) < 230
    assert raised(ValueError("a\nb")) == "raised ValueError: a b"
