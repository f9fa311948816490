"""Talks as data sets for training hold them: ShareGPT, OpenAI's `messages` (JSON or JSON Lines), Alpaca.

They name neither times nor message ids. What tools said is left out and counted. Knows nothing about programs' exports.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from vaultllm.chats.turns import conversation, listed, make_turn, mapping, moment, name, spoken
from vaultllm.schema import Conversation, Lines, Role, Turn

if TYPE_CHECKING:
    from vaultllm.config import ScanSettings

_ROLES: dict[str, Role] = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "claude", "model", "bot", "assistant"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_TOOLS = ("tool", "function", "function_call", "observation", "function_response", "tool_call", "tool_response")


def takes_sharegpt(value: dict[str, Any]) -> bool:
    """Whether the object is a talk of ShareGPT's shape."""
    said = listed(value.get("conversations"))
    return bool(said) and isinstance(said[0], dict) and "from" in said[0] and "value" in said[0]


def takes_openai(value: dict[str, Any]) -> bool:
    """Whether the object is a list of messages as OpenAI's API wants them."""
    said = listed(value.get("messages"))
    return bool(said) and isinstance(said[0], dict) and "role" in said[0]


def takes_alpaca(value: dict[str, Any]) -> bool:
    """Whether the object is an instruction with its output."""
    return isinstance(value.get("instruction"), str) and isinstance(value.get("output"), str)


def read_sharegpt(data: dict[str, Any], lines: Lines, settings: ScanSettings, timezone: str) -> Conversation:
    """The conversation, all on the lines of the whole."""
    return _messages(data, listed(data.get("conversations")), "from", "value", lines)


def read_openai(data: dict[str, Any], lines: Lines, settings: ScanSettings, timezone: str) -> Conversation:
    """The conversation, all on the lines of the whole."""
    return _messages(data, listed(data.get("messages")), "role", "content", lines)


def read_alpaca(data: dict[str, Any], lines: Lines, settings: ScanSettings, timezone: str) -> Conversation:
    """One question and its answer; `system` and `history` (pairs) before them, where there are some."""
    said: list[tuple[Role, object]] = [("system", data["system"])] if data.get("system") else []
    for pair in listed(data.get("history")):
        said += zip(("user", "assistant"), listed(pair), strict=False)
    asked = "\n\n".join(one for one in (data.get("instruction"), data.get("input")) if isinstance(one, str) and one.strip())
    said += [("user", asked), ("assistant", data.get("output"))]
    turns = [make_turn(role, one, lines) for role, one in said if isinstance(one, str)]
    left = Counter({"E-MESSAGE": len(said) - len(turns)})
    return conversation(data.get("id"), "", "", "", lines, turns, left)


def _messages(data: dict[str, Any], messages: list[Any], speaker: str, content: str, lines: Lines) -> Conversation:
    left: Counter[str] = Counter()
    turns: list[Turn] = []
    for entry in messages:
        message = mapping(entry)
        who = name(message.get(speaker)).lower()
        role = _ROLES.get(who)
        said, others = spoken(message.get(content))
        if who in _TOOLS or (role and not said.strip() and message.get("tool_calls")):
            left["W-TOOL"] += 1
        elif role is None:
            left["E-MESSAGE"] += 1
        else:
            left["W-BLOCKS"] += others if said.strip() else 0
            turns.append(make_turn(role, said, lines, uid=name(message.get("id"))))
    created = moment(data.get("created_at") or data.get("create_time"))
    return conversation(data.get("id"), data.get("title"), "", created, lines, turns, left)
