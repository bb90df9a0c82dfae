"""The tree of errors: codes, sentences, and the way over a process boundary."""

from __future__ import annotations

import inspect
import re

import pytest

from appliance import errors
from appliance.errors import ApplianceError, FieldValue, concrete_classes, from_wire

_EXAMPLES: dict[str, FieldValue] = {
    "str": "word",
    "int": 3,
    "float": 1.5,
    "float | None": None,
    "bool": True,
}


def example(cls: type[ApplianceError]) -> ApplianceError:
    parameters = inspect.signature(cls.__init__).parameters
    return cls(
        **{
            name: _EXAMPLES[str(parameter.annotation)]
            for name, parameter in parameters.items()
            if name != "self"
        }
    )


def test_codes_are_unique_and_in_capitals() -> None:
    codes = [cls.code for cls in concrete_classes()]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[A-Z][A-Z_]*", code) for code in codes)


def test_every_class_is_listed_and_only_leaves_have_codes() -> None:
    defined = {
        cls
        for _, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, ApplianceError)
    }
    leaves = {cls for cls in defined if not cls.__subclasses__()}
    assert set(concrete_classes()) == leaves


@pytest.mark.parametrize("cls", concrete_classes())
def test_a_sentence_names_fields_that_exist(cls: type[ApplianceError]) -> None:
    error = example(cls)
    assert "?" not in error.message
    assert set(re.findall(r"\{(\w+)", cls.sentence)) <= set(error.fields)


@pytest.mark.parametrize("cls", concrete_classes())
def test_an_error_crosses_a_process_boundary_unchanged(cls: type[ApplianceError]) -> None:
    error = example(cls)
    other = from_wire(error.code, error.fields)
    assert type(other) is cls
    assert other.fields == error.fields
    assert other.message == error.message


def test_what_names_a_time_to_wait_is_retryable() -> None:
    for cls in concrete_classes():
        if "retry_after_s" in cls.sentence:
            assert cls.retryable


def test_an_abstract_class_can_not_be_raised() -> None:
    with pytest.raises(AssertionError, match="abstract"):
        errors.Overloaded()
