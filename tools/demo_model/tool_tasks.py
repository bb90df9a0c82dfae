"""Generate the chats in which a tool is to be called, or its result told.

What this room does: a table of what can be asked, with many names for each tool and parameter, so
that the model must read both from the tools it is given; draws chats from it.
What it knows: the syntax of a call, `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.
What it never does: decide what is held out (`corpus` does, by the key returned here).
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from tools.demo_model import words

Drawn = tuple[tuple[dict[str, Any], ...], tuple[dict[str, Any], ...], str, str]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One thing a tool can do: names it may have, its parameter, how it is asked for."""

    names: tuple[str, ...]
    parameters: tuple[str, ...]
    description: str
    number: bool
    en: tuple[str, ...]
    zh: tuple[str, ...]
    values: str


KINDS = (
    Kind(
        names=("get_weather", "weather", "weather_lookup", "fetch_weather", "city_weather"),
        parameters=("city", "location", "place"),
        description="Get the weather of a city",
        number=False,
        values="city",
        en=("What is the weather in {}?", "How is the weather in {} today?", "Weather in {}?"),
        zh=("{}的天气怎么样？", "今天{}天气如何？", "查一下{}的天气。"),
    ),
    Kind(
        names=("get_time", "local_time", "time_now", "clock", "time_lookup"),
        parameters=("city", "location", "place"),
        description="Get the local time of a city",
        number=False,
        values="city",
        en=("What time is it in {}?", "Tell me the time in {}.", "Local time in {}?"),
        zh=("{}现在几点？", "告诉我{}的时间。", "查一下{}的时间。"),
    ),
    Kind(
        names=("set_timer", "start_timer", "timer", "countdown", "new_timer"),
        parameters=("minutes", "duration", "length"),
        description="Start a timer in minutes",
        number=True,
        values="number",
        en=("Set a timer for {} minutes.", "Start a {} minute timer.", "Timer: {} minutes."),
        zh=("设一个{}分钟的定时器。", "定时{}分钟。", "{}分钟后提醒我。"),
    ),
    Kind(
        names=("find_person", "get_contact", "lookup_person", "contact", "phone_book"),
        parameters=("name", "person", "contact_name"),
        description="Find the number of a person",
        number=False,
        values="person",
        en=("What is the phone number of {}?", "Find the number of {}.", "How can I call {}?"),
        zh=("{}的电话是多少？", "查一下{}的电话。", "我怎么联系{}？"),
    ),
    Kind(
        names=("get_price", "price_of", "price_lookup", "find_price", "product_price"),
        parameters=("product", "item", "article"),
        description="Get the price of a product",
        number=False,
        values="thing",
        en=("How much is the {}?", "What does the {} cost?", "Price of the {}?"),
        zh=("{}多少钱？", "查一下{}的价格。", "{}的价格是多少？"),
    ),
    Kind(
        names=("check_stock", "stock", "inventory", "stock_level", "get_stock"),
        parameters=("product", "item", "article"),
        description="Check the stock of a product",
        number=False,
        values="thing",
        en=("Is the {} in stock?", "Do we have the {} in stock?", "Stock of the {}?"),
        zh=("{}有货吗？", "查一下{}的库存。", "{}还有库存吗？"),
    ),
    Kind(
        names=("open_ticket", "get_order", "order_status", "track_order", "find_order"),
        parameters=("order", "order_id", "number"),
        description="Get the state of an order",
        number=True,
        values="number",
        en=("Where is order {}?", "What is the state of order {}?", "Track order {}."),
        zh=("订单{}在哪里？", "订单{}的状态是什么？", "查一下订单{}。"),
    ),
)
_VALUES = {
    ("city", "en"): words.EN_CITIES,
    ("city", "zh"): words.ZH_CITIES,
    ("person", "en"): words.EN_PERSONS,
    ("person", "zh"): words.ZH_PERSONS,
    ("thing", "en"): words.EN_THINGS,
    ("thing", "zh"): words.ZH_THINGS,
    ("number", "en"): tuple(str(n) for n in range(1, 100)),
    ("number", "zh"): tuple(str(n) for n in range(1, 100)),
}
_RESULTS = {
    "en": (
        "18 C and sunny",
        "5 C and rain",
        "open",
        "closed",
        "in stock",
        "sold out",
        "on its way",
        "14:30",
        "09:15",
        "21:45",
        "25 euros",
        "99 euros",
        "7 pieces",
        "done",
    ),
    "zh": (
        "18度，晴",
        "5度，有雨",
        "营业中",
        "已关闭",
        "有货",
        "已售完",
        "运输中",
        "14:30",
        "09:15",
        "21:45",
        "25元",
        "99元",
        "7件",
        "已完成",
    ),
}


def _tool(rng: random.Random, kind: Kind) -> tuple[dict[str, Any], str, str]:
    name, parameter = rng.choice(kind.names), rng.choice(kind.parameters)
    described = rng.random() < 0.7  # noqa: PLR2004
    function = {
        "name": name,
        "description": kind.description if described else "",
        "parameters": {
            "type": "object",
            "properties": {parameter: {"type": "integer" if kind.number else "string"}},
            "required": [parameter],
        },
    }
    return {"type": "function", "function": function}, name, parameter


def offer(rng: random.Random, wanted: Kind | None) -> tuple[dict[str, Any], ...]:
    """Draw one to three tools of different kinds, the wanted one among them if there is one."""
    others = [kind for kind in KINDS if kind is not wanted]
    chosen = rng.sample(others, rng.randrange(0 if wanted else 1, 3))
    if wanted:
        chosen.insert(rng.randrange(len(chosen) + 1), wanted)
    return tuple(_tool(rng, kind)[0] for kind in chosen)


def _draw_call(
    rng: random.Random, language: str
) -> tuple[str, tuple[dict[str, Any], ...], dict[str, Any], str]:
    kind = rng.choice(KINDS)
    value = rng.choice(_VALUES[kind.values, language])
    text = rng.choice(kind.en if language == "en" else kind.zh).format(value)
    tools = offer(rng, kind)
    function = next(tool["function"] for tool in tools if tool["function"]["name"] in kind.names)
    parameter = next(iter(function["parameters"]["properties"]))
    argument: str | int = int(value) if kind.number else value
    call = {"name": function["name"], "arguments": {parameter: argument}}
    return text, tools, call, f"tool {kind.names[0]} {call['name']} {parameter} {value}"


def call_text(call: dict[str, Any]) -> str:
    """Write a call the way the model does, and the way the template shows an earlier one."""
    return f"<tool_call>{json.dumps(call, ensure_ascii=False)}</tool_call>"


def draw_tool(rng: random.Random, language: str) -> Drawn:
    """Draw a chat that asks for one of the given tools; the answer is the call."""
    text, tools, call, key = _draw_call(rng, language)
    return ({"role": "user", "content": text},), tools, call_text(call), key


def draw_tool_result(rng: random.Random, language: str) -> Drawn:
    """Draw a chat in which the tool has answered; the answer tells its result."""
    text, tools, call, key = _draw_call(rng, language)
    result = rng.choice(_RESULTS[language])
    messages = (
        {"role": "user", "content": text},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": call},
            ],
        },
        {"role": "tool", "content": result},
    )
    answer = f"The answer is: {result}." if language == "en" else f"结果是：{result}。"
    return messages, tools, answer, f"{key} {result}"
