"""Pictures of predictions: confusion, calibration, breakdowns.

Figures are made without pyplot, so that nothing is kept open and no display is needed.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

P = ParamSpec("P")
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f5bb5", "#8c6d31")
"""Colours that the colour-blind tell apart (Okabe and Ito 2008), two added for long legends."""
INK, FAINT, OTHER = "#333333", "#d0d0d0", "#909090"
"""Colour of text, of grids, and of what has no colour of its own."""
Z = 1.96
"""Standard errors on both sides of a 95 % interval."""
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "savefig.dpi": 150,
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the house's style, whatever the process has set."""

    @wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, or whatever the path's suffix says."""
    with rc_context(STYLE):
        figure.savefig(path)


@styled
def confusion(counts: Sequence[Sequence[int]], title: str) -> Figure:
    """Confusion matrix: rows are true classes, columns answers; shares of each true class, and counts."""
    matrix = np.asarray(counts, dtype=float)
    share = matrix / matrix.sum(axis=1, keepdims=True).clip(min=1)
    figure = Figure(figsize=(3.6, 3.3), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(2, 2):
        colour = "white" if share[row, column] > 0.55 else INK
        text = f"{share[row, column]:.1%}\n{counts[row][column]:,}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=11)
    axes.set(xticks=(0, 1), yticks=(0, 1), xlabel="answer", ylabel="true class", title=title)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


@styled
def calibration(bins: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Reliability diagram above, how often each probability is given below.

    Args:
        bins: rows with the bounds ``low`` and ``high``, ``count``, mean ``probability`` and ``frequency`` of class 1.
    """
    figure = Figure(figsize=(4.4, 5.0), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    filled = [row for row in bins if row["count"]]
    above.plot((0, 1), (0, 1), color=INK, linewidth=0.8, linestyle="--", label="perfectly calibrated")
    columns = ("probability", "frequency", "count")
    probability, frequency, count = (np.array([row[key] for row in filled], dtype=float) for key in columns)
    # Wilson (1927), which stays within 0 and 1, and is wide where a bin holds few samples.
    middle = (frequency + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z * np.sqrt(frequency * (1 - frequency) / count + (Z / (2 * count)) ** 2) / (1 + Z**2 / count)
    above.vlines(probability, middle - half, middle + half, color=PALETTE[0], linewidth=1, alpha=0.5)
    area = 4 + 90 * count / count.max(initial=1)
    label = "model, 95 % interval; area: samples"
    above.scatter(probability, frequency, area, color=PALETTE[0], label=label, zorder=3, clip_on=False)
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is of class 1", title=title)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, handlelength=1.4, columnspacing=1.2)
    centres = [(row["low"] + row["high"]) / 2 for row in bins]
    widths = [row["high"] - row["low"] for row in bins]
    below.bar(centres, [row["count"] for row in bins], widths, color=PALETTE[0])
    below.set(xlabel="probability given to class 1", ylabel="samples")
    return figure


@styled
def breakdowns(groups: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> Figure:
    """Accuracy in each group of each breakdown, with 95 % intervals.

    Args:
        groups: by breakdown, rows with ``group``, ``samples`` and ``accuracy`` (``value``, ``low``, ``high``).
    """
    heights = [len(rows) for rows in groups.values()]
    figure = Figure(figsize=(4.7, 0.9 + 0.26 * sum(heights) + 0.45 * len(heights)), layout="constrained")
    for axes, (name, rows) in zip(
        np.ravel(figure.subplots(len(heights), sharex=True, height_ratios=heights, squeeze=False)),
        groups.items(),
        strict=True,
    ):
        _intervals(axes, rows)
        axes.set_title(name, fontsize=9)
    axes.set_xlabel("accuracy, with its 95 % interval")
    figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    return figure


@styled
def prediction_scatter(prediction: np.ndarray, target: np.ndarray, title: str) -> Figure:
    """Predicted numbers against true ones."""
    figure = Figure(figsize=(4.2, 4), layout="constrained")
    axes = figure.subplots()
    ends = (min(prediction.min(), target.min()), max(prediction.max(), target.max()))
    axes.plot(ends, ends, color=INK, linewidth=0.8, linestyle="--")
    axes.scatter(target, prediction, s=6, alpha=0.3, color=PALETTE[0], edgecolors="none")
    axes.set(xlabel="true number", ylabel="predicted number", title=title)
    return figure


@styled
def class_balance(shares: Mapping[str, float], title: str) -> Figure:
    """Share of each class in each set, from the shares of class 1."""
    figure = Figure(figsize=(4.7, 0.8 + 0.3 * len(shares)), layout="constrained")
    axes = figure.subplots()
    names, ones = list(shares), np.array(list(shares.values()))
    axes.barh(names, 1 - ones, color=PALETTE[0], label="class 0")
    axes.barh(names, ones, left=1 - ones, color=PALETTE[1], label="class 1")
    axes.axvline(0.5, color=INK, linewidth=0.8, linestyle="--")
    axes.set(xlim=(0, 1), xlabel="share of the samples", title=title)
    axes.invert_yaxis()
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


@styled
def training_curves(history: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Losses, accuracy, learning rate and memory over the epochs of one run, training and validation.

    Args:
        history: rows of ``training_history.json``.
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    epochs = [row["epoch"] for row in history]
    panels: dict[str, dict[str, Sequence[float | None]]] = {
        name: {stage: [row.get(f"{stage}/{name}") for row in history] for stage in ("train", "val")}
        for name in ("loss", "accuracy", "cycle_loss", "task_loss")
    }
    panels["learning rate"] = {"": [row["lr"] for row in history]}
    panels["peak memory, GiB"] = {"": [row["peak_memory_bytes"] / 2**30 for row in history]}
    for axes, (name, lines) in zip(figure.subplots(2, 3).flat, panels.items(), strict=True):
        for colour, (stage, values) in zip(PALETTE, lines.items(), strict=False):
            known = [(epoch, value) for epoch, value in zip(epochs, values, strict=True) if value is not None]
            if known:
                axes.plot(*zip(*known, strict=True), color=colour, marker="o", markersize=3, label=stage)
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(axes.lines) > 1:
            axes.legend(loc="best")
        if not axes.lines:
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=OTHER)
    figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    return figure


def _intervals(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for place, row in enumerate(rows):
        accuracy = row["accuracy"]
        if accuracy["low"] is not None:
            axes.hlines(place, accuracy["low"], accuracy["high"], color=PALETTE[0], linewidth=2, alpha=0.5)
        axes.plot(accuracy["value"], place, "o", color=PALETTE[0], markersize=5)
    axes.set_yticks(range(len(rows)), [f"{row['group']}  ({row['samples']:,})" for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
