"""Which notes are trained on, which are held out, and which only a run's report may look at.

By a hash of the path, so that it never depends on the other notes; and by age: the newest notes are held out until newer
ones come. Pure functions of paths and times. Knows nothing about scenes and examples.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

from vaultllm.text import nfc, sha

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Part(NamedTuple):
    """Where a note belongs."""

    split: Split
    """`train`: learnt; `val`: held out, measured, decided by; `test`: held out, only reported."""
    new: bool = False
    """Held out for its age alone."""

    @property
    def precedence(self) -> int:
        """Of two notes that say the same, the one with the smaller number keeps it.

        What is held out by its path stays held out when a copy of it appears elsewhere; a new note that repeats an old one
        does not take from training what was learnt long ago.
        """
        return 3 if self.new else {"test": 0, "val": 1, "train": 2}[self.split]


def place(path: str) -> float:
    """0..1, the same for both Unicode spellings of a path: a hash."""
    return int(sha("split", nfc(path)), 16) / 16.0**16


def split_of(path: str, val: float, test: float = 0.0) -> Split:
    """By the path alone: `val` for about that share of all paths, `test` for about that share, else `train`.

    The two are taken from both ends of the hash: changing one share moves no note into or out of the other part.
    """
    where = place(path)
    return "val" if where < val else "test" if where >= 1.0 - test else "train"


def parts(times: Mapping[str, str], *, val: float, test: float, newest: float) -> dict[str, Part]:
    """The part of each note; `times` maps notes to ISO 8601 times, empty where unknown.

    Of the notes with a time the newest share is held out too: those that the hash leaves in `train` go to `val`. What is
    promised as a vault grows, for the same shares: a note that the hash holds out stays where it is, whatever else comes or
    goes. A note held out for its age goes to `train` when enough newer ones have come. A note of `train` is held out only
    when *older* notes come: then the newest share is larger.
    """
    dated = sorted((time[:19], place(note), note) for note, time in times.items() if time)
    new = {note for _, _, note in dated[len(dated) - int(newest * len(dated) + 1e-9) :]}
    found = {}
    for note in times:
        split = split_of(note, val, test)
        found[note] = Part("val", True) if split == "train" and note in new else Part(split)
    return found


def settled(parts: Mapping[str, Part], notes: Collection[str]) -> dict[str, Split]:
    """The part of each of these notes, so that with two notes or more neither `train` nor `val` is empty.

    Small vaults need it: a single note is trained on; when nothing fell to `val`, the note with the smallest hash is lent
    to it, and goes back to `train` when another falls there; when nothing fell to `train`, the one with the greatest is.
    """
    split: dict[str, Split] = {note: parts[note].split for note in sorted(notes, key=place)}
    if len(split) < 2:
        return dict.fromkeys(split, "train")

    def of(name: Split) -> list[str]:
        return [note for note, part in split.items() if part == name]

    if not of("train"):
        split[(of("val") or of("test"))[-1]] = "train"
    if not of("val"):
        learnt = of("train")
        split[learnt[0] if len(learnt) > 1 else of("test")[0]] = "val"
    return split


def largest(sizes: Collection[int], share: float) -> float:
    """The most that one source may give so that none gives more than `share` of what all give together then.

    Sources that are larger are cut down to it. Infinite when none has to be, or when there are too few for it to be possible.
    """
    ordered = sorted(sizes, reverse=True)
    rest = float(sum(ordered))
    if not ordered or ordered[0] <= share * rest:
        return float("inf")
    for cut, size in enumerate(ordered, 1):
        rest -= size
        if cut * share >= 1.0:
            break
        most = share * rest / (1.0 - cut * share)  # of `cut` sources that give it and the rest that gives all it has
        if cut < len(ordered) and ordered[cut] <= most:
            return most
    return float("inf")
