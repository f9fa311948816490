"""`bench links`: how well the memory finds what the owner linked, on anyone's vault, with no labels.

A share of the pairs of notes that link to each other is chosen, and all links between the two are taken out, their text with
them, from a copy of the notes. Each hidden link is then a question: the passage it stood in, without it; its answer is the
note it meant. Notes that the asking note still links to, and its other hidden targets, are left out of the ranking, as they
would be right answers too (the filtered ranking of Bordes et al. 2013). Knows nothing about terminals.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vaultllm import markdown, scenes, vault
from vaultllm.bench import asking
from vaultllm.bench.asking import Scores
from vaultllm.bench.data import Skipped
from vaultllm.bench.recalled import temporary
from vaultllm.config import MemorySettings, Workspace
from vaultllm.errors import DataError, VaultllmError
from vaultllm.ledger import Ledger
from vaultllm.links import Resolver
from vaultllm.schema import Link, Note, Progress, Report, Scene, silent
from vaultllm.text import WORD, encodable

SHARE = 0.3  # of the linked pairs is hidden
MOST = 500  # hidden links are asked about, at most
FEWEST_WORDS = 3  # a passage of fewer words without its link asks nothing
_NESTED = 4  # times that a line is gone over: an image that is a link stands within another link

Pairs = dict[tuple[str, str], int]


class Hidden(NamedTuple):
    """One hidden link."""

    source: str
    """Path of the note it stood in."""
    target: str
    """Path of the note it meant."""
    line: int
    """Where it stood."""


class Posed(NamedTuple):
    """A hidden link as a question."""

    hidden: Hidden
    """The link."""
    text: str
    """The words of the passage that it stood in."""
    known: frozenset[str]
    """Notes that are no answers: the source, and what it links to besides the target."""


def links_bench(
    workspace: Workspace, *, k: int = 10, share: float = SHARE, most: int = MOST, seed: int = 0, progress: Report = silent
) -> dict[str, Any]:
    """Hide `share` of the vault's linked pairs of notes and ask for them with each leg alone and each kind of resonance on and off.

    Returns `links` (pairs of notes, directed), `hidden` (of them), `questions` (at most `most`), `arms`: name -> {`recall@k`,
    `ndcg@10`, `mrr`, …, `latency_ms_p50` of the ranking, …}, `better_half` (`words` or `dense`), `gain` (recall@k of all over
    that half: mean, low, high of a bootstrap over notes), `skipped`. The vault is only read. Raises DataError when no links are
    there to hide.
    """
    skipped = Skipped()
    pairs: Pairs = {}
    chosen: set[tuple[str, str]] = set()

    def fill(folder: Path) -> Path:
        nonlocal pairs, chosen
        found = vault.scan(workspace.vault, workspace.settings.scan, workspace.settings.own_folders)
        paths = [file.path for file in found.files]
        resolver = Resolver(vault.all_files(workspace.vault))
        pairs = _pairs(workspace, paths, resolver, skipped, progress)
        chosen = _chosen(pairs, share, seed)
        _copy(workspace, paths, resolver, chosen, folder / "vault", progress)
        return folder / "vault"

    with temporary(workspace.settings, fill, progress) as (job, seconds):
        posed = _posed(job.ledger, pairs, chosen, skipped)
        if not posed:
            why = skipped.sentence() or f"{len(pairs)} links between notes in this vault"
            raise DataError(f"there are no links that could be hidden and asked for: {why}", path=str(workspace.vault))
        asked = sorted(random.Random(seed).sample(posed, min(most, len(posed))))
        arms = _arms(workspace.settings.memory)
        found: dict[str, Any] = {}
        rows: dict[str, list[Scores]] = {}
        for number, (name, settings) in enumerate(arms.items()):
            answers = []
            for one in asked:
                answers.append(asking.ask(job.ledger, job.workspace.memory, settings, one.text, "path", max(k, 10), one.known))
                progress(Progress("asking for hidden links", (number + len(answers) / len(asked)) / len(arms)))
            rows[name] = [asking.scores(answer.ranking, {one.hidden.target}, (k,)) for one, answer in zip(asked, answers, strict=True)]
            found[name] = asking.means(rows[name]) | asking.latencies([one.seconds for one in answers])
        notes = len(job.ledger.notes_with_scenes())
    measure = f"recall@{k}"
    better = max(("words", "dense"), key=lambda name: found[name][measure])
    return {
        "bench": "links",
        "vault": str(workspace.vault),
        "notes": notes,
        "links": len(pairs),
        "hidden": sum(_pair(one) in chosen for one in pairs),
        "questions": len(asked),
        "k": k,
        "seed": seed,
        "seconds_to_ingest": seconds,
        "arms": found,
        "better_half": better,
        "gain": asking.gain(rows[better], rows["all"], [one.hidden.source for one in asked], measure),
        "skipped": skipped.shown(),
    }


def _pair(pair: tuple[str, str]) -> tuple[str, str]:
    """Both directions of a pair of notes as one: a link back would give away the hidden one."""
    return (min(pair), max(pair))


def _read(workspace: Workspace, path: str) -> Note:
    data = vault.read(workspace.vault, path, workspace.settings.scan.max_bytes)
    return markdown.parse(path, data, workspace.settings.scan.encoding)


def _is_markdown(path: str) -> bool:
    return path.lower().endswith((".md", ".markdown"))


def _pairs(workspace: Workspace, paths: Sequence[str], resolver: Resolver, skipped: Skipped, progress: Report) -> Pairs:
    """(source, target) -> the first line in the source's body that links there, for links between two notes."""
    notes = {path for path in paths if _is_markdown(path)}
    found: Pairs = {}
    for number, path in enumerate(sorted(notes), 1):
        try:
            note = _read(workspace, path)
        except VaultllmError as error:
            skipped.add(f"a note cannot be read: {error.message}", path)
            continue
        for link in note.links:
            target = resolver.resolve(link.target, path) if link.target else None
            if target in notes and target != path and link.line >= note.body_line:
                found.setdefault((path, target), link.line)
        progress(Progress("looking for links", number / len(notes)))
    return found


def _chosen(pairs: Pairs, share: float, seed: int) -> set[tuple[str, str]]:
    """The pairs that are hidden, in both directions; at least one of those that there are."""
    undirected = sorted({_pair(pair) for pair in pairs})
    count = min(len(undirected), max(1, round(share * len(undirected))))
    return set(random.Random(seed).sample(undirected, count))


def _copy(
    workspace: Workspace, paths: Sequence[str], resolver: Resolver, chosen: set[tuple[str, str]], into: Path, progress: Report
) -> None:
    """The notes below another folder, without the hidden links; what cannot be read is left out, as it is by ingest."""
    hidden: dict[str, set[str]] = defaultdict(set)
    for one, other in chosen:
        hidden[one].add(other)
        hidden[other].add(one)
    into.mkdir(parents=True)
    for number, path in enumerate(paths, 1):
        try:
            if path in hidden:
                data = without(_read(workspace, path), hidden[path], resolver).encode("utf-8")
            else:
                data = vault.read(workspace.vault, path, workspace.settings.scan.max_bytes)
        except VaultllmError:
            continue
        try:
            (into / path).parent.mkdir(parents=True, exist_ok=True)
            (into / path).write_bytes(data)
        except OSError as error:
            raise DataError(f"the note cannot be copied to measure on ({error.strerror}); make room in {into}", path=path) from error
        progress(Progress("copying the notes", number / len(paths)))


def without(note: Note, hidden: Collection[str], resolver: Resolver) -> str:
    """The note's text without its links (brackets, target and shown text) to the hidden notes; lines keep their numbers."""
    rows = note.text.split("\n")
    for number in sorted({link.line for link in note.links}):
        for _ in range(_NESTED):
            spans = []
            for start, end, what in markdown.inlines(rows[number - 1], rows[number - 1], number):
                if isinstance(what, Link) and what.target and resolver.resolve(what.target, note.path) in hidden:
                    spans.append((start, end))
            if not spans:
                break
            rows[number - 1] = _cut(rows[number - 1], spans)
    return encodable("\n".join(rows))


def _cut(row: str, spans: Sequence[tuple[int, int]]) -> str:
    """The line without these stretches, which may lie within one another."""
    kept, at = [], 0
    for start, end in sorted(spans):
        kept.append(row[at : max(at, start)])
        at = max(at, end)
    return "".join((*kept, row[at:]))


def _posed(ledger: Ledger, pairs: Pairs, chosen: set[tuple[str, str]], skipped: Skipped) -> list[Posed]:
    """Questions of the hidden links; one that cannot be asked, or whose answer is not in the memory, is left out and counted."""
    held = frozenset(ledger.notes_with_scenes())
    linked: dict[str, set[str]] = defaultdict(set)
    hidden: dict[str, list[Hidden]] = defaultdict(list)
    for (source, target), line in pairs.items():
        linked[source].add(target)
        if _pair((source, target)) in chosen:
            hidden[source].append(Hidden(source, target, line))
    found: list[Posed] = []
    for source, links in sorted(hidden.items()):
        cut = list(ledger.scenes(source))
        for one in links:
            text = _around(cut, one.line)
            if one.target not in held:
                skipped.add("the linked note has no scenes (empty, private)", f"{source}:{one.line}")
            elif len(text.split()) < FEWEST_WORDS:
                skipped.add("nothing stands around the link", f"{source}:{one.line}")
            else:
                found.append(Posed(one, text, frozenset({source, *linked[source]} - {one.target})))
    return found


def _around(cut: Sequence[Scene], line: int) -> str:
    """The words of the passage on this line, or of the nearest one in its scene."""
    inside = [scene for scene in cut if scene.source.lines[0] <= line <= scene.source.lines[1]]
    passages = [passage for scene in inside for passage in scenes.passages(scene)]
    if not passages:
        return ""
    nearest = min(passages, key=lambda one: max(one.lines[0] - line, line - one.lines[1], 0))
    return " ".join(WORD.findall(nearest.text))


def _arms(settings: MemorySettings) -> dict[str, MemorySettings]:
    """Name -> settings: what is measured alone (`asking.halves`), each kind of resonance alone with both halves, all, all but one."""
    legs = [name for name in asking.LEGS if getattr(settings, name)]
    lit = [name for name in asking.EDGES if getattr(settings, name)]
    found = asking.halves(settings)
    found |= {f"only {name}": asking.only(settings, legs, (name,)) for name in asking.EDGES}
    found["all"] = settings
    return found | {f"all but {name}": settings.model_copy(update={name: 0.0}) for name in lit}
