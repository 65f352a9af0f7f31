"""Charts of a drift report as inline SVG: colors come from the page's style, every mark says its value when it is pointed at.

Each chart has a caption and a table behind it on the page, so nothing is told by color or position alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from swinv2_deploy.verify.report import CandidateReport

WIDTH = 720
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 14, 40
CLEAN_DB = 140.0
"""Where a value that is equal to the last bit is drawn."""


@dataclass(frozen=True, slots=True)
class _Axis:
    """A linear axis from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = (self.high - self.low) or 1.0
        return self.start + (min(max(value, self.low), self.high) - self.low) / span * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round numbers within the axis."""
        step = _nice((self.high - self.low) / max(1, count))
        first = math.ceil(self.low / step)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _nice(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next((factor * power for factor in (1, 2, 5) if factor * power >= value), 10 * power)


def layer_chart(candidates: Sequence[CandidateReport]) -> Markup:
    """Carried signal to noise after every block, a line a file; empty where nothing was measured."""
    lines = [(item, [row for row in item.layers if row.kind == "unit"]) for item in candidates if item.layers]
    if not lines:
        return Markup("")
    names = [row.name for row in lines[0][1]]
    height = 300
    values = [_drawn(row.carried_db) for _, rows in lines for row in rows]
    y = _Axis(min(0.0, *values), max(values) + 5, height - BOTTOM, TOP)
    x = _Axis(0, max(1, len(names) - 1), LEFT, WIDTH - RIGHT)
    parts = [_horizontal(y, "dB")]
    for place, name in enumerate(names):
        if len(names) <= 16 or place % math.ceil(len(names) / 16) == 0:
            parts.append(
                Markup('<text class="axis" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                    x(place), height - BOTTOM + 16, short(name)
                )
            )
    for number, (item, rows) in enumerate(lines):
        points = " ".join(f"{x(place):.1f},{y(_drawn(row.carried_db)):.1f}" for place, row in enumerate(rows))
        parts.append(Markup('<polyline class="line c{}" points="{}"/>').format(number % 6, points))
        for place, row in enumerate(rows):
            parts.append(
                Markup(
                    '<circle class="dot c{}" cx="{:.1f}" cy="{:.1f}" r="3.5"><title>{}: {} after {}</title></circle>'
                ).format(number % 6, x(place), y(_drawn(row.carried_db)), item.title, decibels(row.carried_db), row.name)
            )
    label = f"Signal to noise after every block, for {len(lines)} files"
    return _svg(height, label, parts)


def site_chart(candidate: CandidateReport) -> Markup:
    """Signal to noise that every part makes alone, a bar each; short bars are loud."""
    rows = [row for row in candidate.layers if row.kind == "site" and row.alone_db is not None and row.alone_db < 100]
    if not rows:
        return Markup("")
    row_height, left = 16, 190
    height = TOP + row_height * len(rows) + 30
    x = _Axis(min(0.0, *(_drawn(row.alone_db) for row in rows)), max(_drawn(row.alone_db) for row in rows), left, WIDTH - 60)
    quiet = sorted(_drawn(row.alone_db) for row in rows)[max(0, len(rows) // 10 - 1)]
    parts = []
    for place, row in enumerate(rows):
        top = TOP + place * row_height
        value = _drawn(row.alone_db)
        kind = "loud" if value <= quiet else "bar"
        parts.append(
            Markup(
                '<text class="axis" x="{}" y="{}" text-anchor="end">{}</text>'
                '<rect class="{}" x="{:.1f}" y="{}" width="{:.1f}" height="{}"><title>{}: {} alone, {} with all before it</title>'
                '</rect><text class="axis" x="{:.1f}" y="{}">{:.0f}</text>'
            ).format(
                left - 6, top + 11, short(row.name), kind, x(min(0.0, value)), top + 2, max(1.0, x(value) - x(0.0)), row_height - 4,
                row.name, decibels(row.alone_db), decibels(row.carried_db), x(value) + 4, top + 11, value,
            )
        )  # fmt: skip
    parts.append(
        Markup(
            '<text class="axis" x="{:.1f}" y="{}" text-anchor="middle">signal to noise made by the part alone, dB</text>'
        ).format((left + WIDTH) / 2, height - 8)
    )
    return _svg(height, f"Signal to noise of every part of {candidate.title} alone", parts)


def sweep_chart(candidates: Sequence[CandidateReport]) -> Markup:
    """Largest difference at every size, a tile a file and size; darker is further away."""
    shown = [item for item in candidates if item.sweep]
    if not shown:
        return Markup("")
    sizes = sorted({drift.size for item in shown for drift in item.sweep}, key=lambda size: (size[0] * size[1], size))
    left, cell = 200, 34
    width = (WIDTH - left - RIGHT) / len(sizes)
    height = TOP + cell * len(shown) + 44
    finite = [drift.max_abs for item in shown for drift in item.sweep if math.isfinite(drift.max_abs) and drift.max_abs > 0]
    low, high = (math.log10(min(finite)), math.log10(max(finite))) if finite else (0.0, 1.0)
    parts = []
    for row, item in enumerate(shown):
        top = TOP + row * cell
        parts.append(
            Markup('<text class="axis" x="{}" y="{}" text-anchor="end">{}</text>').format(left - 6, top + 21, item.title)
        )
        found = {drift.size: drift for drift in item.sweep}
        for column, size in enumerate(sizes):
            drift = found.get(size)
            if drift is None:
                continue
            value = drift.max_abs
            share = (
                1.0 if not math.isfinite(value) else 0.0 if value <= 0 else (math.log10(value) - low) / ((high - low) or 1.0)
            )
            words = "NaN" if not math.isfinite(value) else f"{value:.0e}"
            parts.append(
                Markup(
                    '<rect class="tile" x="{:.1f}" y="{}" width="{:.1f}" height="{}" style="fill-opacity:{:.2f}">'
                    "<title>{} at {}x{} px: largest difference {:.2e}, cosine {:.6f}</title></rect>"
                    '<text class="{}" x="{:.1f}" y="{}" text-anchor="middle">{}</text>'
                ).format(
                    left + column * width + 1, top + 1, width - 2, cell - 2, 0.08 + 0.92 * share, item.title, *size, value,
                    drift.cosine, "on" if share > 0.5 else "axis", left + (column + 0.5) * width, top + 21, words,
                )
            )  # fmt: skip
    for column, size in enumerate(sizes):
        parts.append(
            Markup('<text class="axis{}" x="{:.1f}" y="{}" text-anchor="middle">{}x{}</text>').format(
                " small" if len(sizes) > 8 else "", left + (column + 0.5) * width, height - 24, *size
            )
        )
    parts.append(
        Markup('<text class="axis" x="{:.1f}" y="{}" text-anchor="middle">height x width of the image, px</text>').format(
            (left + WIDTH) / 2, height - 6
        )
    )
    return _svg(height, "Largest difference of any output at every size", parts)


def speed_chart(candidates: Sequence[CandidateReport]) -> Markup:
    """Top-1 or agreement over speed, a dot a file; up and to the right is better."""
    points = [
        (item, item.latencies[0].speedup, quality(item)) for item in candidates if item.latencies and quality(item) is not None
    ]
    if not points:
        return Markup("")
    height = 260
    speeds = [speed for _, speed, _ in points]
    values = [value or 0.0 for *_, value in points]
    margin = max(0.5, (max(values) - min(values)) * 0.3)
    y = _Axis(min(values) - margin, max(values) + margin, height - BOTTOM, TOP)
    x = _Axis(min(0.9, *speeds) - 0.05, max(1.1, *speeds) + 0.1, LEFT, WIDTH - 150)
    parts = [_horizontal(y, "%")]
    for tick in x.ticks():
        parts.append(
            Markup('<text class="axis" x="{:.1f}" y="{}" text-anchor="middle">{:.2g}x</text>').format(
                x(tick), height - BOTTOM + 16, tick
            )
        )
    lowest: list[tuple[float, float]] = []
    for number, (item, speed, value) in enumerate(points):
        level = y(value or 0.0) + 4
        while any(abs(level - other) < 13 and abs(x(speed) - at) < 200 for at, other in lowest):
            level += 13
        lowest.append((x(speed), level))
        words = f"{item.title}: {speed:.2f} times the speed of model.onnx with one image, {value:.2f} %"
        parts.append(
            Markup(
                '<circle class="dot c{}" cx="{:.1f}" cy="{:.1f}" r="6"><title>{}</title></circle>'
                '<text class="axis" x="{:.1f}" y="{:.1f}">{}</text>'
            ).format(number % 6, x(speed), y(value or 0.0), words, x(speed) + 10, level, item.title)
        )
    parts.append(
        Markup('<text class="axis" x="{:.1f}" y="{}" text-anchor="middle">speed over model.onnx, one image</text>').format(
            (LEFT + WIDTH - 150) / 2, height - 6
        )
    )
    return _svg(height, "Accuracy over speed of every file", parts)


def quality(item: CandidateReport) -> float | None:
    """Top-1 where there are labels, else agreement, in percent."""
    if item.classes is None:
        return None
    return 100 * (item.classes.top1[1] if item.classes.top1 is not None else item.classes.agreement)


def short(name: str) -> str:
    """``layers.0.blocks.1.mlp.fc2`` as ``1.1 mlp.fc2``: stages as people count them, blocks as the names have them."""
    parts = name.split(".")
    if parts[0] != "layers":
        return name.replace("patch_embed", "embed")
    stage = int(parts[1]) + 1
    rest = parts[3:] if parts[2] == "blocks" else ["merge", *parts[3:]]
    return f"{stage}.{rest[0]}" + (f" {'.'.join(rest[1:])}" if rest[1:] else "")


def decibels(value: float | None) -> str:
    """A signal to noise in words."""
    if value is None:
        return "not measured"
    return "equal" if value == math.inf else "no signal" if value == -math.inf else f"{value:.1f} dB"


def _drawn(value: float | None) -> float:
    return CLEAN_DB if value is None or value > CLEAN_DB else max(value, -60.0)


def _horizontal(axis: _Axis, unit: str) -> Markup:
    lines = [
        Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
            '<text class="axis" x="{}" y="{:.1f}" text-anchor="end">{:g} {}</text>'
        ).format(LEFT, WIDTH - RIGHT, axis(tick), axis(tick), LEFT - 6, axis(tick) + 4, tick, unit)
        for tick in axis.ticks()
    ]
    return Markup("").join(lines)


def _svg(height: float, label: str, parts: Sequence[Markup]) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">').format(WIDTH, height, escape(label))
    return head + Markup("").join(parts) + Markup("</svg>")
