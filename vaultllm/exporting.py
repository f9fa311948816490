"""A dataset in the formats of other trainers. Knows nothing of how it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from vaultllm.dataset import Dataset, lines
from vaultllm.files import write_whole
from vaultllm.schema import Example
from vaultllm.splits import SPLITS

Form = Literal["jsonl", "sharegpt", "alpaca"]


def export(dataset: Dataset, form: Form, out: Path) -> list[Path]:
    """Write it for other trainers; returns the files.

    `<split>.jsonl` holds talks and tasks. A `weight` of 1 says that a message is learnt, 0 that it is context: in `jsonl`
    (OpenAI messages) it stands at the assistant's messages, and at the user's where those are learnt; in `sharegpt`
    (conversations) at all. `alpaca` has a record per learnt turn, with what was said before it as instruction and history.
    `<split>.text.jsonl` holds prose as `{"text": …}`, the same in every form.
    """
    shape = {"jsonl": _openai, "sharegpt": _sharegpt, "alpaca": _alpaca}[form]
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for name in SPLITS:
        part = dataset.split(name)
        talks = [record for example in part if example.form != "prose" for record in shape(example)]
        prose = [{"text": example.messages[0].text} for example in part if example.form == "prose"]
        for file, records in ((f"{name}.jsonl", talks), (f"{name}.text.jsonl", prose)):
            write_whole(out / file, lines(records), lasting=True)
            files.append(out / file)
    return files


def _openai(example: Example) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for message in example.messages:
        weight = {"weight": int(message.learn)} if message.role == "assistant" or message.learn else {}
        messages.append({"role": message.role, "content": message.text, **weight})
    return [{"messages": messages}]


def _sharegpt(example: Example) -> list[dict[str, Any]]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    said = [{"from": names[message.role], "value": message.text, "weight": int(message.learn)} for message in example.messages]
    return [{"conversations": said}]


def _alpaca(example: Example) -> list[dict[str, Any]]:
    """A record per learnt turn: the turn before it is its instruction, earlier ones in pairs its history."""
    said = [message.text for message in example.messages]
    records: list[dict[str, Any]] = []
    for place, message in enumerate(example.messages):
        if message.learn:
            earlier = said[: max(0, place - 1)]
            if len(earlier) % 2:  # the owner began, and it is the owner's turns that are learnt: nothing was said before the first
                earlier = ["", *earlier]
            history = [list(pair) for pair in zip(earlier[::2], earlier[1::2], strict=True)]
            records.append({"instruction": said[place - 1] if place else "", "input": "", "output": message.text, "history": history})
    return records
