"""A vault that somebody lives in: notes that are written, edited, renamed, moved, deleted, copied by a sync client; all by a seed.

What each file must hold is remembered, so that it can be told at the end whether anything else changed it. Knows nothing about what
watches the vault.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

FOLDERS = ("", "Дневник", "Projects", "কাজ", "Дневник/2025")
_WORDS = (
    (
        "чайник стоит на столе вечером мы пьём чай с мятой и говорим о саде про яблони которые надо подрезать до весны "
        "сосед принёс лестницу насос молчит вода из колодца холодная записал расход за неделю завтра поеду на станцию"
    ),
    (
        "the pump holds two bars after the third valve was cleaned yesterday and the log shows a slow leak so measure it again "
        "before rain write the reading down compare with last autumn ask whether the seal was ever changed at all"
    ),
    (
        "সকালে নদীর ধারে হাঁটতে গেলাম বাজারে মাছের দাম বেড়েছে মা চিঠি লিখেছেন বাগানে নতুন ফুল ফুটেছে বিকেলে বৃষ্টি হল "
        "তাই ঘরে বসে পুরোনো খাতা পড়লাম আর হিসাব মিলিয়ে রাখলাম কাল আবার যাব"
    ),
)


class Life:
    """The vault, what it must hold, and what happens next."""

    def __init__(self, vault: Path, seed: int) -> None:
        """Of a folder that is there."""
        self.vault = vault
        self.chance = random.Random(seed)
        self.holds: dict[str, bytes] = {}
        """Path -> the bytes of every note that was written and not deleted."""
        self.changes = 0
        """Writes, renames, deletions."""
        self.shift = 0.0
        """Seconds by which the files' times are ahead of the clock, for a machine whose clock was set."""
        self.name = "Запись"
        """What its notes are called, before their number."""
        self._made = 0

    def sentence(self) -> str:
        """Some words that stand in no other sentence in this order."""
        words = self.chance.choice(_WORDS).split()
        return f"{' '.join(self.chance.choices(words, k=self.chance.randint(7, 14)))} {self.chance.randrange(10**6)}."

    def note(self) -> str:
        """The text of a new note: prose, or a short talk."""
        title = self.sentence().rpartition(" ")[0]
        if self.chance.random() < 0.25:
            turns = "\n\n".join(f"{who}: {self.sentence()} {self.sentence()}" for who in ("User", "Assistant") * 2)
            return f"# {title}\n\n{turns}\n"
        parts = [f"## {self.sentence()}\n\n{' '.join(self.sentence() for _ in range(4))}" for _ in range(2)]
        link = f"\n\n[[{Path(self.some()).stem}]]" if self.holds else ""
        return f"---\ntags: [t{self.chance.randrange(9)}]\n---\n# {title}\n\n" + "\n\n".join(parts) + link + "\n"

    def some(self) -> str:
        """A note that is there."""
        return self.chance.choice(sorted(self.holds))

    def new_path(self) -> str:
        """A name that was never used."""
        self._made += 1
        return os.path.join(self.chance.choice(FOLDERS), f"{self.name} {self._made}.md")

    def write(self, path: str, text: str) -> None:
        """As editors save: a file beside it, renamed."""
        place = self.vault / path
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = place.with_name(f".{place.name}.tmp")
        self.holds[path] = text.encode()
        aside.write_bytes(self.holds[path])
        if self.shift:
            found = aside.stat()
            os.utime(aside, ns=(found.st_atime_ns, found.st_mtime_ns + int(self.shift * 1e9)))
        aside.replace(place)
        self.changes += 1

    def create(self) -> str:
        """A new note; its path."""
        path = self.new_path()
        self.write(path, self.note())
        return path

    def edit(self) -> str:
        """A sentence more, or another one in place of the last; its path."""
        path = self.some()
        text = self.holds[path].decode()
        lines = text.splitlines()
        if len(lines) > 12:
            lines = lines[:-1]
        self.write(path, "\n".join([*lines, self.sentence()]) + "\n")
        return path

    def type(self) -> str:
        """Saved again and again while it is written, in place; its path."""
        path = self.some()
        for _ in range(self.chance.randint(5, 20)):
            self.holds[path] += f"{self.sentence()}\n".encode()
            (self.vault / path).write_bytes(self.holds[path])
            self.changes += 1
        keep = self.holds[path].decode().splitlines()[:14]
        self.write(path, "\n".join([*keep, self.sentence()]) + "\n")
        return path

    def rename(self) -> str:
        """Another name, perhaps another folder; the new path."""
        old, new = self.some(), self.new_path()
        (self.vault / new).parent.mkdir(parents=True, exist_ok=True)
        (self.vault / old).rename(self.vault / new)
        self.holds[new] = self.holds.pop(old)
        self.changes += 1
        return new

    def delete(self) -> str:
        """A note less; the path that it had."""
        path = self.some()
        (self.vault / path).unlink()
        del self.holds[path]
        self.changes += 1
        return path

    def conflict(self) -> str:
        """What a sync client leaves when two machines have edited a note; the copy's path."""
        path = self.some()
        stem = path.removesuffix(".md")
        self._made += 1
        copy = f"{stem}.sync-conflict-20251026-{self._made:06d}-ABCDEFG.md"
        self.write(copy, self.holds[path].decode() + self.sentence() + "\n")
        return copy

    def wrong(self) -> list[str]:
        """The notes that do not hold what was written: lost, changed, or come from nowhere (of ours there are none outside our folder)."""
        found = []
        for path, data in sorted(self.holds.items()):
            try:
                if (self.vault / path).read_bytes() != data:
                    found.append(f"{path} was changed")
            except OSError:
                found.append(f"{path} is lost")
        there = {
            file.relative_to(self.vault).as_posix()
            for file in self.vault.rglob("*.md")
            if file.relative_to(self.vault).parts[0] not in (".vaultllm", "vaultllm")
        }
        return found + [f"{path} was not written by the user" for path in sorted(there - self.holds.keys())]
