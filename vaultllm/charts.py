"""Two small pictures as SVG text: a loss curve and bars. Readable on light and on dark paper, in any script, a few KB.

Pure: numbers and labels in, text out. Not matplotlib: its fonts lack Bengali, and a picture in a vault should stay sharp
at any size. Knows nothing about notes or trainings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from vaultllm.prompts import printable

WIDTH = 720
TEXT, LINE, FAINT, GRID = "#767c86", "#3d82dc", "#8fb0dc", "#80808040"  # each at least 3:1 on white and on #1e1e1e, but the grid
_FONT = "system-ui, 'Noto Sans', 'Noto Sans Bengali', 'DejaVu Sans', sans-serif"
_POINTS = 300


def curve(points: Sequence[tuple[float, float]], *, x: str, y: str, smooth: str) -> str:
    """The points (finite ones, ordered by x) as a faint line, and their running mean as a strong one named `smooth`.

    `x` and `y` say what the axes are. An empty picture with its axes when there are no points.
    """
    points = [(a, b) for a, b in points if math.isfinite(a) and math.isfinite(b)]
    width = max(3 if len(points) >= 12 else 1, len(points) // 25)
    means = [_mean([b for _, b in points[max(0, i - width + 1) : i + 1]]) for i in range(len(points))]
    left, top, right, bottom = 64.0, 34.0, WIDTH - 16.0, 262.0
    xs, ys = _ticks([a for a, _ in points], 6), _ticks([b for _, b in points], 5)

    def at(a: float, b: float) -> str:
        across = left + (right - left) * (a - xs[0]) / (xs[-1] - xs[0])
        return f"{across:.1f},{bottom - (bottom - top) * (b - ys[0]) / (ys[-1] - ys[0]):.1f}"

    out = [_text(left - 48, 18, y), _text(right, bottom + 38, x, "end"), _text(right, 18, smooth, "end", LINE)]
    for value in ys:
        level = at(xs[0], value).partition(",")[2]
        out.append(f'<path d="M{left} {level}H{right}" stroke="{GRID}"/>')
        out.append(_text(left - 8, float(level) + 4, _number(value), "end"))
    out += [_text(float(at(value, ys[0]).partition(",")[0]), bottom + 20, _number(value), "middle") for value in xs]
    thinned = _thinned(points, _POINTS)
    if len(points) > 1:
        out.append(_path([at(a, b) for a, b in thinned], FAINT, 1.2))
        drawn = _thinned([(a, mean) for (a, _), mean in zip(points, means, strict=True)], _POINTS)
        out.append(_path([at(a, b) for a, b in drawn], LINE, 2.5))
    elif points:
        across, level = at(*points[0]).split(",")
        out.append(f'<circle cx="{across}" cy="{level}" r="4" fill="{LINE}"/>')
    return _svg(310, out)


def bars(rows: Sequence[tuple[str, float]], *, title: str) -> str:
    """A bar for each (label, value >= 0), from 0, its value beside it; the shortest one stands out. Values that are no number have none."""
    left, step, top = 250.0, 38.0, 44.0
    known = [value for _, value in rows if math.isfinite(value) and value >= 0]
    most, best = max(known, default=0.0) or 1.0, min(known, default=math.nan)
    out = [_text(8, 20, title)]
    for number, (label, value) in enumerate(rows):
        y = top + number * step
        out.append(_text(left - 12, y + 17, label, "end", size=15))
        if math.isfinite(value) and value >= 0:
            long = (WIDTH - left - 80) * value / most
            out.append(f'<rect x="{left}" y="{y}" width="{long:.1f}" height="24" rx="3" fill="{LINE if value == best else FAINT}"/>')
            out.append(_text(left + long + 8, y + 17, f"{value:.3f}", size=15))
        else:
            out.append(_text(left, y + 17, "–", size=15))
    return _svg(int(top + step * len(rows) + 8), out)


def _svg(height: int, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    return "\n".join([f'{head} font-family="{_FONT}" font-size="13">', *parts, "</svg>"]) + "\n"


def _text(x: float, y: float, said: str, anchor: str = "start", fill: str = TEXT, size: int = 0) -> str:
    bigger = f' font-size="{size}"' if size else ""
    shown = escape(" ".join(printable(said).split()), quote=True)
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}"{bigger}>{shown}</text>'


def _path(places: Sequence[str], colour: str, width: float) -> str:
    return f'<path d="M{" L".join(places)}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"/>'


def _thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many, evenly, the last one among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _ticks(values: Sequence[float], most: int) -> list[float]:
    """Round numbers that enclose the values, at least two (Heckbert 1990, "Nice numbers for graph labels")."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low <= 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(nice * power for nice in (1, 2, 5, 10) if nice * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _number(value: float) -> str:
    return f"{value:.10g}" if abs(value) < 1e6 else f"{value:.0e}"
