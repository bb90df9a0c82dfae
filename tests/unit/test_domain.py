"""The words of the domain, checked at birth."""

from __future__ import annotations

import math

import msgspec
import pytest

from appliance.domain import (
    Client,
    ClientKind,
    Digest,
    ModelVersion,
    Origin,
    OutputOptions,
    SamplingOptions,
    StopOptions,
)
from appliance.errors import InvalidRequest

VERSION = ModelVersion(
    model="demo",
    version="2",
    digest=Digest("sha256:0"),
    blob_bytes=1,
    origin=Origin.LOCAL,
    key_id="k",
    signature="s",
)


def test_a_value_can_not_be_changed() -> None:
    client = Client(id="a", kind=ClientKind.LOOPBACK)
    with pytest.raises(AttributeError):
        client.id = "b"  # type: ignore[misc]
    assert client == Client(id="a", kind=ClientKind.LOOPBACK)


def test_a_version_is_labelled_model_at_version() -> None:
    assert VERSION.label == "demo@2"


def test_values_survive_msgpack() -> None:
    data = msgspec.msgpack.encode(VERSION)
    assert msgspec.msgpack.decode(data, type=ModelVersion) == VERSION


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 10**400}, "top_k"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": -1.0}, "min_p"),
        ({"typical_p": 2.0}, "typical_p"),
        ({"repeat_penalty": 0.0}, "repeat_penalty"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": -2.5}, "presence_penalty"),
        ({"penalty_last_n": -1}, "penalty_last_n"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"logit_bias": {-1: 0.0}}, "logit_bias"),
        ({"logit_bias": {7: 101.0}}, "logit_bias[7]"),
        ({"logit_bias": {7: math.nan}}, "logit_bias[7]"),
        ({"logit_bias": dict.fromkeys(range(1025), 0.0)}, "logit_bias"),
    ],
)
def test_a_sampling_option_out_of_range_is_refused_by_name(
    options: dict[str, float], field: str
) -> None:
    with pytest.raises(InvalidRequest) as error:
        msgspec.convert(options, SamplingOptions)
    assert error.value.field == field


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"strings": ("",)}, "stop"),
        ({"strings": ("a" * 257,)}, "stop"),
        ({"strings": ("a",) * 17}, "stop"),
        ({"token_ids": (1,) * 65}, "stop_token_ids"),
    ],
)
def test_a_stop_option_out_of_range_is_refused_by_name(
    options: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidRequest) as error:
        msgspec.convert(options, StopOptions)
    assert error.value.field == field


@pytest.mark.parametrize(
    ("options", "field"),
    [({"n": 0}, "n"), ({"n": 17}, "n"), ({"top_logprobs": 21}, "top_logprobs")],
)
def test_an_output_option_out_of_range_is_refused_by_name(
    options: dict[str, int], field: str
) -> None:
    with pytest.raises(InvalidRequest) as error:
        msgspec.convert(options, OutputOptions)
    assert error.value.field == field


def test_the_edges_of_every_range_are_allowed() -> None:
    SamplingOptions(temperature=0, top_p=0, min_p=1, seed=0, logit_bias={0: -100.0})
    SamplingOptions(temperature=10, seed=2**63 - 1, penalty_last_n=65536)
    StopOptions(max_tokens=0, strings=("a" * 256,) * 16)
    OutputOptions(n=16, top_logprobs=0)
