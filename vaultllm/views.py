"""How results look to a person: a step's dict -> something that rich can print. Pure; prints nothing itself."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from vaultllm.schema import Progress, Scene, from_dict

Result = dict[str, Any]


def progress_note(progress: Progress) -> str:
    """What stands beside the bar: loss, speed, time left."""
    parts = []
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.tokens_per_s is not None:
        parts.append(f"{progress.tokens_per_s:,.0f} tokens/s")
    if progress.seconds_left is not None:
        parts.append(f"{int(progress.seconds_left) // 60}:{int(progress.seconds_left) % 60:02d} left")
    return ", ".join(parts)


def lines_of(record: Result) -> str:
    """`path:12` or `path:12-30`."""
    first, last = record["lines"]
    return f"{record['path']}:{first}" + (f"-{last}" if last != first else "")


def table(*columns: str, rows: list[tuple[Any, ...]]) -> Table:
    """A plain table; columns whose name ends in `|` are right-aligned."""
    made = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for column in columns:
        made.add_column(column.rstrip("|"), justify="right" if column.endswith("|") else "left", overflow="fold")
    for row in rows:
        made.add_row(*(escape(str(cell)) for cell in row))
    return made


def init(result: Result) -> RenderableType:
    """What `init` found, and what to do next."""
    size = result["bytes"] / 2**20
    return Text(
        f"{result['notes']} notes, {size:.1f} MB in {result['vault']}\n"
        f"settings  {result['config']}\nstate     {result['state']}\n"
        'next      vaultllm ingest, then: vaultllm train, then: vaultllm ask "…"'
    )


def ingest(result: Result) -> RenderableType:
    """What changed, and what could not be read."""
    notes, scenes, memory = result["notes"], result["scenes"], result["memory"]
    if not notes["parsed"] and not notes["removed"] and not memory.get("upserted"):
        head = f"nothing changed: {notes['seen']} notes, {scenes['total']} scenes ({result['seconds']:.2f} s)"
    else:
        head = (
            f"{notes['parsed']} notes read, {notes['unchanged']} unchanged, {notes['removed']} removed\n"
            f"{scenes['added']} scenes added, {scenes['changed']} changed, {scenes['removed']} removed, {scenes['total']} in all\n"
            f"{memory.get('embedded', 0)} passages embedded, {memory.get('upserted', 0)} written to the memory ({result['seconds']:.1f} s)"
        )
    learnt = memory["embedder"]["reason"] if memory.get("refitted") and memory.get("embedder") else ""
    more = [line for line in (learnt, memory.get("away", "")) if line]
    return Text("\n".join([head, *more, *_problem_lines(notes["failed"])]))


def _problem_lines(problems: list[Result], most: int = 10, rest: str = "vaultllm status") -> list[str]:
    """One line each, what could not be read first; `rest` is the command that shows all of them.

    That imported talks stand in notes too is as it should be, and one line for all.
    """
    copies = [one["count"] for one in problems if one["code"] == "W-COPY"]
    problems = [one for one in problems if one["code"] != "W-COPY"]
    shown = sorted(problems, key=lambda one: not one["code"].startswith("E-"))[:most]
    lines = [f"{one['code']} {one['path']}{':' + str(one['line']) if one['line'] else ''}: {one['message']}" for one in shown]
    if len(problems) > most:
        lines.append(f"… and {len(problems) - most} more: {rest}")
    if copies:
        lines.append(f"W-COPY {len(copies):,} imported talks ({sum(copies):,} messages) stand in notes too, which they mend")
    return lines


def imported(result: Result) -> RenderableType:
    """What came from exports, and what of it the vault had."""
    talks = result["conversations"]
    would = "would be " if result["dry_run"] else ""
    head = (
        f"{talks['read']} conversations with {result['turns']:,} messages read from {len(result['files'])} "
        f"export{'s' * (len(result['files']) != 1)}\n"
        f"{talks['new']} {would}new, {talks['changed']} {would}changed, {talks['same']} known and the same"
        + (f", {talks['empty']} empty" if talks["empty"] else "")
        + f"; {talks['in_vault']} stand in notes of the vault, which they mend"
    )
    parts: list[RenderableType] = [Text("\n".join([head, *_problem_lines(result["problems"], rest="--json")]))]
    if not result["dry_run"]:
        parts.append(ingest(result))
    return Group(*parts)


def repaired(result: Result) -> RenderableType:
    """What was mended, and what could not be."""
    turns = result["turns"]
    rows = [
        ("notes joined with the export", result["notes"]),
        ("notes that the export does not hold", result["notes_not_in_export"]),
        ("messages mended", turns["mended"]),
        ("messages that were whole", turns["same"]),
        ("messages you changed, kept as you wrote them", turns["edited"]),
        ("messages that the export does not hold, kept as they were", turns["not_in_export"]),
        ("messages of the export that the notes lack", turns["not_in_note"]),
        ("messages known now as abandoned branches", result["variants"]),
        ("conversations of the export that are in no note (vaultllm import takes them)", result["not_in_vault"]),
    ]
    shown: list[tuple[Any, ...]] = [(what, f"{count:,}") for what, count in rows if count or "mended" in what or "joined" in what]
    parts: list[RenderableType] = [table("would be done" if result["dry_run"] else "done", "number|", rows=shown)]
    parts += [Text(line) for line in _problem_lines(result["problems"], rest="--json")]
    if result["ingest"]:
        parts.append(ingest(result["ingest"]))
    return Group(*parts)


def scenes_yaml(records: list[Result]) -> Iterator[str]:
    """One YAML document per note."""
    from vaultllm.scene_yaml import to_yaml

    notes: dict[str, list[Scene]] = {}
    for record in records:
        scene = from_dict(Scene, record)
        notes.setdefault(scene.source.path, []).append(scene)
    for index, (path, scenes) in enumerate(notes.items()):
        yield ("---\n" if index else "") + to_yaml(path, scenes)


def metadata(result: Result) -> RenderableType:
    """What Obsidian knows of a note, as YAML: one fact a line, places as `line:col` (from 0, as Obsidian counts)."""
    from vaultllm.scene_yaml import flow

    rows = [f"note: {flow(result['path'])}"]
    for name, value in result["metadata"].items():
        if isinstance(value, list):
            rows += [f"{name}:", *(f"- {flow(_placed(item))}" for item in value)]
        elif name == "blocks":
            rows += [f"{name}:", *(f"  {flow(key)}: {flow(_placed(item))}" for key, item in value.items())]
        else:
            rows.append(f"{name}: {flow(_place(value) if name.endswith('Position') else value)}")
    if result["resolved"]:
        rows += ["resolved:", *(f"  {flow(link)}: {flow(path)}" for link, path in result["resolved"].items())]
    return Text("\n".join(rows))


def _placed(item: Result) -> Result:
    return {key: _place(value) if key == "position" else value for key, value in item.items()}


def _place(position: Result) -> str:
    start, end = position["start"], position["end"]
    return f"{start['line']}:{start['col']}-{end['line']}:{end['col']}"


def explanation(result: Result) -> RenderableType:
    """Why a file became what it did."""
    problems = [{**one, "path": result["path"]} for one in result["problems"]]
    if not result["taken"]:
        return Text(f"{result['path']} is left out: {result['why']}")
    turns = result["turns"]
    declined = [one["name"] for one in result["readers"] if not one["why"]]
    trained = "yes" if result["train"] else "no"
    why_not = "; ".join(f"{count} scenes not: {reason}" for reason, count in result["reasons"].items())
    rows = [
        ("file", f"{result['path']}, {result['bytes']:,} bytes, {result['encoding']}"),
        ("reader", f"{result['reader']}: {result['because']}" if result["reader"] else "none: it is an ordinary note"),
        ("declined", ", ".join(declined) or "none"),
        ("trust", result["trust"] or "none: it has no scenes"),
        ("trained on", f"{trained}{'; ' if why_not else ''}{why_not}"),
        ("scenes", result["scenes"]),
        ("messages", f"{turns['held']} held, {turns['in_scenes']} in scenes, {turns['left_out']} left out"),
        ("redacted", result["redacted"]),
        ("problems", len(problems)),
    ]
    return Group(table("", "", rows=rows), *(Text(line) for line in _problem_lines(problems, 40, "--json")))


def search(result: Result) -> RenderableType:
    """Hits with title, place, date, the text with the query's words marked, and the reasons."""
    parts: list[RenderableType] = [Text(f"also looked for: {'; '.join(result['rewritten'])}", style="dim")] if result["rewritten"] else []
    if result["notice"]:
        parts.append(Text(result["notice"], style="yellow"))
    if not result["hits"]:
        return Group(*parts, Text("nothing in the vault speaks of this"))
    from vaultllm.text import stem, stems

    wanted = set(stems(" ".join([result["query"], *result["rewritten"]])))
    if not result["answerable"]:
        parts.append(
            Text(f"perhaps nothing in the vault speaks of this (confidence {result['confidence']:.2f}); the nearest:", style="yellow")
        )
    for number, hit in enumerate(result["hits"], 1):
        parts += [_head(number, hit), _marked(_excerpt(hit["text"], wanted), wanted, stem)]
        why = ", ".join(f"{name} {value:.2f}" for name, value in hit["why"].items() if value > 0.005)
        said = "passes the filters; the newest first" if "filter" in hit["why"] else f"{hit['score']:.2f} = {why}"
        parts.append(Text(f"   {said}", style="dim"))
    return Group(*parts)


def related(result: Result) -> RenderableType:
    """Hits of other notes, with title, place, date and how the text begins."""
    if not result["hits"]:
        return Text("no other note speaks of this")
    parts: list[RenderableType] = []
    for number, hit in enumerate(result["hits"], 1):
        parts += [_head(number, hit), Text("   " + _excerpt(hit["text"], set()))]
    return Group(*parts)


def _head(number: int, hit: Result) -> Text:
    """A hit's title, place and date."""
    head = Text(f"{number}. ", style="dim").append(" › ".join(dict.fromkeys([hit["title"], *hit["headings"]])), style="bold")
    return head.append(f"  {lines_of(hit)}" + (f"  {hit['at'][:10]}" if hit["at"] else ""), style="dim")


def rated(result: Result) -> RenderableType:
    """What is kept of an answer now."""
    return Text(f"{result['note']}: {result['rating'] or 'not rated'} (before: {result['before'] or 'not rated'})")


def settings(result: Result) -> RenderableType:
    """Every setting as it counts now."""
    tree = result["settings"]
    rows = [(name, value) for name, value in tree.items() if not isinstance(value, dict)]
    rows += [(f"{section}.{name}", value) for section, keys in tree.items() if isinstance(keys, dict) for name, value in keys.items()]
    when = result["schedule"]
    nightly = f"retrain runs every day at {when['at']}, by {when['kind']}" if when else "nothing runs by itself: vaultllm schedule install"
    return Group(table("setting", "value", rows=rows), Text(f"\nchange them in  {result['file']}\n{nightly}"))


def _excerpt(said: str, wanted: set[str], most: int = 320) -> str:
    """The part of a text where the query's words stand thickest, on one line."""
    from vaultllm.text import stems

    flat = " ".join(said.split())
    if len(flat) <= most:
        return flat
    starts = range(0, len(flat) - most + 80, 80)
    best = max(starts, key=lambda start: (len(wanted & set(stems(flat[start : start + most]))), -start))
    start = 0 if best == 0 else flat.find(" ", best) + 1
    return ("…" if start else "") + flat[start : start + most].rsplit(" ", 1)[0] + "…"


def _marked(said: str, wanted: set[str], stem: Any) -> Text:
    from vaultllm.text import WORD, fold

    made = Text("   " + said)
    for match in WORD.finditer(said):
        if stem(fold(match[0])) in wanted:
            made.stylize("bold yellow", match.start() + 3, match.end() + 3)
    return made


def answer(result: Result, streamed: bool = False) -> RenderableType:
    """Quotations first for a model that cannot answer, the model's words first for one that can."""
    said = [] if streamed or not result["answer"] else [Text(result["answer"])]
    quotes: list[RenderableType] = []
    for number, source in enumerate(result["sources"], 1):
        quotes += [Text(f"{number}. {source['quote'].replace('**', '')}"), Text(f"   {lines_of(source)}", style="dim")]
    if not quotes:
        quotes = [Text("nothing in the vault speaks of this")]
    model = Text(f"{result['model']}{':' if result['answer'] else ''}", style="dim")
    parts: list[RenderableType] = [model, *said, Text(""), *quotes] if result["capable"] else [*quotes, Text(""), model, *said]
    note = result["note"] or "not written (--no-write)"
    if result.get("stopped"):
        parts = [Text(f"stopped: {result['stopped']}; what stands in the note is no part of the talk")]
    if result.get("unfinished"):
        parts.append(Text(f"\nunfinished answers above it: {result['unfinished']}; they are no part of the talk, delete them", style="dim"))
    return Group(*parts, Text(f"\nnote  {note}  ({result['seconds']:.1f} s)", style="dim"))


def forgotten(result: Result) -> RenderableType:
    """What went, or would go, where it is still said, and what saw it."""
    if "undone" in result:
        return Text(f"{result['what']} may be read again; run: vaultllm ingest")
    removed = ", ".join(f"{count:,} {name}" for name, count in result["removed"].items() if count) or "nothing that was derived from it"
    lines = [f"{'would go' if result['dry_run'] else 'forgotten'}: {removed}"]
    if not result["dry_run"]:
        searched = result["searched"]
        found = (
            f"{searched['files']:,} files, {searched['bytes']:,} bytes searched for {searched['fragments']:,} fragments of it: none left"
        )
        lines.append(f"{found}  ({result['seconds']:.1f} s)")
    lines += [f"revoked  run {run['id']}{' (it answered)' if run['answered'] else ''}: it was trained on it" for run in result["runs"]]
    lines += [f"revoked  base {base}: it has read it" for base in result["bases"]]
    if again := result.get("retrained"):
        lines.append(f"trained again  {again.get('run') or again.get('reason')}")
        if again.get("exposure"):
            lines += unlearnt(again["exposure"])
            lines += [f"deleted   {kind[:-1]} {name}: its weights" for kind, names in again["deleted"].items() for name in names]
    elif result["runs"] or result["bases"]:
        name = shlex.quote(result["what"])
        lines.append(f"to train without it, and measure whether it is known no more: vaultllm forget --retrain {name}")
    lines += [f"quotes it  {path}  (a note of yours: it stays)" for path in result["notes_that_quote_it"]]
    lines += [f"says some of it too  {path}" for path in result["said_elsewhere"][:10]]
    if len(result["said_elsewhere"]) > 10:
        lines.append(f"… and {len(result['said_elsewhere']) - 10} more notes; --json lists them")
    return Text("\n".join(lines))


def unlearnt(exposure: Result) -> Iterator[str]:
    """How well weights that learnt something knew it, and how well those do that were trained without it."""
    before, after = exposure["before"], exposure["after"]
    if "mean" in after:
        was = f"{before['mean']:.1f} ({before['low']:.1f} to {before['high']:.1f})" if "mean" in before else "unknown"
        level = after["unseen"]
        yield (
            f"exposure  {was} → {after['mean']:.1f} ({after['low']:.1f} to {after['high']:.1f}) bits on {after['sentences']} sentences; "
            f"unseen text: {level['mean']:.1f} (nine of ten of {level['notes']} notes: {level['low']:.1f} to {level['high']:.1f})"
        )
    if after.get("passages"):
        told = [f"{one['recited']} of {one['passages']}" if "recited" in one else "unknown" for one in (before, after)]
        yield f"recited   {told[0]} → {told[1]} passages, word for word"
    yield f"verdict   {exposure['words']}"


def status(result: Result) -> RenderableType:
    """At a glance."""
    scenes, memory, said = result["scenes"], result["memory"], result["turns"]
    copies = "not counted yet (vaultllm dataset counts them)" if scenes["duplicates"] is None else scenes["duplicates"]
    rows = [
        ("vault", result["vault"]),
        ("state", result["state"]),
        ("daemon", _daemon(result["daemon"])),
        ("notes", f"{result['notes']:,}{_behind(result['behind'], result['daemon'])}"),
        ("messages", f"{said['seen']:,} in talks: {said['in_scenes']:,} in scenes, {said['left_out']:,} left out{_because(said['why'])}"),
        ("scenes", f"{scenes['total']:,}; {scenes['trainable']:,} may be trained on"),
        ("duplicates", copies),
        ("taken out", f"{sum(scenes['redactions'].values()):,} secrets and personal data{_because(scenes['redactions'])}"),
        ("memory", f"{memory['vectors']} of {memory['passages']} passages have a vector; {memory['waiting']} wait for Chroma"),
        ("embedder", _embedder(memory.get("embedder"), memory["passages"])),
        *([("legs", _legs(memory["embedder"]["fusion"]))] if memory.get("embedder") else []),
        ("answers", result["current"] or "the base alone, or memory alone; train with: vaultllm train"),
        ("new", f"{result['dataset']['new_scenes']} scenes since the last training; retrain starts at {result['dataset']['min_new']}"),
        ("problems", len(result["problems"])),
    ]
    if result["forgotten"]["entries"]:
        open_ = result["forgotten"]["unfinished"]
        rows.append(("forgotten", f"{result['forgotten']['entries']} times{f'; {open_} not to the end: run it again' if open_ else ''}"))
    problems = [Text(line) for line in _problem_lines(result["problems"], 40, "vaultllm status --json")]
    return Group(table("", "", rows=rows), *_charts(scenes), *problems)


def _daemon(about: Result | None) -> str:
    """Is it alive, and what did it do last."""
    if about is None:
        return "none watches; start it with: vaultllm watch"
    if not about["alive"]:
        return f"[!] process {about['pid']} has been silent for {about['silent']:,.0f} s; look at its log, start it again: vaultllm watch"
    did, last = "", about["last"]
    if last is not None:
        did = f"; last at {last['at']}: " + (last.get("message") or f"{last.get('read', 0)} read, {last.get('removed', 0)} removed")
    return f"process {about['pid']} is {about['doing']}, alive {about['silent']:,.0f} s ago{did}"


def _behind(notes: Result | None, daemon: Result | None) -> str:
    """How far what is known is behind the vault."""
    if notes is None:
        return "; the vault cannot be listed now (is its disk mounted?)"
    said = ", ".join(f"{count:,} {what}" for what, count in notes.items() if count)
    if not said:
        return "; none is new, changed or gone since they were read"
    return f"; since they were read: {said}" + ("" if daemon and daemon["alive"] else "; read them with: vaultllm ingest")


def _embedder(about: Result | None, passages: int) -> str:
    """Which one, what it has learnt, and which one follows it."""
    if about is None:
        return "none yet; run: vaultllm ingest"
    said = f"{about['name']}, {about['dims']} dimensions, {about['precision']}"
    after = about["next"]
    follows = f"{after['name']} follows: {after['vectors']} of {passages} passages have a vector of it" if after else ""
    return "; ".join(filter(None, (said, about["reason"], follows)))


def _legs(fusion: Result) -> str:
    """What words, 4-grams and vectors count in a search, and why."""
    return f"words {fusion['words']:.2f}, grams {fusion['grams']:.2f}, vectors {fusion['dense']:.2f} ({fusion['reason']})"


def _because(counts: Result) -> str:
    return f" ({', '.join(f'{count:,} {name}' for name, count in counts.items())})" if counts else ""


def _charts(scenes: Result) -> Iterator[RenderableType]:
    """What the scenes are, how long they are, and why some are not learnt."""
    if not scenes["total"]:
        return
    lengths = scenes["lengths"]
    last = lengths["buckets"][-2]["below"]
    bars = [(f"below {one['below']:,}" if one["below"] else f"{last:,} and more", one["scenes"]) for one in lengths["buckets"]]
    head = f"characters (median {lengths['median']:,}, nine of ten up to {lengths['p90']:,}, most {lengths['most']:,})"
    parts = [("kind", scenes["kinds"].items()), ("language", scenes["languages"].items()), ("written by", scenes["trust"].items())]
    for name, counted in (*parts, (head, bars), ("not learnt because", scenes["reasons"].items())):
        if counted:
            yield Text("")
            yield chart(name, list(counted))


def chart(name: str, counts: list[tuple[str, int]], width: int = 40) -> Table:
    """A bar for each count, the longest `width` cells wide."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    made.add_column(escape(name), overflow="fold")
    made.add_column("", justify="right")
    made.add_column("", width=width)
    most = max(count for _, count in counts)
    for label, count in counts:
        made.add_row(escape(label), f"{count:,}", Bar(max(most, 1), 0, count, width=width, color="cyan"))
    return made


def plan(result: Result) -> RenderableType:
    """The steps of a pipeline, with their options."""
    rows = [(number, step["step"], step["options"]) for number, step in enumerate(result["steps"], 1)]
    return Group(Text(f"{result['name']}: when {result['when']}"), table("", "step", "options", rows=rows))


def pipeline(result: Result) -> RenderableType:
    """What each step did, in a line."""
    rows = [(one["step"], one["status"], one.get("seconds", "")) for one in result["steps"]]
    return table("step", "status", "seconds|", rows=rows)


def event(record: Result) -> str:
    """One line of the daemon's log."""
    rest = ", ".join(f"{key} {value}" for key, value in record.items() if key not in ("at", "event"))
    return f"{record['at']} {record['event']}" + (f": {rest}" if rest else "")
