"""The results of the benchmarks as lines of text and as a picture. Knows nothing about how they were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vaultllm.errors import UsageError


def lines(result: Mapping[str, Any]) -> list[str]:
    """A result of `recall_bench` or `links_bench` for a terminal: what was measured, an aligned table, what was left out."""
    return _links(result) if result["bench"] == "links" else _recall(result)


def _recall(result: Mapping[str, Any]) -> list[str]:
    said = [
        f"{result['questions']:,} questions, {result['units']:,} {result['unit']}s, read in {result['seconds_to_ingest']:.1f} s",
        "",
    ]
    names = [name for name in result if name.startswith("recall@")] + ["ndcg@10", "mrr"]
    table: list[tuple[str, Mapping[str, Any]]] = [("all", result)]
    table += [(f"  category {name}", row) for name, row in result["by_category"].items()]
    for half, row in result.get("halves", {}).items():
        table += [(f"{half} alone" if half != "no resonance" else half, row)]
        table += [(f"  category {name}", part) for name, part in row["by_category"].items()]
    table += [(f"  fold {number}", row) for number, row in enumerate(result.get("folds", []), 1)]
    said += _table(["", "questions", *names], [[name, _count(row), *(_figure(row[one]) for one in names)] for name, row in table])
    said += ["", f"latency: p50 {result['latency_ms_p50']:.1f} ms, p95 {result['latency_ms_p95']:.1f} ms"]
    for name, row in result.get("halves", {}).items():
        said += [f"all over {name}: {measure} {_interval(gain)}" for measure, gain in row["gain"].items()]
    if result["auroc"] is not None:
        said.append(f"no answer: AUROC {result['auroc']:.3f} on {result['unanswerable']:,} unanswerable questions")
    if result["missing"]:
        said.append(f"{result['missing']:,} pieces of evidence are not in the memory; they count as not found")
    return said + _left_out(result)


def _links(result: Mapping[str, Any]) -> list[str]:
    names = [f"recall@{result['k']}", "ndcg@10", "mrr", "latency_ms_p50"]
    rows = [[name, *(_figure(row[one]) for one in names[:-1]), f"{row[names[-1]]:.1f}"] for name, row in result["arms"].items()]
    return [
        f"{result['notes']:,} notes, {result['links']:,} links between them: {result['hidden']:,} hidden, {result['questions']:,} asked",
        "",
        *_table(["", *names[:-1], "ms p50"], rows),
        "",
        f"all over {result['better_half']}, the better half: {names[0]} {_interval(result['gain'])}",
        *_left_out(result),
    ]


def _figure(value: float) -> str:
    return f"{value:.3f}"


def _count(row: Mapping[str, Any]) -> str:
    return f"{row['questions']:,}" if "questions" in row else ""


def _interval(gain: Mapping[str, Any]) -> str:
    return f"{gain['mean']:+.3f} (95 %: {gain['low']:+.3f} to {gain['high']:+.3f}, {gain['groups']} groups)"


def _left_out(result: Mapping[str, Any]) -> list[str]:
    return [f"left out, {one['count']:,}: {one['reason']} ({', '.join(one['where'])})" for one in result["skipped"]]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns under their names, the first to the left, figures to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in (head, *rows)
    ]


def plot(result: Mapping[str, Any], path: Path) -> None:
    """A picture (its suffix says which kind): recall over k, each half its line; or a bar for each arm of the hidden links.

    Raises UsageError when it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if result["bench"] == "links":
        measure = f"recall@{result['k']}"
        arms = list(result["arms"])
        colours = ["#2456a6" if name == "all" else "#b8c4d6" for name in arms]
        axes.barh(arms[::-1], [result["arms"][name][measure] for name in arms[::-1]], color=colours[::-1])
        axes.set(xlabel=f"R@{result['k']} of the note that a hidden link meant", xlim=(0, 1))
        axes.set_title(f"{result['questions']:,} hidden links of {result['notes']:,} notes", loc="left", fontsize=11)
    else:
        ks = [int(name.removeprefix("recall@")) for name in result if name.startswith("recall@")]
        table: dict[str, Mapping[str, Any]] = {"all": result, **result.get("halves", {})}
        for name, row in table.items():
            axes.plot(range(len(ks)), [row[f"recall@{k}"] for k in ks], marker="o", linewidth=2.5 if name == "all" else 1.2, label=name)
        axes.set(xlabel=f"k ({result['unit']}s)", ylabel="share of the evidence found", ylim=(0, 1.02))
        axes.set_xticks(range(len(ks)), [str(k) for k in ks])
        axes.set_title(f"{result['questions']:,} questions, {result['units']:,} {result['unit']}s", loc="left", fontsize=11)
        axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:  # ValueError: a suffix that is no picture's
        raise UsageError(
            f"the picture cannot be written ({error}); name a .png or .svg in a folder that is there", path=str(path)
        ) from error
