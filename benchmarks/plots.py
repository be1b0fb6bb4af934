"""Draws the plots of benchmarks/README.md from results.json; run inside an environment that has
matplotlib.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).resolve().parent
OUT = HERE / "plots"
OURS, FLOOR, PEER = "#c2410c", "#9ca3af", "#1d4ed8"

# file name, title, axis label, workload, metric, logarithmic
CHARTS = [
    ("drain", "No-op drain, one worker", "tasks a second", "drain", "rate"),
    ("drain-two", "No-op drain, two workers", "tasks a second", "drain2", "rate"),
    ("enqueue-batch", "Enqueue, batch", "tasks a second", "batch", "rate"),
    (
        "enqueue-single",
        "Enqueue, 100 awaited singly at once",
        "tasks a second",
        "concurrent",
        "rate",
    ),
    ("latency-start", "Idle: enqueue to start, p50", "milliseconds (log)", "latency", "start_p50"),
    (
        "latency-result",
        "Idle: enqueue to result, p50",
        "milliseconds (log)",
        "latency",
        "result_p50",
    ),
    ("lateness", "Lateness of scheduled tasks, p50", "milliseconds (log)", "lateness", "p50"),
    ("payloads", "100 KiB payload and result", "tasks a second", "echo100k", "rate"),
]


def main() -> None:
    data = json.loads((HERE / "results.json").read_text())
    labels = {name: told["label"] for name, told in data["about"].get("setup", {}).items()}
    OUT.mkdir(exist_ok=True)
    plt.rcParams.update({"font.size": 10, "svg.hashsalt": "bench", "axes.spines.right": False})
    for name, title, axis, workload, metric in CHARTS:
        bars = [
            (labels.get(cell["entrant"], cell["entrant"]), cell["entrant"], cell["figures"][metric])
            for cell in data["cells"]
            if cell["workload"] == workload and metric in cell["figures"]
        ]
        if bars:
            chart(name, title, axis, sorted(bars, key=lambda bar: bar[2]["median"]))


def chart(name: str, title: str, axis: str, bars: list[tuple[str, str, dict[str, float]]]) -> None:
    """One horizontal bar a queue, with its spread, written as SVG and PNG."""
    logarithmic = "log" in axis
    if logarithmic:
        bars.reverse()
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(bars) + 1.3))
    middles = [figures["median"] for _, _, figures in bars]
    errors = [
        [f["median"] - f["low"] for _, _, f in bars],
        [f["high"] - f["median"] for _, _, f in bars],
    ]
    colours = [colour(entrant) for _, entrant, _ in bars]
    whiskers = {"lw": 1, "capsize": 2}
    names = [label for label, _, _ in bars]
    axes.barh(names, middles, xerr=errors, color=colours, error_kw=whiskers)
    for row, middle in enumerate(middles):
        text = f" {middle:,.0f}" if middle >= 100 else f" {middle:.3g}"
        axes.annotate(text, (max(middle, bars[row][2]["high"]), row), va="center", fontsize=9)
    if logarithmic:
        axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_title(title, loc="left")
    axes.set_xlabel(axis)
    axes.spines["top"].set_visible(False)
    figure.tight_layout()
    figure.savefig(OUT / f"{name}.svg", metadata={"Date": None})
    figure.savefig(OUT / f"{name}.png", dpi=120)
    plt.close(figure)


def colour(entrant: str) -> str:
    if entrant == "floor":
        return FLOOR
    return OURS if entrant.startswith("ours") else PEER


if __name__ == "__main__":
    main()
