"""A template is tried in a process that outlives those that fail and is killed by the endless."""

from __future__ import annotations

import asyncio

import pytest

from appliance.config import Engine, Limits
from appliance.errors import InvalidRequest, RequestUnsafe
from appliance.observe.metrics import Metrics
from appliance.runtime.text_process import TextProcess


def tried(source: str) -> None:
    async def main() -> None:
        process = TextProcess(
            Engine(), Limits(text_process_timeout_s=1.0), Metrics(version="0", series_max=64)
        )
        running = asyncio.create_task(process.run())
        try:
            await process.try_template(source)
        finally:
            running.cancel()
            await asyncio.wait({running})

    asyncio.run(main())


def test_a_template_that_works_is_good() -> None:
    tried("{% for message in messages %}{{ message.content }}{% endfor %}")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for", "can't be used"),
        ("{{ raise_exception('no system') }}", "no system"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_one_that_fails_says_why(source: str, reason: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tried(source)
    assert reason in caught.value.reason


def test_one_that_does_not_end_is_killed() -> None:
    with pytest.raises(RequestUnsafe):
        tried("{% set r = range(99999) %}" + "{% for _ in r %}" * 4 + "{% endfor %}" * 4)
