"""Know the syntaxes in which chat templates write tool calls: one table. Pure.

What this room does: one row for each syntax: how to see that a template uses it, and how a call is
spelt; `tool_grammar` demands calls by it, `call_reader` reads them by it.
What it knows: the templates of the models in the table's rows.
What it never does: guess. A template with tools and no row is refused (`chat`).

How calls are spelt. `opens`, `begins`, calls with `between` between them, `closes`; where
`repeats` is set, each call has its own `opens` and `closes`. A call is `head`, its name, `middle`,
its arguments, `tail`. In these texts OPTIONAL_NEWLINE may stand for a line end or nothing, and
NUMBER for a number that the model counts. Arguments are a JSON object, or tagged: `key_open`, a
name, `key_close`, the value, `value_close` for each, where the text of a string is not quoted.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

OPTIONAL_NEWLINE = "¶"
NUMBER = "№"
_NAME = r"[\w.-]+"


class Form(enum.Enum):
    """What stands between `opens` and `closes`."""

    OBJECTS = "objects"  # JSON objects that hold name and arguments, perhaps in a list
    NAMED = "named"  # a name, then the arguments as a JSON object
    TAGGED = "tagged"  # a name, then each argument between tags


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """How one tagged argument is spelt."""

    key_open: str
    key_close: str
    value_close: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Syntax:
    """One row: see the module's docstring. `marks` and `lacks`: what a template (does not) say."""

    name: str
    marks: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    form: Form = Form.OBJECTS
    opens: str
    begins: str = ""
    head: str
    middle: str
    tail: str = ""
    between: str = ""
    closes: str = ""
    repeats: bool = False
    tags: Tags | None = None
    name_form: str = rf"({_NAME})"
    kept: str = ""  # what of `opens` belongs to the call's own JSON
    at_start: bool = False  # calls stand at the beginning of an answer only

    def spelt(self, text: str) -> str:
        """Give one of the row's texts as it is searched for in what a model wrote."""
        return re.sub(f"[{OPTIONAL_NEWLINE}{NUMBER}]", "", text).strip()


_HEAD, _MIDDLE = '{"name": "', '", "arguments": '
_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>")
_PARAMETER = Tags(key_open="<parameter=", key_close=">\n", value_close="\n</parameter>\n")

# The first row whose marks a template has is taken.
SYNTAXES = (
    # Qwen3-Coder, Qwen3.5, Nemotron 3 Nano, Step 3.5
    Syntax(
        name="qwen_coder",
        marks=("<tool_call>", "<function=", "<parameter="),
        form=Form.TAGGED,
        opens="<tool_call>",
        head="¶<function=",
        middle=">\n",
        tags=_PARAMETER,
        tail="</function>¶",
        closes="</tool_call>",
        between="¶",
        repeats=True,
    ),
    # Seed-OSS
    Syntax(
        name="seed_oss",
        marks=("<seed:tool_call>", "<function=", "<parameter="),
        form=Form.TAGGED,
        opens="<seed:tool_call>",
        head="¶<function=",
        middle=">\n",
        tags=Tags(key_open="<parameter=", key_close=">", value_close="</parameter>\n"),
        tail="</function>¶",
        closes="</seed:tool_call>",
        between="¶",
        repeats=True,
    ),
    # MiniMax M2
    Syntax(
        name="minimax_m2",
        marks=("<minimax:tool_call>", "<invoke name="),
        form=Form.TAGGED,
        opens="<minimax:tool_call>",
        head='¶<invoke name="',
        middle='">\n',
        tags=Tags(key_open='<parameter name="', key_close='">', value_close="</parameter>\n"),
        tail="</invoke>",
        between="¶",
        closes="¶</minimax:tool_call>",
    ),
    # GLM 4.5 to 4.7, Ling 3, Spark 2.5
    Syntax(
        name="glm",
        marks=("<tool_call>", "<arg_key>", "<arg_value>"),
        form=Form.TAGGED,
        opens="<tool_call>",
        head="",
        middle="¶",
        tags=Tags(
            key_open="<arg_key>", key_close="</arg_key>¶<arg_value>", value_close="</arg_value>¶"
        ),
        closes="</tool_call>",
        between="¶",
        repeats=True,
    ),
    # Hermes 2 and 3, Qwen 2.5 and 3, QwQ, Granite 4, Bielik, MiMo-VL, Reka
    Syntax(
        name="hermes",
        marks=("<tool_call>",),
        lacks=("<function=", "<arg_key>", "<tool_calls>", "<invoke", "<|tool_call>"),
        opens="<tool_call>",
        head=f"¶{_HEAD}",
        middle=_MIDDLE,
        tail="}¶",
        closes="</tool_call>",
        between="¶",
        repeats=True,
    ),
    # Mistral Small 3.2, Devstral, Ministral 3
    Syntax(
        name="mistral_args",
        marks=("[TOOL_CALLS]", "[ARGS]"),
        form=Form.NAMED,
        opens="[TOOL_CALLS]",
        head="",
        middle="[ARGS]",
        name_form=rf"({_NAME})(?:\[CALL_ID\][\w-]*)?",
        repeats=True,
    ),
    # Mistral Nemo, Mistral 7B v0.3, Mixtral
    Syntax(
        name="mistral",
        marks=("[TOOL_CALLS]",),
        opens="[TOOL_CALLS]",
        head=_HEAD,
        middle=_MIDDLE,
        tail="}",
        between=", ",
        begins="[",
        closes="]",
    ),
    # Llama 3.1 to 3.3
    Syntax(
        name="llama3_json",
        marks=('{"name": function name, "parameters":',),
        opens=_HEAD,
        head="",
        middle='", "parameters": ',
        tail="}",
        kept=_HEAD,
        at_start=True,
    ),
    # DeepSeek V3.1
    Syntax(
        name="deepseek_v31",
        marks=_DEEPSEEK,
        lacks=("```json",),
        form=Form.NAMED,
        opens="<｜tool▁calls▁begin｜>",
        head="<｜tool▁call▁begin｜>",
        middle="<｜tool▁sep｜>",
        tail="<｜tool▁call▁end｜>",
        closes="<｜tool▁calls▁end｜>",
    ),
    # DeepSeek R1, V3
    Syntax(
        name="deepseek_r1",
        marks=(*_DEEPSEEK, "```json"),
        form=Form.NAMED,
        opens="<｜tool▁calls▁begin｜>",
        head="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        middle="\n```json\n",
        tail="\n```<｜tool▁call▁end｜>",
        between="\n",
        closes="<｜tool▁calls▁end｜>",
    ),
    # Kimi K2
    Syntax(
        name="kimi_k2",
        marks=("<|tool_calls_section_begin|>", "<|tool_call_argument_begin|>"),
        form=Form.NAMED,
        opens="<|tool_calls_section_begin|>",
        head="<|tool_call_begin|>functions.",
        middle=":№<|tool_call_argument_begin|>",
        tail="<|tool_call_end|>",
        closes="<|tool_calls_section_end|>",
    ),
    # Command R7B, Command A
    Syntax(
        name="command_r7b",
        marks=("<|START_ACTION|>", '"tool_name"'),
        opens="<|START_ACTION|>",
        head='{"tool_call_id": "№", "tool_name": "',
        middle='", "parameters": ',
        tail="}",
        between=",\n    ",
        begins="[\n    ",
        closes="\n]<|END_ACTION|>",
    ),
    # Functionary 3.1
    Syntax(
        name="functionary_v31",
        marks=("<function=", "</function>"),
        lacks=("<parameter=", "<tool_call>"),
        form=Form.NAMED,
        opens="<function=",
        head="",
        middle=">",
        closes="</function>",
        repeats=True,
    ),
    # Apriel
    Syntax(
        name="tool_calls_list",
        marks=("<tool_calls>[",),
        opens="<tool_calls>",
        head=_HEAD,
        middle=_MIDDLE,
        tail="}",
        between=", ",
        begins="[",
        closes="]</tool_calls>",
    ),
    # Nemotron Nano v2
    Syntax(
        name="nemotron_v2",
        marks=("<TOOLCALL>",),
        opens="<TOOLCALL>",
        head=_HEAD,
        middle=_MIDDLE,
        tail="}",
        between=", ",
        begins="[",
        closes="]</TOOLCALL>",
    ),
    # Granite 3
    Syntax(
        name="granite_3",
        marks=("<|tool_call|>",),
        opens="<|tool_call|>",
        head=_HEAD,
        middle=_MIDDLE,
        tail="}",
        between=", ",
        begins="[",
        closes="]",
    ),
    # MiniMax M1
    Syntax(
        name="minimax_m1",
        marks=("<tool_calls>", "</tool_calls>"),
        opens="<tool_calls>",
        begins="¶",
        head=_HEAD,
        middle=_MIDDLE,
        tail="}",
        between="\n",
        closes="¶</tool_calls>",
    ),
)
_BY_NAME = {syntax.name: syntax for syntax in SYNTAXES}


def syntax_of(template: str) -> str:
    """Name the syntax of tool calls a template uses; "" if it shows no tools or has no row."""
    if not re.search(r"\btools\b", template):
        return ""
    for syntax in SYNTAXES:
        if all(mark in template for mark in syntax.marks) and not any(
            lack in template for lack in syntax.lacks
        ):
            return syntax.name
    return ""


def find(name: str) -> Syntax:
    """Find a row by the name that `syntax_of` gave."""
    return _BY_NAME[name]
