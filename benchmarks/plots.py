"""Draws the plots: reads what `charts.py` arranged from standard input, writes SVG and PNG into the
folder named; run inside an environment that has matplotlib.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from PIL import Image

COLOURS = {
    "ours": "#d9480f",
    "variant": "#f5a97f",
    "streaq": "#1864ab",
    "peer": "#8fb3d4",
    "floor": "#ced4da",
}
INK, SOFT, GRID = "#212529", "#6c757d", "#e9ecef"
ROOMS = {
    "user call": "#d9480f",
    "serialising": "#f08c00",
    "hooks and telemetry": "#adb5bd",
    "client": "#f5c26b",
    "broker: arguments and replies": "#1864ab",
    "engine: claim, run, classify, settle": "#4dabf7",
    "scheduling": "#0b7285",
    "other": "#dee2e6",
    "Redis: scripts": "#5f3dc4",
    "Redis: everything else": "#b197fc",
}
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": INK,
    "svg.fonttype": "none",  # text stays text: a tenth of the size
    "svg.hashsalt": "bench",
}
WIDTH, ROW, FRAME = 10.0, 0.235, 0.85  # inches: the picture, a bar, and what is around the bars


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(exist_ok=True)
    spec = json.load(sys.stdin)
    plt.rcParams.update(STYLE)
    drawn = [draw(chart, out) for chart in spec["charts"]]
    if spec["budget"]:
        drawn.append(budget(spec["budget"], out))
    for old in out.iterdir():
        if old.suffix in {".svg", ".png"} and old.stem not in drawn:
            old.unlink()


def draw(chart: dict, out: Path) -> str:
    panels = chart["panels"]
    lines = [panels[start : start + 2] for start in range(0, len(panels), 2)]
    heights = [ROW * max(len(panel["bars"]) for panel in line) + FRAME for line in lines]
    figure, grid = plt.subplots(
        len(lines),
        2,
        figsize=(WIDTH, sum(heights)),
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
    )
    for axes, panel in zip(grid.flat, panels, strict=False):
        bars(axes, panel)
    for axes in list(grid.flat)[len(panels) :]:
        axes.axis("off")
    return save(figure, out, chart["name"])


def bars(axes: plt.Axes, panel: dict) -> None:
    """Horizontal bars, the best on top, with the range of the runs and a tick for the mark."""
    best_first = sorted(
        panel["bars"], key=lambda bar: bar["value"], reverse=panel["axis"] == "tasks a second"
    )
    for row, bar in enumerate(best_first):
        one_bar(axes, row, bar, ours=bar["kind"] == "ours")
    axes.set_yticks(range(len(best_first)), [bar["label"] for bar in best_first])
    for tick, bar in zip(axes.get_yticklabels(), best_first, strict=True):
        if bar["kind"] == "ours":
            tick.set_fontweight("bold")
    axes.set_ylim(len(best_first) - 0.4, -0.6)
    frame(axes, panel["axis"] + (" (log)" if panel["log"] else ""))
    axes.set_title(panel["title"], loc="left", fontsize=10, fontweight="bold")
    widest = max(max(bar["high"], bar["mark"] or 0) for bar in best_first)
    if panel["log"]:
        axes.set_xscale("log")
        lowest = min(bar["low"] for bar in best_first)
        decades = widest / lowest
        axes.set_xlim(lowest / 2, widest * decades**0.22 * 1.6)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    else:
        axes.set_xlim(0, widest * 1.2)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    if panel["mark"] and any(bar["mark"] for bar in best_first):
        axes.plot([], [], "|", color=INK, markersize=8, markeredgewidth=1.4, label=panel["mark"])
        where = "lower right" if panel["axis"] == "tasks a second" else "upper right"
        axes.legend(loc=where, frameon=False, fontsize=8, handletextpad=0.2)


def one_bar(axes: plt.Axes, row: int, bar: dict, *, ours: bool) -> None:
    axes.barh(row, bar["value"], height=0.72, color=COLOURS[bar["kind"]], zorder=2)
    if bar["low"] < bar["high"]:
        axes.plot([bar["low"], bar["high"]], [row, row], color=INK, lw=0.9, zorder=3)
    right = bar["high"]
    if bar["mark"]:
        axes.plot(bar["mark"], row, "|", color=INK, markersize=8, markeredgewidth=1.4, zorder=4)
        right = max(right, bar["mark"])
    value = bar["value"]
    text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    axes.annotate(
        text,
        (right, row),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=INK if ours else SOFT,
        fontweight="bold" if ours else "normal",
    )


def budget(stacks: list[dict], out: Path) -> str:
    """The parts of one task's time side by side: what the worker spends, then what Redis does."""
    figure, axes = plt.subplots(figsize=(WIDTH, 0.5 * len(stacks) + 1.7), layout="constrained")
    met = {name for stack in stacks for name, us in stack["parts"] if us}
    names = [name for name in ROOMS if name in met]
    for row, stack in enumerate(stacks):
        left, of = 0.0, dict(stack["parts"])
        for name in names:
            us = of.get(name, 0.0)
            axes.barh(row, us, left=left, height=0.62, color=ROOMS[name], edgecolor="white")
            left += us
        axes.annotate(
            f"{left:.1f} us",
            (left, row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontweight="bold",
        )
    axes.set_yticks(range(len(stacks)), [stack["label"] for stack in stacks])
    axes.set_ylim(len(stacks) - 0.4, -0.6)
    axes.margins(x=0.1)
    frame(axes, "microseconds of processor time for one task")
    handles = [plt.Rectangle((0, 0), 1, 1, color=ROOMS[name]) for name in names]
    figure.legend(handles, names, loc="outside upper left", ncols=4, frameon=False, fontsize=8)
    return save(figure, out, "budget")


def frame(axes: plt.Axes, label: str) -> None:
    axes.set_xlabel(label, fontsize=8)
    axes.tick_params(length=0, labelsize=8.5)
    axes.grid(axis="x", color=GRID, zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def save(figure: plt.Figure, out: Path, name: str) -> str:
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    figure.savefig(out / f"{name}.svg", metadata={"Date": None})
    sharp = io.BytesIO()
    figure.savefig(sharp, dpi=110)
    plt.close(figure)
    with Image.open(sharp) as picture:  # a palette: a third of the size, and looks the same
        picture.convert("RGB").quantize(64).save(out / f"{name}.png", optimize=True)
    return name


if __name__ == "__main__":
    main()
