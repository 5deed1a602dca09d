"""One tree of errors, all of it public."""

from __future__ import annotations

import inspect

import pytest

import forebay
from forebay import errors

EVERY_ERROR = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", EVERY_ERROR)
def test_an_error_is_of_the_tree_public_and_explained(kind: type[Exception]) -> None:
    assert issubclass(kind, errors.ForebayError)
    assert getattr(forebay, kind.__name__) is kind
    assert kind.__name__ in forebay.__all__
    assert inspect.getdoc(kind)


def test_a_databases_error_keeps_its_sqlstate() -> None:
    assert errors.RowError("refused", sqlstate="23503").sqlstate == "23503"
    assert errors.RowError("refused").sqlstate is None


def test_a_wrong_setting_is_a_value_error() -> None:
    assert issubclass(errors.SettingsError, ValueError)
