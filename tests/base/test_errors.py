"""How errors are said: ours by their words, others with their type and, where that helps, the place."""

from __future__ import annotations

from rehearsal_kit.base.errors import LeaseError, SettingsError, said, said_where


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def test_our_errors_say_enough_and_others_need_their_type():
    assert said(SettingsError("batch is 0; it must be at least 1.")) == "batch is 0; it must be at least 1."
    assert said(KeyError("x")) == "KeyError: 'x'"


def test_the_place_is_that_of_code_that_is_not_ours():
    assert said_where(raised(LeaseError("somebody else writes there."))) == "somebody else writes there."
    assert said_where(raised(ValueError("3"))).startswith("ValueError: 3 (raised, ")
    assert said_where(ValueError("never raised")) == "ValueError: never raised"
