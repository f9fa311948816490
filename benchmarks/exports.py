"""Exports: MB/s and peak memory of reading a large one as a stream, beside json.load and ijson on the same file.

    python benchmarks/exports.py [--mb 200] [--form chatgpt|telegram|jsonl|zip] [--alone]

The peers only decode (json.load all at once, ijson one conversation after the other); ours finds the talk in each tree, its
variants, times, and counts what is left out. The file is generated: Russian, Bengali and English words, trees with regenerated
answers, tool calls, and the metadata that real exports carry. Each measurement runs in its own process, so that the peak memory is
its own; `--alone` leaves the peers out (json.load wants several times the file's size).
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WORDS = 'вода насос river flood বৃষ্টি নদী модель token словарь answer заметка memory хлеб bread চিঠি "quoted" \\n 😀 урожай level'.split()
STAMP = 1_750_000_000


def said(rng: random.Random, words: int) -> str:
    """That many words, with line breaks."""
    return " ".join(rng.choice(WORDS) + ("\n" if rng.random() < 0.05 else "") for _ in range(words))


def chatgpt(number: int) -> dict[str, Any]:
    """A conversation of about 60 KB: 20 exchanges, every fifth answer regenerated, every fourth with a tool call."""
    rng = random.Random(number)
    nodes: dict[str, Any] = {"root": {"id": "root", "parent": None, "children": [], "message": None}}
    last = "root"

    def add(role: str, text: str, parent: str, kind: str = "text", recipient: str = "all") -> str:
        key = f"{number:08x}-{len(nodes):04d}-4000-8000-000000000000"
        message = {
            "id": key, "author": {"role": role, "name": None, "metadata": {}}, "create_time": STAMP + len(nodes) + 0.125,
            "update_time": None, "content": {"content_type": kind, "parts": [text]}, "status": "finished_successfully", "end_turn": True,
            "weight": 1.0, "recipient": recipient, "channel": None,
            "metadata": {"model_slug": "gpt-4o", "citations": [], "content_references": [], "request_id": key, "timestamp_": "absolute"},
        }  # fmt: skip
        nodes[key] = {"id": key, "message": message, "parent": parent, "children": []}
        nodes[parent]["children"].append(key)
        return key

    for turn in range(20):
        last = add("user", said(rng, 30), last)
        if turn % 4 == 0:
            last = add("tool", said(rng, 60), add("assistant", "search()", last, "code", "browser"))
        if turn % 5 == 0:
            add("assistant", said(rng, 120), last)
        last = add("assistant", said(rng, 200), last)
    return {
        "title": said(rng, 4), "create_time": STAMP + number, "update_time": STAMP, "mapping": nodes,
        "current_node": last, "conversation_id": f"c{number}", "default_model_slug": "gpt-4o", "moderation_results": [],
    }  # fmt: skip


def telegram(number: int) -> dict[str, Any]:
    """One message, as Telegram Desktop writes it."""
    rng = random.Random(number)
    text, who = said(rng, 8), rng.randrange(2)
    return {
        "id": number, "type": "message", "date": "2025-06-16T21:34:40", "date_unixtime": str(STAMP + number * 600), "from": f"Name {who}",
        "from_id": f"user{who}", "text": text, "text_entities": [{"type": "plain", "text": text}],
    }  # fmt: skip


def make(path: Path, megabytes: int, form: str) -> None:
    """Write a file of about that size."""
    head, make_one, joiner, tail = {
        "chatgpt": ("[", chatgpt, ", ", "]"),
        "zip": ("[", chatgpt, ", ", "]"),
        "jsonl": ("", chatgpt, "\n", "\n"),
        "telegram": ('{"name": "N", "type": "personal_chat", "id": 1, "messages": [', telegram, ",\n", "]}"),
    }[form]
    pool = [json.dumps(make_one(number), ensure_ascii=form == "jsonl") for number in range(300)]
    with path.open("w", encoding="utf-8") as file:
        file.write(head)
        number = 0
        while file.tell() < megabytes * 10**6:
            for one in pool:
                # Other ids, same text: writing fast matters more than fresh words.
                file.write((joiner if number else "") + one.replace('"conversation_id": "c', f'"conversation_id": "c{number}-'))
                number += 1
        file.write(tail)
    if form == "zip":
        plain = path.rename(path.with_suffix(".json"))
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.write(plain, "conversations.json")
        plain.unlink()


def ours(path: Path) -> Iterator[int]:
    """Messages, conversation by conversation."""
    from vaultllm.chats import exports
    from vaultllm.config import ScanSettings
    from vaultllm.schema import Problem

    for one in exports.stream(path, ScanSettings(), ""):
        if isinstance(one, Problem):
            raise SystemExit(one.message)
        yield one.seen


def with_ijson(path: Path) -> Iterator[int]:
    """Elements, one by one."""
    import ijson

    with path.open("rb") as file:
        prefix = "messages.item" if file.read(1) == b"{" else "item"
        file.seek(0)
        for one in ijson.items(file, prefix, use_float=True):
            yield len(one.get("mapping", "1"))


def with_json(path: Path) -> Iterator[int]:
    """All at once."""
    with path.open(encoding="utf-8") as file:
        data = json.load(file)
    yield len(data)


METHODS = {"vaultllm": ours, "ijson": with_ijson, "json.load": with_json}


def measure(path: Path, method: str) -> None:
    """Print one row (called in a process of its own)."""
    start = time.perf_counter()
    counted = list(METHODS[method](path)) if method != "vaultllm" else [sum(ours(path))]
    seconds = time.perf_counter() - start
    # Not ru_maxrss: a process inherits that from the one that started it.
    (row,) = (row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
    peak = int(row.split()[1]) / 1024
    size = sum(one.file_size for one in zipfile.ZipFile(path).infolist()) if path.suffix == ".zip" else path.stat().st_size
    speed = size / 1e6 / seconds
    print(f"{method:10} {seconds:8.1f} s {speed:8.1f} MB/s   peak {peak:7.0f} MB   counted {sum(counted)}")


def main() -> None:
    """Generate, then measure each in its own process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mb", type=int, default=200)
    parser.add_argument("--form", choices=("chatgpt", "telegram", "jsonl", "zip"), default="chatgpt")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "METHOD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(Path(options.measure[0]), options.measure[1])
        return
    with tempfile.TemporaryDirectory() as folder:
        suffix = {"jsonl": ".jsonl", "zip": ".zip"}.get(options.form, ".json")
        path = Path(folder) / f"conversations{suffix}"
        make(path, options.mb, options.form)
        print(f"{options.form}: {path.stat().st_size / 1e6:.0f} MB")
        alone = options.alone or options.form in ("jsonl", "zip")
        for method in METHODS if not alone else ("vaultllm",):
            subprocess.run([sys.executable, __file__, "--measure", str(path), method], check=True)


if __name__ == "__main__":
    main()
