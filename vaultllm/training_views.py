"""How trainings look to a person: datasets, runs, measures side by side. Pure; prints nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from vaultllm.views import Result, table


def dataset(result: Result) -> RenderableType:
    """Counts, and what was dropped and why."""
    counts = result["counts"] | {f"{name} tokens": count for name, count in (result["tokens"] or {}).items()}
    rows = [(name.replace("_", " "), f"{count:,}") for name, count in counts.items()]
    sums = "{scenes:,} scenes = {used:,} used + {dropped_scenes:,} dropped".format(**counts)
    parts: list[RenderableType] = [
        Text(f"dataset {result['id']}  {result['folder']}"),
        Text(sums),
        table("what", "number|", rows=rows),
    ]
    if result["dropped"]:
        parts += [Text(""), table("dropped because", "number|", rows=[(why, count) for why, count in result["dropped"].items()])]
    parts += [Text(f"written {path}") for path in result["exported"]]
    return Group(*parts)


def sample(record: Result) -> str:
    """What a model wrote while it learns."""
    facts = [f"step {record['step']}", f"{record['done']:.0%}"]
    facts += [] if record["loss"] is None else [f"loss {record['loss']:.2f}"]
    facts += [] if record["tokens_per_s"] is None else [f"{record['tokens_per_s']:,.0f} tokens/s"]
    return f"── {', '.join(facts)}\n{record['text']}\n"


def micro(result: Result) -> RenderableType:
    """What was trained, and what counting and copying cost beside it."""
    others = result["yardsticks"]
    rows = [("this model", result["val_bits_per_byte"]), ("n-gram model", others.get("ngram")), ("xz", others.get("xz"))]
    rows = [(name, value) for name, value in rows if value is not None]
    parts: list[RenderableType] = [
        Text(f"micro model {result['base']}"),
        Text(
            f"{result['parameters'] / 1e6:.2f}M parameters, vocabulary {result['vocabulary']:,}, {result['text_bytes'] / 1e6:.2f} MB "
            f"of text read {result['epochs']} times in {result['minutes']:.1f} minutes{', stopped' if result['stopped'] else ''}"
        ),
    ]
    if not rows:
        return Group(*parts, Text("no note is held out: nothing was measured"))
    parts.append(table("held-out text", "bits per byte|", rows=[(name, f"{value:.3f}") for name, value in rows]))
    if rows[0][0] == "this model" and rows[0][1] > min(value for _, value in rows):
        best = min(rows, key=lambda row: row[1])[0]
        parts.append(Text(f"The {best} foretells the held-out notes better: good for style and for playing, not for more.", style="dim"))
    return Group(*parts)


def train(result: Result) -> RenderableType:
    """What was learnt, what it costs now, and whether it answers."""
    if result["status"] == "nothing new":
        return Text(f"nothing new: {result['new_scenes']} new scenes, training starts at {result['min_new']}")
    if result["status"] in ("on battery", "busy"):
        step = f" at step {result['step']}" if result["step"] is not None else ""
        goes_on = f"run {result['run']} goes on{step} with the next: vaultllm retrain" if result["run"] else "again with: vaultllm retrain"
        return Text(f"{result['status']}: {result['reason']}\n{goes_on}")
    metrics = result["metrics"]
    parts: list[RenderableType] = [
        Text(f"run {result['run']}: {'promoted' if result['promoted'] else 'not promoted'}: {result['reason']}"),
        Text(str(metrics["verdict"]), style="dim"),
        table("held-out text", "bits per byte|", rows=bits_rows(metrics)),
    ]
    if metrics.get("arms"):
        parts += [Text(""), table("held-out answers", "bits per byte|", rows=arm_rows(metrics["arms"]))]
    yard = metrics.get("yardsticks", {})
    if "candidate" in yard:
        head = f"all on {yard['notes']} held-out notes"
        parts += [Text(""), table(head, "bits per byte|", "answers|", "the new adapter beside it", rows=yardstick_rows(yard))]
    measured = measure_rows(metrics)
    if measured:
        parts += [Text(""), table("what else was measured", "base|", "adapter|", "", rows=measured)]
    tokens = metrics["tokens"]
    parts.append(
        Text(
            f"{tokens['learnt']:,} tokens learnt, {tokens['context']:,} read as context, {tokens['padding']:,} of padding, "
            f"{metrics['tokens_per_s']:,.0f} tokens/s, {metrics['seconds']:.0f} s, {metrics['peak_rss_mb']:,} MB\n"
            + _origin_line(metrics)
            + _chosen_line(metrics)
            + f"loss curve  {result['plot']}\nadapter     {result['adapter']}\n"
            + _report_line(result)
            + (
                "undo        vaultllm rollback"
                if result["promoted"]
                else f'use it all the same: vaultllm promote {result["run"]} --force --reason "…"'
            )
        )
    )
    return Group(*parts)


def _origin_line(metrics: Result) -> str:
    """Where it began, when it was asked to go on from an adapter."""
    found = metrics.get("origin", {})
    if found.get("run"):
        old = f"{found['again']} of {found['again'] + found['left']} old ones again"
        return f"from        run {found['run']}: {found['new']} new examples, {old}\n"
    return f"from        the base: {found['why']}\n" if found.get("why") else ""


def _chosen_line(metrics: Result) -> str:
    """What was taken to fit the machine; nothing of trainings from before that was recorded."""
    chosen = metrics.get("chosen")
    if chosen is None:
        return ""
    less = " (the memory was not enough for more)" if chosen["out_of_memory"] else ""
    most = f"up to {chosen['batch_tokens']:,} tokens at once{less}, sequences up to {chosen['sequence']:,}"
    how = [chosen["dtype"], *([chosen["quantize"]] if chosen.get("quantize") else [])]
    how += ["gradient checkpointing"] if chosen.get("checkpointing") else []
    why = "".join(f"  {reason}\n" for reason in chosen.get("why", [])[1:])  # the first says only what the type says
    return f"{metrics['device']}, {', '.join(how)}, {most}\n{why}"


def _report_line(result: Result) -> str:
    if result.get("report_error"):
        return f"no report   {result['report_error']}\n"
    return f"report      {result['report']}\n" if result.get("report") else ""


def bits_rows(metrics: Result) -> list[tuple[str, str]]:
    """The rows of the before/after table; what was not measured is left out."""
    names = {
        "bpb_before": "base, all held-out notes",
        "bpb_after": "with the adapter",
        "bpb_dialogue_before": "base, the assistant's held-out turns",
        "bpb_dialogue_after": "with the adapter, the same turns",
        "bpb_current": "the run that answered before",
    }
    return [(label, f"{metrics[name]:.4f}") for name, label in names.items() if metrics.get(name) is not None]


def arm_rows(arms: Result) -> list[tuple[str, str]]:
    """The four arms."""
    return [(name, f"{arms[name]:.4f}") for name in ("base", "base+memory", "trained", "trained+memory") if name in arms]


def yardstick_rows(yard: Result) -> list[tuple[str, str, str, str]]:
    """Everybody who scored the same held-out notes, best first, and how the new adapter stands to them with its interval."""
    names = {"base": "base", "current": "the run that answered", "candidate": "the new adapter", "ngram": "n-gram model", "xz": "xz"}
    rows = []
    for name in sorted((name for name in names if name in yard), key=lambda name: float(yard[name])):
        pair, sign = yard["intervals"].get(f"{name} → candidate"), 1
        if pair is None:
            pair, sign = yard["intervals"].get(f"candidate → {name}"), -1
        beside = ""
        if pair is not None:
            low, high = sorted((sign * pair["low"], sign * pair["high"]))
            beside = f"{sign * pair['mean']:+.3f} ({low:+.3f} to {high:+.3f}){'' if pair['decided'] else ', not decided'}"
        said = yard["dialogue"].get(name)
        rows.append((names[name], f"{yard[name]:.4f}", "" if said is None else f"{said:.4f}", beside))
    return rows


def measure_rows(metrics: Result) -> list[tuple[str, str, str, str]]:
    """Memorisation, drift, manners and probes: the base's figure, the adapter's, and what to read it by; skipped ones say why."""
    rows: list[tuple[str, str, str, str]] = []

    def add(what: str, part: Result, figure: Callable[[Any], str], first: Any, second: Any, note: str) -> None:
        if "skipped" in part:
            rows.append((what, "", "", f"skipped: {part['skipped']}"))
        else:
            base, trained = ("" if one is None else figure(one) for one in (first, second))
            rows.append((what, base, trained, note))

    def percent(share: float) -> str:
        return f"{share:.0%}"

    told = metrics.get("memorised", {})
    shown, said = told.get("exposure", told), told.get("recited", told)
    if told:
        auc = [shown.get(name, {}).get("auc") for name in ("base", "trained")]
        add("learnt sentences told from unlearnt", shown, "{:.2f}".format, auc[0], auc[1], "0.5: not at all, 1: all")
        add("passages recited", said, str, said.get("base"), said.get("trained"), f"of {said.get('passages')}, new {said.get('new')}")
    far = metrics.get("drift", {})
    if far:
        note = f"bits per byte of the base's own samples; KL {far.get('kl_bits', 0):.3f} bits a token"
        add("drift", far, "{:.3f}".format, far.get("bpb_base"), far.get("bpb_trained"), note)
    polite = metrics.get("manners", {})
    if "skipped" in polite:
        add("answers", polite, str, None, None, "")
    elif polite:
        for name, what in (
            ("language", "answers in the question's language"),
            ("loop", "answers that loop"),
            ("ended", "answers that end"),
        ):
            note = f"of {polite['questions']} questions"
            add(what, polite, percent, polite["base"][name], polite.get("trained", {}).get(name), note)
    for kind, what in (("cloze", "words guessed"), ("headings", "headings matched")):
        part = metrics.get("probes", {}).get(kind, metrics.get("probes", {}) if "skipped" in metrics.get("probes", {}) else {})
        if part:
            with_memory = [f"{part[arm]:.0%}" for arm in ("base+memory", "trained+memory") if arm in part]
            note = f"of {part.get('asked')}, 25% by chance" + (f"; with memory {' and '.join(with_memory)}" if with_memory else "")
            add(what, part, percent, part.get("base"), part.get("trained"), note)
    return rows


def runs(result: Result) -> RenderableType:
    """The line of descent: what answered one after the other is one line, what was refused hangs on the run it wanted to follow."""
    if not result["runs"]:
        return Text("no run yet; start one with: vaultllm train")
    rows: list[tuple[Any, ...]] = []
    base = None
    kept = {run["id"] for run in result["runs"] if run["adapter"]}
    for row in result["descent"]:
        if row["base"] != base:
            base = row["base"]
            rows.append((row["base_name"], "", "", "", ""))
        branch = "│  " * (row["depth"] - 1) + ("└─" if row["last"] else "├─") if row["depth"] else ""
        mark = "●" if row["decision"] in ("promoted", "forced") else "○"
        before, after = row["bpb_before"], row["bpb_after"]
        bits = f"{before:.3f} → {after:.3f}" if before is not None and after is not None else ""
        decided = "answers" if row["answers"] else row["decision"]
        gone = "" if row["run"] in kept or row["decision"] in ("running", "failed", "interrupted") else " (adapter removed)"
        goes_on = f" from {row['continued']}" if row["continued"] else ""
        rows.append((f"{branch}{mark} {row['run']}{goes_on}", decided + gone, bits, row["dataset"][:8], row["reason"]))
    return table("base and runs", "decision", "bits per byte", "dataset", "why", rows=rows)


def reported(result: Result) -> RenderableType:
    """Where the note about a training is."""
    head = f"run {result['run']}: {result['decision']}{': ' + result['reason'] if result['reason'] else ''}"
    return Text(f"{head}\n{'written' if result['written'] else 'note   '}  {result['note']}")


def promoted(result: Result) -> RenderableType:
    """Who answers now."""
    return Text(f"{result['current'] or 'the base alone'} answers now; before: {result['before'] or 'the base alone'}")


def doctor(result: Result) -> RenderableType:
    """What is wrong, and what was mended."""
    lines = [f"{one['code']} {one['message']}" for one in result["problems"]] or ["all is well"]
    lines += [f"kept from before an update: {', '.join(result['backups'])}; it goes with --repair"] if result["backups"] else []
    said = Text("\n".join([*lines, "repaired" if result["repaired"] else ""]).rstrip())
    return Group(said, Text(""), *_trainable(result["training"])) if "training" in result else said


def _trainable(found: Result) -> Iterator[RenderableType]:
    """What this machine can train: one line for each size of base."""
    machine, tokens = found["device"], found["dataset_tokens"]
    yield Text(
        f"{machine['device']} {machine['name']}, {machine['cores']} cores, {machine['free_mb'] / 1024:.1f} of "
        f"{machine['memory_mb'] / 1024:.1f} GB free, {'bf16' if machine['bf16'] else 'fp32 (bf16 is slower here)'}; "
        f"measured in {found['seconds']:.0f} s, no model was downloaded"
    )
    if found["others_per_core"] > 0.25:
        yield Text(f"other programs kept each core {found['others_per_core']:.0%} busy meanwhile: alone it is faster", style="dim")
    yield table(
        "base", "dtype", "sequence|", "tokens/s|", "memory|", "", "one training|",
        rows=[
            (
                one["base"], {"bfloat16": "bf16", "float32": "fp32"}[one["dtype"]], one["sequence"],
                "?" if one["tokens_per_s"] is None else f"{'~' if one['estimated'] else ''}{one['tokens_per_s']:,.0f}",
                f"{one['memory_mb'] / 1024:.1f} GB", _fits(one), _hours(one["hours"]),
            )
            for one in found["bases"]
        ],
    )  # fmt: skip
    if tokens is None:
        yield Text("there is nothing to train on yet; run: vaultllm ingest", style="dim")
        return
    counted = "" if found["tokens_counted"] else " (estimated: no base is here whose tokenizer could count)"
    yield Text(f"one training: {found['epochs']:g} passes over {tokens:,} tokens{counted}, or train.minutes; ~ estimated", style="dim")


def _fits(base: Result) -> str:
    """Whether a base can be trained here, and what that takes."""
    if not base["fits"]:
        return "does not fit"
    return "fits with gradient checkpointing" if base["checkpointing"] else "fits"


def _hours(hours: float | None) -> str:
    """As a person says it."""
    if hours is None:
        return ""
    if hours < 1:
        return f"{max(1, round(hours * 60))} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} days"


def demo(result: Result) -> RenderableType:
    """The table at the end of the demonstration."""
    return Group(table("", "", rows=[tuple(row) for row in result["table"]]), *(Text(line) for line in result["lines"]))
