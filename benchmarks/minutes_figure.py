"""What `benchmarks.minutes` measured, as a figure: errors against minutes, and learning curves."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.minutes_page import (
    CASES,
    Row,
    curve_rows,
    mean,
    minutes_of,
    once,
    rows_of,
    silicon_rows,
)

MINUTES, FRAMES = [0.2, 0.5, 1, 2, 3, 5, 10, 20, 30], [50, 100, 200, 500, 1000]
YTICKS = [4, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500]


def draw(numbers: Row, earlier: Row, path: Path) -> None:
    """Draw force errors against minutes: of ethanol, of silicon, and learning curves."""
    numbers = once(numbers)
    curves, silicon = curve_rows(numbers), silicon_rows(numbers)
    count = 1 + bool(silicon) + bool(curves)
    figure, axes = plt.subplots(1, count, figsize=(6 if count == 1 else 5 * count, 6.2),
                                squeeze=False, layout="constrained")  # fmt: skip
    _draw_minutes(axes[0, 0], rows_of(numbers, earlier), "1000 test frames of ethanol")
    if silicon:
        _draw_minutes(axes[0, 1], silicon, "25 test frames of silicon")
    if curves:
        _draw_curves(axes[0, -1], curves)
    with plt.rc_context({"svg.hashsalt": "minutes"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _draw_minutes(ax: plt.Axes, rows: list[Row], test: str) -> None:
    """Draw a line each case; what was trained earlier stands beside it, with an open mark."""
    for case, what in CASES.items():
        own = [row for row in rows if row["case"] == case]
        (style, color), label = what.style, what.label.replace(" †", "")
        new = [row for row in own if not row.get("earlier")]
        if new:
            points = [(t, [r for r in new if minutes_of(r) == t])
                      for t in sorted({minutes_of(row) for row in new})]  # fmt: skip
            y = [mean(there, "force_mae") for _, there in points]
            ax.plot([t for t, _ in points], y, style, color=color, label=label, markersize=6)
            for t, there in points:
                every = [1000 * row["force_mae"] for row in there]
                ax.vlines(t, min(every), max(every), color=color, linewidth=4, alpha=0.4)
        for row in (row for row in own if row.get("earlier")):
            ax.plot(minutes_of(row), 1000 * row["force_mae"], style[0], color=color, markersize=7,
                    markerfacecolor="white", label=None if new else label)  # fmt: skip
    _decorate(ax, "minutes of one core", f"force MAE on {test}, meV/Å", MINUTES)


def _draw_curves(ax: plt.Axes, curves: dict[tuple[str, float], dict[int, list[Row]]]) -> None:
    for (case, minutes), curve in curves.items():
        style, color = CASES[case].style
        frames = sorted(curve)
        label = f"{CASES[case].label.replace(' †', '')}, {minutes:g} min"
        ax.plot(frames, [mean(curve[n], "force_mae") for n in frames], style, color=color,
                label=label)  # fmt: skip
        for n in frames:
            every = [1000 * row["force_mae"] for row in curve[n]]
            ax.vlines(n, min(every), max(every), color=color, linewidth=4, alpha=0.4)
    _decorate(ax, "frames, those that choose weights among them", "force MAE, meV/Å", FRAMES)


def _decorate(ax: plt.Axes, x: str, y: str, xticks: list[float]) -> None:
    ax.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(plt.FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(plt.NullFormatter())
    limits = ax.get_xlim(), ax.get_ylim()
    ax.set_xticks(xticks)
    ax.set_yticks(YTICKS)
    ax.set(xlim=limits[0], ylim=limits[1])  # ticks may lie beyond what was drawn
    ax.grid(which="both", alpha=0.25)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, fontsize="small",
              frameon=False)  # fmt: skip
