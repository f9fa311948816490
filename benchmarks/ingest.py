"""Ingest: notes/s and MB/s, cold and with nothing changed, beside python-frontmatter + markdown-it-py on the same text.

    python benchmarks/ingest.py [--sizes 100,1000,10000] [--vault FOLDER --copies 20] [--obsidiantools PYTHON]

The peer only parses (front matter and tokens, thrown away); ours reads, parses, cuts scenes, writes YAML, the ledger
and the words index, and, apart from that, embeds and fills Chroma. Each measurement runs in its own process, so
that the peak memory is its own. The notes are generated: headings, lists, links, every third one a nexus dialogue.

"create us" is what one new file costs the disk right now, for ours writes one per note: ext4 looks long for a free inode
for minutes after many files were deleted (0.03 ms become 0.5), so nothing is deleted before the end, and a second run
within five minutes of the first measures the disk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = {
    "ru": (
        "вода река дождь прогноз модель токен заметка насос теплица хлеб закваска память вопрос ответ словарь ошибка урожай бочка "
        "датчик письмо дорога книга утро вечер измерение уровень порог копия проверка слово смысл сцена"
    ).split(),
    "en": "river flood forecast model token note answer memory garden bread letter reading level error check pump barrel sense".split(),
    "bn": "নদী বৃষ্টি চিঠি শব্দ বাগান রান্না খাতা সকাল ভাষা মডেল উত্তর প্রশ্ন পাঠ বই গাছ জল".split(),
}
ENDINGS = {"ru": ["", "", "а", "ы", "ой", "ам"], "en": ["", "", "s", "ing"], "bn": ["", "", "র", "টি"]}


def sentence(rng: random.Random, language: str) -> str:
    """Six to fourteen words with endings and numbers that differ, so that the vocabulary grows as in real notes."""
    words = [rng.choice(WORDS[language]) + rng.choice(ENDINGS[language]) for _ in range(rng.randint(6, 14))]
    words[rng.randrange(len(words))] += str(rng.randrange(3000))
    marked = rng.randrange(len(words))
    mark = rng.choice(["", "", "**", "*", "`"])
    words[marked] = f"{mark}{words[marked]}{mark}"
    return " ".join(words).capitalize() + "."


def note(number: int, count: int, rng: random.Random) -> str:
    """About 2 KB in one language (6 of 10 Russian), with what real notes hold; every third one is a nexus dialogue."""
    language = rng.choices(["ru", "en", "bn"], [6, 3, 1])[0]

    def say(sentences: int) -> str:
        return " ".join(sentence(rng, language) for _ in range(sentences))

    if number % 3 == 0:
        turns = []
        for turn in range(4):
            role = ("user", "User", "agent", "Assistant")[2 * (turn % 2) :][:2]
            rows = [say(1)] if turn % 2 == 0 else [say(2), "", f"1. {say(1)}", f"2. {say(1)}", f"- {say(1)}"]
            body = "\n".join(f"> {row}" for row in rows)
            uid = f"{number:08d}-0000-4000-8000-{turn:012d}"
            turns.append(f">[!nexus_{role[0]}] **{role[1]}** - 16.06.2025 at 21:{30 + turn}\n{body}\n<!-- UID: {uid} -->\n")
        head = f"---\nnexus: nexus-ai-chat-importer\nprovider: chatgpt\nconversation_id: c{number}\n---\n\n# Title: {say(1)}\n\n"
        return head + "\n\n\n\n".join(turns)
    date = f"2025-{number % 12 + 1:02d}-{number % 28 + 1:02d}"
    parts = [f"---\ntags: [тема/{number % 17}, проба]\ndate: {date}\n---\n# {say(1)}\n", say(2)]
    for section in range(2):
        parts.append(f"## Раздел {section}\n\n{say(3)}")
        parts.append(f"- {say(1)}\n- [ ] [[Заметка {rng.randrange(count)}|{rng.choice(WORDS[language])}]] {say(1)} #проба")
    extra = (
        f"| {rng.choice(WORDS[language])} | % |\n|---|---|\n| {rng.choice(WORDS[language])} | {number} |",
        f"> [!note] {rng.choice(WORDS[language])}\n> {say(1)}",
        f"```python\nlevel = {number}\nprint(level)\n```",
    )
    return "\n\n".join([*parts, extra[number % 3 - 1], say(1)]) + "\n"


def make(vault: Path, count: int) -> int:
    """Write the notes; returns their bytes."""
    rng = random.Random(count)
    total = 0
    for number in range(count):
        path = vault / f"{number % 50:02d}" / f"Заметка {number}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = note(number, count, rng).encode()
        path.write_bytes(data)
        total += len(data)
    return total


def peer(vault: Path) -> float:
    """Seconds of python-frontmatter and markdown-it-py over every note; one whose front matter it cannot read is parsed as it is."""
    import frontmatter
    import yaml
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable("table")
    started = time.perf_counter()
    for path in sorted(vault.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        with contextlib.suppress(yaml.YAMLError, ValueError, TypeError):
            text = frontmatter.loads(text).content
        parser.parse(text)
    return time.perf_counter() - started


def obsidiantools(vault: Path) -> float:
    """Seconds of obsidiantools (links, tags, front matter of every note; no text kept), where it is installed."""
    import obsidiantools.api

    started = time.perf_counter()
    obsidiantools.api.Vault(vault).connect().gather()
    return time.perf_counter() - started


def ours(vault: Path, state: Path) -> dict[str, float]:
    """Seconds of one ingest, and what of it went into the memory (embedding, Chroma)."""
    from vaultllm import config, remember, steps

    job = steps.Job(config.init_workspace(vault, str(state)))
    spent = [0.0]
    refresh = remember.refresh

    def timed(*args: object, **options: object) -> dict[str, object]:
        begun = time.perf_counter()
        found = refresh(*args, **options)  # type: ignore[arg-type]
        spent[0] = time.perf_counter() - begun
        return found

    remember.refresh = timed  # type: ignore[assignment]
    result = steps.ingest(job)
    job.close()
    return {"seconds": result["seconds"], "memory_seconds": spent[0], "parsed": result["notes"]["parsed"]}


def child(what: str, vault: str, state: str) -> None:
    """One measurement, as JSON with the peak memory of this process and of the largest of its children."""
    import resource

    peers = {"peer": peer, "obsidiantools": obsidiantools}
    found = {"seconds": peers[what](Path(vault))} if what in peers else ours(Path(vault), Path(state))
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    print(json.dumps(found | {"mb": own.ru_maxrss / 1024, "child_mb": children.ru_maxrss / 1024, "cpu": cpu}))


def measure(what: str, vault: Path, state: Path, python: str = sys.executable) -> dict[str, float]:
    """Run one measurement in its own process."""
    command = [python, __file__, "--child", what, str(vault), str(state)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def creating(folder: Path, count: int = 1000) -> float:
    """Microseconds of making one small file here, now."""
    folder.mkdir()
    started = time.perf_counter()
    for number in range(count):
        (folder / str(number)).write_bytes(b"1")
    return 1e6 * (time.perf_counter() - started) / count


def row(vault: Path, state: Path, python: str) -> str:
    """The measurements of one vault as a row of the table."""
    disk = creating(vault.parent / "probe")
    size = sum(path.stat().st_size for path in vault.rglob("*.md"))
    cold, same, other = (measure(what, vault, state) for what in ("ours", "ours", "peer"))
    tools = f"{measure('obsidiantools', vault, state, python)['seconds']:.1f}" if python else "-"
    assert same["parsed"] == 0, "the second ingest parsed something"
    count = int(cold["parsed"])
    reading = cold["seconds"] - cold["memory_seconds"]
    cells = (
        f"{count:,}", f"{size / 2**20:.1f}", f"{cold['seconds']:.1f}", f"{cold['memory_seconds']:.1f}", f"{reading:.1f}",
        f"{count / reading:.0f}", f"{size / 2**20 / reading:.2f}", f"{other['seconds']:.2f}", f"{reading / other['seconds']:.2f}",
        tools, f"{same['seconds']:.2f}", f"{cold['mb']:.0f}", f"{cold['child_mb']:.0f}", f"{disk:.0f}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="100,1000,10000", help="how many notes to generate, one table row each")
    parser.add_argument("--vault", help="measure a copy of this vault instead")
    parser.add_argument("--copies", type=int, default=1, help="of the vault")
    parser.add_argument("--obsidiantools", default="", help="a Python that has obsidiantools, to measure it too")
    parser.add_argument("--child", nargs=3)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    names = (
        "notes", "MB", "cold s", "of it memory s", "reading s", "notes/s", "MB/s", "peer s", "reading / peer",
        "obsidiantools s", "no-change s", "peak MB", "peak MB of a reading child", "create us",
    )  # fmt: skip
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    with tempfile.TemporaryDirectory() as scratch:
        for count in [0] if options.vault else map(int, options.sizes.split(",")):
            folder = Path(scratch) / str(count)
            vault, state = folder / "vault", folder / "state"
            vault.mkdir(parents=True)
            if options.vault:
                for copy in range(options.copies):
                    shutil.copytree(options.vault, vault / str(copy), ignore=shutil.ignore_patterns(".*"))
            else:
                make(vault, count)
            print(row(vault, state, options.obsidiantools), flush=True)


if __name__ == "__main__":
    main()
