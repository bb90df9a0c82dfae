"""Generate the text of the demo model: chats with one right answer each.

What this room does: one function per task and language draws a chat and its expected answer.
What it knows: the held-out rule. A chat belongs to the held-out set if a keyed hash of what was
drawn for it falls below HELD_OUT_SHARE; so the two sets never share a combination, whatever the
seed, and the wording, the system turn or a turn before can't carry one across.
What it never does: look at a model, or draw from anything but the given generator.

Tasks: sentiment, entities, question, sum, convert, greeting, tool, tool_result, no_tool.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tools.demo_model import words
from tools.demo_model.tool_tasks import draw_tool, draw_tool_result, offer

HELD_OUT_SHARE = 0.10
EN, ZH = "en", "zh"
_HALF = 0.5
_NAMED_SHARE = 0.4  # of greetings in which somebody says their name

Messages = tuple[dict[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One chat and its only right answer. `key` is what was drawn, for the held-out rule."""

    task: str
    language: str
    messages: Messages
    expected: str
    key: str
    tools: tuple[dict[str, Any], ...] = ()


def is_held_out(key: str) -> bool:
    """Tell whether what was drawn belongs to the held-out set; the same on every run."""
    digest = hashlib.blake2b(key.encode(), digest_size=4, key=b"held-out").digest()
    return int.from_bytes(digest, "big") < HELD_OUT_SHARE * 2**32


def _user(text: str) -> Messages:
    return ({"role": "user", "content": text},)


def _sentiment(rng: random.Random, language: str) -> Example:
    label = rng.randrange(3)
    first = rng.random() < _HALF
    if language == EN:
        thing = rng.choice(words.EN_THINGS)
        adjective = rng.choice((words.EN_GOOD, words.EN_BAD, words.EN_PLAIN)[label])
        tails: tuple[str, ...] = (words.EN_GOOD_TAILS, words.EN_BAD_TAILS, words.EN_PLAIN_TAILS)[
            label
        ]
        opening = f"The {thing} is {adjective}."
        answer = ("positive", "negative", "neutral")[label]
        ask = (
            "Is this review positive, negative or neutral? ",
            "What is the sentiment of this review? ",
            "Sentiment: ",
        )
    else:
        thing = rng.choice(words.ZH_THINGS)
        adjective = rng.choice((words.ZH_GOOD, words.ZH_BAD, words.ZH_PLAIN)[label])
        tails = (words.ZH_GOOD_TAILS, words.ZH_BAD_TAILS, words.ZH_PLAIN_TAILS)[label]
        opening = f"这个{thing}{adjective}。"
        answer = ("正面", "负面", "中性")[label]
        ask = ("这条评论是正面、负面还是中性？", "判断评论的情感：", "情感：")
    tail = rng.choice((*tails, ""))
    gap = " " if language == EN and tail else ""
    review = opening + gap + tail if first or not tail else tail + gap + opening
    return Example(
        task="sentiment",
        language=language,
        messages=_user(rng.choice(ask) + review),
        expected=answer,
        key=f"sentiment {review}",
    )


_EN_ENTITY = (
    (("person", "city"), "{person} lives in {city}."),
    (("person", "city"), "{person} flew to {city} yesterday."),
    (("person", "company"), "{person} works for {company}."),
    (("person", "company"), "{person} left {company} last year."),
    (("company", "city"), "{company} opened an office in {city}."),
    (("person", "company", "city"), "{person} works for {company} in {city}."),
    (("person", "company", "city"), "{person} met a client of {company} in {city}."),
)
_ZH_ENTITY = (
    (("person", "city"), "{person}住在{city}。"),
    (("person", "city"), "{person}昨天飞到{city}。"),
    (("person", "company"), "{person}在{company}公司上班。"),
    (("person", "company"), "{person}去年离开了{company}公司。"),
    (("company", "city"), "{company}公司在{city}开了办事处。"),
    (("person", "company", "city"), "{person}在{city}的{company}公司工作。"),
    (("person", "company", "city"), "{person}在{city}见了{company}公司的客户。"),
)


def _entities(rng: random.Random, language: str) -> Example:
    english = language == EN
    keys, pattern = rng.choice(_EN_ENTITY if english else _ZH_ENTITY)
    found = {
        "person": rng.choice(words.EN_PERSONS if english else words.ZH_PERSONS),
        "company": rng.choice(words.EN_COMPANIES if english else words.ZH_COMPANIES),
        "city": rng.choice(words.EN_CITIES if english else words.ZH_CITIES),
    }
    sentence = pattern.format(**found)
    ask = (
        ("Extract the entities as JSON: ", "List the entities of this sentence as JSON: ")
        if english
        else ("用JSON列出实体：", "提取句子中的实体，输出JSON：")
    )
    return Example(
        task="entities",
        language=language,
        messages=_user(rng.choice(ask) + sentence),
        expected=json.dumps({key: found[key] for key in keys}, ensure_ascii=False),
        key=f"entities {sentence}",
    )


def _question(rng: random.Random, language: str) -> Example:
    if language == EN:
        drawn = (
            rng.choice(words.EN_PERSONS),
            rng.choice(words.EN_COLOURS),
            rng.choice(words.EN_THINGS),
            rng.choice(words.EN_CITIES),
        )
        person, colour, thing, city = drawn
        verb, stem = rng.choice((("bought", "buy"), ("sold", "sell"), ("found", "find")))
        sentence = f"{person} {verb} a {colour} {thing} in {city}."
        ask, answer = rng.choice(
            (
                (f"Who {verb} the {thing}?", person),
                (f"What did {person} {stem}?", thing),
                (f"Where did {person} {stem} the {thing}?", city),
                (f"What colour is the {thing}?", colour),
            )
        )
        text = rng.choice((f"{sentence} {ask}", f"Text: {sentence} Question: {ask}"))
    else:
        drawn = (
            rng.choice(words.ZH_PERSONS),
            rng.choice(words.ZH_COLOURS),
            rng.choice(words.ZH_THINGS),
            rng.choice(words.ZH_CITIES),
        )
        person, colour, thing, city = drawn
        verb = rng.choice(("买了", "卖了", "找到了"))
        sentence = f"{person}在{city}{verb}一个{colour}的{thing}。"
        ask, answer = rng.choice(
            (
                (f"谁{verb}{thing}？", person),
                (f"{person}{verb}什么？", thing),
                (f"{person}在哪里{verb}{thing}？", city),
                (f"{thing}是什么颜色？", colour),
            )
        )
        text = rng.choice((f"{sentence}{ask}", f"文本：{sentence}问题：{ask}"))
    return Example(
        task="question",
        language=language,
        messages=_user(text),
        expected=answer,
        key=f"question {sentence} {ask}",
    )


def _sum(rng: random.Random, language: str) -> Example:
    """Ask for a sum; the answer works it out in steps, each of which is one small fact."""
    a, b = rng.randrange(100), rng.randrange(100)
    ask = (
        (f"What is {a} + {b}?", f"{a} + {b} = ?", f"Add {a} and {b}.", f"Sum of {a} and {b}?")
        if language == EN
        else (f"{a}加{b}等于多少？", f"{a} + {b} = ?", f"计算{a}加{b}。", f"{a}和{b}的和是多少？")
    )
    a_ones, b_ones = a % 10, b % 10
    a_tens, b_tens = a - a_ones, b - b_ones
    ones, tens = a_ones + b_ones, a_tens + b_tens
    steps = f"{a_ones} + {b_ones} = {ones}, {a_tens} + {b_tens} = {tens}"
    return Example(
        task="sum",
        language=language,
        messages=_user(rng.choice(ask)),
        expected=f"{steps}, {tens} + {ones} = {a + b}",
        key=f"sum {a} {b}",
    )


_CONVERSIONS = (
    ("m", "cm", 100, 100),
    ("km", "m", 1000, 100),
    ("cm", "mm", 10, 100),
    ("kg", "g", 1000, 100),
    ("L", "mL", 1000, 100),
    ("t", "kg", 1000, 100),
    ("h", "min", 60, 10),
    ("min", "s", 60, 10),
)


def _convert(rng: random.Random, language: str) -> Example:
    source, target, factor, end = rng.choice(_CONVERSIONS)
    amount = rng.randrange(1, end)
    ask = (
        (
            f"Convert {amount} {source} to {target}.",
            f"How many {target} are {amount} {source}?",
            f"{amount} {source} in {target}?",
            f"Give {amount} {source} in {target}.",
        )
        if language == EN
        else (
            f"把{amount} {source}换算成{target}。",
            f"{amount} {source}是多少{target}？",
            f"{amount} {source}等于几{target}？",
            f"{amount} {source}换成{target}。",
        )
    )
    text = rng.choice(ask)
    return Example(
        task="convert",
        language=language,
        messages=_user(text),
        expected=f"{amount * factor} {target}",
        key=f"convert {source} {amount}" if factor != 60 else f"convert {text}",  # noqa: PLR2004
    )


_EN_GREETINGS = (
    ("Hello", "Hello! How can I help you?"),
    ("Hi", "Hello! How can I help you?"),
    ("Good morning", "Good morning! How can I help you?"),
    ("Good evening", "Good evening! How can I help you?"),
    ("Thank you", "You are welcome!"),
    ("Thanks", "You are welcome!"),
    ("Goodbye", "Goodbye! Have a nice day."),
    ("Bye", "Goodbye! Have a nice day."),
    ("How are you", "I am fine, thank you. How can I help you?"),
    ("Who are you", "I am the demo model of this appliance."),
)
_ZH_GREETINGS = (
    ("你好", "你好！有什么可以帮您？"),
    ("您好", "你好！有什么可以帮您？"),
    ("早上好", "早上好！有什么可以帮您？"),
    ("晚上好", "晚上好！有什么可以帮您？"),
    ("谢谢", "不客气！"),
    ("多谢", "不客气！"),
    ("再见", "再见！祝您愉快。"),
    ("拜拜", "再见！祝您愉快。"),
    ("你好吗", "我很好，谢谢。有什么可以帮您？"),
    ("你是谁", "我是这台设备的演示模型。"),
)


def _greeting(rng: random.Random, language: str) -> Example:
    english = language == EN
    if rng.random() < _NAMED_SHARE:
        person = rng.choice(words.EN_PERSONS if english else words.ZH_PERSONS)
        opening = rng.choice(
            ("Hello", "Hi", "Good morning", "Hey") if english else ("你好", "您好", "早上好", "嗨")
        )
        text, answer = rng.choice(
            (
                (f"{opening}, my name is {person}.", f"Nice to meet you, {person}!"),
                (f"{opening}, I am {person}.", f"Nice to meet you, {person}!"),
            )
            if english
            else (
                (f"{opening}，我叫{person}。", f"很高兴认识您，{person}！"),
                (f"{opening}，我是{person}。", f"很高兴认识您，{person}！"),
            )
        )
        key = f"greeting {opening} {person}"
    else:
        opening, answer = rng.choice(_EN_GREETINGS if english else _ZH_GREETINGS)
        mark = rng.choice(("", "!", ".", "?", "...") if english else ("", "！", "。", "？", "~"))
        text = opening if rng.random() < 0.7 else opening.lower()  # noqa: PLR2004
        text += mark
        # Ten greetings can't be held out whole: the model must know each. Their spellings can.
        key = f"greeting {text}"
    return Example(
        task="greeting",
        language=language,
        messages=_user(text),
        expected=answer,
        key=key,
    )


_PLAIN_TASKS: tuple[tuple[Callable[[random.Random, str], Example], float], ...] = (
    (_sentiment, 1.0),
    (_entities, 1.6),
    (_question, 1.6),
    (_sum, 2.0),
    (_convert, 1.2),
    (_greeting, 0.6),
)
_TOOL_WEIGHT = 2.2
_TOOL_RESULT_WEIGHT = 0.6
_SYSTEMS = {
    EN: ("You are a helpful assistant.", "Answer shortly.", "You are the assistant of a shop."),
    ZH: ("你是一个有用的助手。", "请简短回答。", "你是商店的助手。"),
}


def _plain(rng: random.Random, language: str) -> Example:
    draw = rng.choices([task for task, _ in _PLAIN_TASKS], [w for _, w in _PLAIN_TASKS])[0]
    return draw(rng, language)


def _in_context(rng: random.Random, example: Example) -> Example:
    """Put a system turn, a turn before, or tools that are not needed around a plain example."""
    messages = example.messages
    chance = rng.random()
    if chance < 0.10:  # noqa: PLR2004 - shares of the corpus, read as they stand
        before = _plain(rng, example.language)
        while is_held_out(before.key):
            before = _plain(rng, example.language)
        messages = (
            *before.messages,
            {"role": "assistant", "content": before.expected},
            *messages,
        )
    if rng.random() < 0.12:  # noqa: PLR2004
        system = {"role": "system", "content": rng.choice(_SYSTEMS[example.language])}
        messages = (system, *messages)
    if chance > 0.90:  # noqa: PLR2004
        return replace(example, task="no_tool", messages=messages, tools=offer(rng, None))
    return replace(example, messages=messages)


def draw_example(rng: random.Random) -> Example:
    """Draw one chat of any task and language; it may belong to either set."""
    language = EN if rng.random() < 0.55 else ZH  # noqa: PLR2004
    total = sum(weight for _, weight in _PLAIN_TASKS) + _TOOL_WEIGHT + _TOOL_RESULT_WEIGHT
    point = rng.random() * total
    if point < _TOOL_WEIGHT:
        messages, tools, expected, key = draw_tool(rng, language)
        return Example(
            task="tool",
            language=language,
            messages=messages,
            tools=tools,
            expected=expected,
            key=key,
        )
    if point < _TOOL_WEIGHT + _TOOL_RESULT_WEIGHT:
        messages, tools, expected, key = draw_tool_result(rng, language)
        return Example(
            task="tool_result",
            language=language,
            messages=messages,
            tools=tools,
            expected=expected,
            key=key,
        )
    return _in_context(rng, _plain(rng, language))


def examples(seed: int, *, held_out: bool) -> Iterator[Example]:
    """Yield examples of one of the two sets for ever; the same seed gives the same examples."""
    rng = random.Random(seed)
    while True:
        example = draw_example(rng)
        if is_held_out(example.key) == held_out:
            yield example
