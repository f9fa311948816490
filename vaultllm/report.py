"""What is known of a training -> the text of a note about it, for somebody who knows no machine learning.

Pure. The decision comes first in one sentence, the numbers last and folded. What notes and models said goes through `inert`;
only links and embeds that we make ourselves are live. Knows nothing about how any of it was measured.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote as url_quote

from vaultllm import lineage, render, wording
from vaultllm.inert import inert_line, prefixed
from vaultllm.prompts import printable
from vaultllm.schema import Run

MOST_NOTES, MOST_CHANGES, MOST_REASONS = 15, 10, 8
FEW = 30
"""Below so many measured answers a small difference is called chance."""
ARMS = ("base", "base+memory", "trained", "trained+memory")
MEASURES = ("yardsticks", "memorised", "drift", "manners", "probes")
"""What `Run.metrics` may hold besides the figures of the training itself; shown as it is, named when it is missing."""
_ROWS = 60
_PLAIN = (
    *("bpb_before", "bpb_after", "bpb_current", "bpb_gate", "bpb_dialogue_before", "bpb_dialogue_after", "interval", "verdict", "arms"),
    *("tokens", "tokens_per_s", "seconds", "training_seconds", "peak_rss_mb", "steps", "steps_planned", "loss_first", "loss_last"),
    *("examples", "windows", "examples_cut", "val_examples", "val_notes", "val_left_out", "val_seen_by_base", "learning_rate"),
    *("parameters", "trained_parameters", "dtype", "device", "adapter_sha256", "reload", "forced"),
)


@dataclass(frozen=True, slots=True)
class Learnt:
    """A note that was learnt from."""

    path: str
    """Vault-relative; of an imported talk its place in the store."""
    size: int
    """What of it is learnt, in `Facts.unit`."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What the dataset of a training has that the one before had not; paths, sorted."""

    new: tuple[str, ...]
    """Notes that were not learnt before."""
    edited: tuple[str, ...]
    """Notes whose learnt text is another."""
    gone: tuple[str, ...]
    """Notes that are learnt no more."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and what was answered. None: the time was over."""

    question: str
    """As it was put."""
    path: str
    """The held-out note it comes from."""
    truth: str
    """What stands there."""
    before: str | None
    """The base's words."""
    after: str | None
    """The words of base and adapter."""
    memory: str
    """A sentence of another note, verbatim; empty when none speaks of it."""
    source: str
    """The link to that sentence."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a report says."""

    run: Run
    """The training."""
    created: str
    """ISO 8601 with offset: when the report is written."""
    language: str
    """Of the fixed sentences (`ru`, `bn`, else English)."""
    answers: bool
    """Whether this run answers now."""
    before: str
    """Id of the run that a rollback leads to; empty for the base alone."""
    learnt: tuple[Learnt, ...] | None
    """The notes of the training side, most first; None when the dataset is gone."""
    unit: str
    """`tokens`, or `bytes` where the base's tokenizer is gone."""
    held_out: int
    """Notes that were only measured."""
    dropped: Mapping[str, int]
    """Reason -> scenes and turns left out, most first."""
    changes: Changes | str
    """Since the training before; `first` when there was none, `unknown_before` when its dataset is gone."""
    asked: tuple[Asked, ...]
    """Probe questions."""
    not_asked: str
    """Why no question was asked; empty when the vault simply holds none."""
    curve: str
    """Vault-relative path of the picture of the loss; empty when there is none."""
    losses: tuple[float, float]
    """The mean loss of the first and of the last fifth of the steps, nats per token."""
    arms: str
    """Vault-relative path of the picture of the four arms; empty when there is none."""
    adapter: str
    """Where the adapter lies; empty when it has been deleted."""
    test: Mapping[str, Any]
    """What was measured on the notes that nothing but a report looks at; empty when there are none."""


def note(facts: Facts, report_id: str) -> tuple[str, str]:
    """(title of the file, text) of the report's note: flat properties, then the report.

    `vaultllm_sha` is the SHA-256 of everything after the front matter's closing line, as UTF-8.
    """
    said = wording.words(facts.language)
    day, _, clock = facts.created.partition("T")
    year, month, date = day.split("-")
    parts = [
        f"# {said['title'].format(day=f'{date}.{month}.{year}', clock=clock[:5])}",
        " ".join(_decision(facts, said)),
        *_section(said["learnt"], _learnt(facts, said)),
        *_section(said["changed"], _changed(facts, said)),
        *_section(said["curve"], _curve(facts, said)),
        *_section(said["arms"], _arms(facts, said)),
        *_section(said["asked"], _asked(facts, said)),
        *_section(said["undo"], _undo(facts, said)),
        _numbers(facts, said),
    ]
    body = "\n" + "\n\n".join(part for part in parts if part) + "\n"
    front = [
        "---",
        "tags: [vaultllm/report]",
        f"created: {day}T{clock[:8]}",
        "vaultllm: report",
        f"vaultllm_id: {_yaml(report_id)}",
        f"vaultllm_run: {_yaml(facts.run.id)}",
        f"vaultllm_decision: {_yaml(lineage.decision(facts.run))}",
        f"vaultllm_sha: {hashlib.sha256(body.encode('utf-8', 'replace')).hexdigest()}",
        "---",
    ]
    return title(facts), "\n".join(front) + "\n" + body


def title(facts: Facts) -> str:
    """The name of the report's file, from which its pictures have theirs: `2026-11-22 Training 12.34`."""
    day, _, clock = facts.created.partition("T")
    return f"{day} {wording.words(facts.language)['file']} {clock[:5].replace(':', '.')}"


def labels(language: str) -> dict[str, str]:
    """What the pictures say, in a language: the axes, and the four arms."""
    said = wording.words(language)
    return {name: said[name] for name in ("x", "y", "smooth", "arms_title", *ARMS)}


def _section(heading: str, parts: Iterable[str]) -> list[str]:
    return [f"## {heading}", *parts]


# -- the parts


def _decision(facts: Facts, said: Mapping[str, str]) -> Iterator[str]:
    run, metrics = facts.run, facts.run.metrics
    decided = lineage.decision(run)
    reason = inert_line(run.reason, 400).rstrip(".") or "–"
    gain, rival = _gain(metrics)
    share = number(abs(gain), facts.language, 1) if gain is not None else ""
    if decided == "forced":
        forced = {name: inert_line(str(metrics["forced"].get(name, "")), 300).rstrip(".") for name in ("reason", "refused")}
        yield said["forced"].format(**forced)
    elif decided == "promoted":
        key = "promoted" if gain is None or gain < -0.05 else "equal" if gain < 0.05 else "better"
        yield said[key].format(share=share, rival=said[rival], reason=reason)
    elif decided == "refused":
        yield said["worse" if gain is not None and gain < -0.05 else "refused"].format(share=share, rival=said[rival], reason=reason)
    elif decided == "revoked":
        yield said["refused"].format(reason=inert_line(run.revoked, 300).rstrip("."))
    else:
        yield said["unjudged"]
    interval = metrics.get("interval")
    if decided == "promoted" and isinstance(interval, dict) and not interval.get("decided", True):
        yield said["unsure"].format(notes=number(interval.get("notes", 0), facts.language))
    if decided in ("promoted", "forced") and not facts.answers:
        yield said["since"]


def _gain(metrics: Mapping[str, Any]) -> tuple[float | None, str]:
    """By how many per cent fewer bits per byte, and than whom: the run that answered, else the base."""
    current, gate = metrics.get("bpb_current"), metrics.get("bpb_gate", metrics.get("bpb_after"))
    before, after, rival = (
        (current, gate, "rival_current") if current else (metrics.get("bpb_before"), metrics.get("bpb_after"), "rival_base")
    )
    if not before or after is None:
        return None, rival
    return 100 * (before - after) / before, rival


def _learnt(facts: Facts, said: Mapping[str, str]) -> Iterator[str]:
    if facts.learnt is None:
        yield said["unknown_data"]
        return
    total = sum(one.size for one in facts.learnt)
    read = (facts.run.metrics.get("tokens") or {}).get("learnt")
    passes = said["passes"].format(passes=number(read / total, facts.language, 1)) if read and total and facts.unit == "tokens" else ""
    counts = {"notes": number(len(facts.learnt), facts.language), "units": number(total, facts.language), "unit": said[facts.unit]}
    yield said["learnt_sum"].format(**counts, passes=passes).strip()
    rows = [
        (_link(one.path, cell=True), number(one.size, facts.language), f"{number(100 * one.size / max(total, 1), facts.language, 1)} %")
        for one in facts.learnt[:MOST_NOTES]
    ]
    if rows:
        yield _table((said["note"], said["column"], said["share"]), rows)
    if rest := facts.learnt[MOST_NOTES:]:
        units = f"{number(sum(one.size for one in rest), facts.language)} {said[facts.unit]}"
        yield said["rest"].format(notes=number(len(rest), facts.language), units=units)
    if facts.held_out:
        yield said["held_out"].format(notes=number(facts.held_out, facts.language))
    if facts.dropped:
        reasons = list(facts.dropped.items())
        lines = [f"- {number(count, facts.language)} × {inert_line(reason, 200)}" for reason, count in reasons[:MOST_REASONS]]
        if others := sum(count for _, count in reasons[MOST_REASONS:]):
            lines.append("- " + said["dropped_rest"].format(count=number(others, facts.language)))
        yield said["dropped"] + "\n\n" + "\n".join(lines)


def _changed(facts: Facts, said: Mapping[str, str]) -> Iterator[str]:
    changes = facts.changes
    if isinstance(changes, str):
        yield said[changes]
        return
    if not (changes.new or changes.edited or changes.gone):
        yield said["same"]
    for name, paths, linked in (("new", changes.new, True), ("edited", changes.edited, True), ("gone", changes.gone, False)):
        if not paths:
            continue
        shown = [_link(path) if linked else f"«{inert_line(_name(path), 120)}»" for path in paths[:MOST_CHANGES]]
        if len(paths) > MOST_CHANGES:
            shown.append(said["more"].format(count=number(len(paths) - MOST_CHANGES, facts.language)))
        yield said[name].format(count=number(len(paths), facts.language)) + "\n\n" + "\n".join(f"- {one}" for one in shown)


def _curve(facts: Facts, said: Mapping[str, str]) -> Iterator[str]:
    if not facts.curve:
        yield said["curve_none"]
        return
    first, last = (number(loss, facts.language, 2) for loss in facts.losses)
    yield said["curve_said"].format(first=first, last=last)
    yield _embed(facts.curve)


def _arms(facts: Facts, said: Mapping[str, str]) -> Iterator[str]:
    arms = {name: value for name, value in (facts.run.metrics.get("arms") or {}).items() if name in ARMS and _is_number(value)}
    if arms:
        count = facts.run.metrics["arms"].get("examples", 0)
        best = min(arms, key=lambda name: arms[name])
        verdict = {"base+memory": "arms_memory", "trained+memory": "arms_both", "trained": "arms_trained", "base": "arms_base"}[best]
        words = [said["arms_said"].format(count=number(count, facts.language)), said[verdict]]
        yield " ".join([*words, *([said["arms_few"]] if count < FEW else [])])
        if facts.arms:
            yield _embed(facts.arms)
    else:
        yield said["arms_none"]
    rulers = facts.run.metrics.get("yardsticks") or {}
    if isinstance(rulers, dict) and _is_number(mine := rulers.get("candidate")):
        better = [name for name in ("ngram", "xz") if _is_number(rulers.get(name)) and rulers[name] < mine]
        if better:
            yield said["ruler"].format(winner=said[min(better, key=lambda name: rulers[name])])


def _asked(facts: Facts, said: Mapping[str, str]) -> Iterator[str]:
    if not facts.asked:
        yield said["asked_not"].format(reason=inert_line(facts.not_asked, 300)) if facts.not_asked else said["asked_none"]
        return
    yield " ".join([said["asked_said"], *([said["micro"]] if facts.run.options.get("base") == "micro" else [])])
    for place, one in enumerate(facts.asked, 1):
        yield f"**{place}.** {inert_line(one.question, 300)} ({_link(one.path)})"
        memory = f"{_in_cell(render.quoted(one.memory))} — {_in_cell(one.source)}" if one.memory else said["silent"]
        yield _table((said["base"], said["trained"], said["memory"]), [(_spoken(one.before, said), _spoken(one.after, said), memory)])
        if one.truth:
            yield f"{said['truth']} {render.quoted(one.truth)}"


def _spoken(text: str | None, said: Mapping[str, str]) -> str:
    return said["late"] if text is None else _cell(text) or said["silent"]


def _undo(facts: Facts, said: Mapping[str, str]) -> Iterator[str]:
    if facts.answers:
        before = said["undo_run"].format(run=inert_line(facts.before)) if facts.before else said["undo_base"]
        yield said["undo_rollback"].format(before=before)
    elif facts.adapter and not facts.run.revoked:
        force = '' if facts.run.promoted or not facts.run.reason else ' --force --reason "…"'  # fmt: skip
        yield f"{said['undo_nothing']} `vaultllm promote {facts.run.id}{force}`"
    yield said["where"].format(path=inert_line(facts.adapter, 500)) if facts.adapter else said["adapter_gone"]


def _numbers(facts: Facts, said: Mapping[str, str]) -> str:
    run = facts.run
    about: dict[str, Any] = {"run": run.id, "decision": lineage.decision(run), "reason": run.reason, "kind": run.kind, "base": run.base}
    about |= {"base_sha": run.base_sha, "dataset": run.dataset, "parent": run.parent, "seed": run.seed}
    rows = list(_flat(about)) + list(_flat({name: run.metrics[name] for name in _PLAIN if name in run.metrics}))
    if facts.test:
        rows += _flat({"test": facts.test})
    rows += [("forgotten", str(entry["words"])) for entry in run.metrics.get("forgotten", ())]
    for name in MEASURES:
        if run.metrics.get(name):
            found = list(_flat({name: run.metrics[name]}))
            rows += found[:_ROWS] + ([(name, "…")] if len(found) > _ROWS else [])
    rows += _flat({"options": run.options, "versions": run.versions})
    table = _table((said["measure"], said["value"]), [(_cell(name), _cell(value)) for name, value in rows])
    missing = [name for name in MEASURES if not run.metrics.get(name)]
    parts = [table, *([said["missing"].format(names=", ".join(missing))] if missing else [])]
    return prefixed(f"[!info]- {said['numbers']}\n" + "\n\n".join(parts), "> ", "> ", ">")


def _flat(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """(name, value) of each leaf; an interval is one row. What lies deeper than any measure of ours is left out."""
    if isinstance(value, Mapping) and {"mean", "low", "high"} <= value.keys():
        figures = [_figure(value[key]) for key in ("mean", "low", "high")]
        over = f", {_figure(value['notes'])} notes" if "notes" in value else ""
        yield name, f"{figures[0]} (95 %: {figures[1]} … {figures[2]}{over})"
    elif isinstance(value, Mapping):
        if depth < 5:
            for key, inner in value.items():
                yield from _flat(inner, f"{name} · {key}" if name else str(key), depth + 1)
    elif isinstance(value, list | tuple):
        yield name, ", ".join(_figure(one) for one in value[:20]) + (" …" if len(value) > 20 else "")
    elif value not in (None, ""):
        yield name, _figure(value)


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000 else str(value)


def number(value: float, language: str, digits: int = 0) -> str:
    """A number as it is written in a language: `12,345.6`, in Russian `12 345,6` (with a no-break space)."""
    shown = f"{value:,.{digits}f}"
    return shown.translate(str.maketrans(",.", "\u00a0,")) if language == "ru" else shown


# -- Markdown of our own making


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(text: str) -> str:
    return _in_cell(inert_line(text, 600))


def _in_cell(text: str) -> str:
    """A bar would end the cell; `inert_line` leaves it alone."""
    return re.sub(r"(?<!\\)\|", r"\\|", text)


def _name(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".md")


def _link(path: str, cell: bool = False) -> str:
    """A link to a note; an imported talk, which Obsidian does not see, is named only."""
    shown = f"«{inert_line(_name(path).removesuffix('.json'), 120)}»" if path.startswith(".") else render.link(path)
    return _in_cell(shown) if cell else shown


def _embed(path: str) -> str:
    """A picture of ours in its place; a folder that no wikilink can hold makes it a Markdown image."""
    return f"![]({url_quote(path)})" if re.search(r"[#^|\[\]\\%<>`]", path) else f"![[{path}]]"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _yaml(text: str) -> str:
    """A double-quoted YAML string on one line, in which Obsidian finds no link."""
    return json.dumps(re.sub(r"\[(?=\[)", "[ ", " ".join(printable(text).split())), ensure_ascii=False)
