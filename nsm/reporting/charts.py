"""The page's charts: drawn by matplotlib, as SVG whose colours are the page's own, so that they follow its look."""

import io
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from nsm.figures import FAINT, INK, OTHER, PALETTE, STYLE
from nsm.reporting.configuration import Configuration
from nsm.reporting.records import Run, number
from nsm.reporting.summary import Summary

PAPER = "#fefefe"
"""Colour of what lies behind."""
VARIABLES = {INK: "var(--ink)", FAINT: "var(--line)", OTHER: "var(--other)", PAPER: "var(--paper)"} | {
    colour: f"var(--c{number})" for number, colour in enumerate(PALETTE)
}
"""What each colour is called in the page's style sheet."""
SIZE = (4.7, 3.0)
"""Inches: a panel that a phone shows at its own size."""
CURVES = (
    ("loss", "validation loss"),
    ("accuracy", "validation accuracy at P > .5"),
    ("cycle_loss", "validation cycle loss"),
)
EXTREME = 50
"""Largest loss over median loss, from which on a logarithmic axis shows more."""
LEGEND = 4
"""Lines of a slice that a legend names, at most."""
TICKS = 10
"""Values of a hyperparameter that get a place each; more lie on an axis of numbers."""


def svg(figure: Figure) -> str:
    """A figure as an SVG element without sizes, identifiers or colours of its own."""
    out = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": "nsm"}):
        figure.savefig(
            out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r' id="[a-z]+\d*_[\d_]*"', "", text)  # of groups, the same in every figure; nothing refers to them
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    return text


def panel(draw: Callable[[Axes], None], *, size: tuple[float, float] = SIZE) -> str:
    """One chart, styled."""
    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        return svg(figure)


def comparison(summary: Summary) -> str | None:
    """How far each domain's best configuration of each model comes on the way from majority (0) to ceiling (1).

    Where no ceiling is known, as with triples of one's own, 1 stands for it.
    """
    rows: list[tuple[str, list[Configuration]]] = []
    for domain in summary.domains:
        best: dict[str, Configuration] = {}
        for configuration in summary.of(domain):
            if configuration.spread("majority") and configuration.spread("test.accuracy"):
                best.setdefault(configuration.kind, configuration)
        if best:
            rows.append((domain, list(best.values())))
    if not rows:
        return None
    kinds = list(dict.fromkeys(configuration.kind for _, found in rows for configuration in found))

    def draw(axes: Axes) -> None:
        ticks, names, place = [], [], 0.0
        for domain, found in rows:
            start = place
            for configuration in found:
                colour = colour_of(kinds.index(configuration.kind))
                shares = [
                    share
                    for run in configuration.runs
                    if (share := _share(run, run.figure("test.accuracy"))) is not None
                ]
                axes.plot(
                    [0, fmean(shares)], [place, place], color=colour, linewidth=5, solid_capstyle="butt", alpha=0.85
                )
                axes.plot(shares, [place] * len(shares), "o", color=INK, markersize=2.5)
                ticks.append(place)
                names.append(configuration.kind)
                place += 1
            shortcuts = [
                share
                for run in found[0].runs
                if run.best_shortcut and (share := _share(run, run.best_shortcut[1])) is not None
            ]
            if shortcuts:
                axes.vlines(
                    fmean(shortcuts), start - 0.5, place - 0.5, color=INK, linewidth=1.2, linestyles=(0, (2, 1.5))
                )
            unknown = "" if any(c.spread("ceiling") for c in found) else " *"
            axes.text(-0.01, start - 0.8, domain + unknown, ha="left", va="center", fontweight="bold")
            place += 1.1
        axes.axvline(1, color=INK, linewidth=0.8)
        axes.set_yticks(ticks, names)
        axes.set_ylim(place - 1.2, -1.4)
        axes.set_xlim(min(0.0, axes.get_xlim()[0]), max(1.04, axes.get_xlim()[1]))
        axes.set_xlabel("share of the way from majority (0) to ceiling (1)")
        axes.grid(axis="y", visible=False)

    lines = sum(len(found) for _, found in rows) + 1.1 * len(rows)
    return panel(draw, size=(SIZE[0], 0.75 + 0.22 * lines))


def curves(coloured: Sequence[tuple[int, Configuration]]) -> list[str]:
    """Validation figures over epochs: the mean over a configuration's runs, and from its lowest to its highest run.

    Runs that did not end are dashed, each on its own.
    """
    charts = []
    for key, label in CURVES:
        lines = [
            (place, "-", _by_epoch(configuration.runs, f"val/{key}")) for place, configuration in reversed(coloured)
        ] + [
            (place, "--", _by_epoch([run], f"val/{key}"))
            for place, configuration in coloured
            for run in configuration.unfinished
        ]
        known = [value for _, _, by_epoch in lines for values in by_epoch.values() for value in values]
        if not known:
            continue

        def draw(axes: Axes, label: str = label, lines: Any = lines, known: list[float] = known) -> None:
            for place, style, by_epoch in lines:
                epochs, values, colour = list(by_epoch), list(by_epoch.values()), colour_of(place)
                axes.fill_between(
                    epochs, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.15, lw=0
                )
                marker = "o" if len(epochs) < 2 else None
                axes.plot(epochs, [fmean(v) for v in values], style, color=colour, marker=marker)
            longest = max(epoch for _, _, by_epoch in lines for epoch in by_epoch)
            if min(known) > 0 and max(known) > EXTREME * median(known):
                axes.set_yscale("log")
                label = f"{label} (logarithmic)"
            axes.set(xlabel="epoch", ylabel=label)
            if longest <= 12:
                axes.set_xticks(range(1, longest + 1))

        charts.append(panel(draw))
    return charts


def slices(group: Sequence[Configuration]) -> list[str]:
    """For each hyperparameter: score against its value, a line through configurations that are otherwise the same.

    Args:
        group: configurations of one model; those without a score, which come last, are a cross at the bottom.
    """
    keys, charts = varied(group), []
    for key in keys:
        alike: dict[tuple[str, ...], dict[str, Configuration]] = defaultdict(dict)
        for configuration in group:
            others = tuple(setting(configuration, other) for other in keys if other != key)
            alike[others].setdefault(setting(configuration, key), configuration)
        lines = [line for line in alike.values() if len(line) > 1 and any(c.score for c in line.values())]
        if not lines:
            continue
        values = sorted({value for line in lines for value in line}, key=_by_number)

        def draw(axes: Axes, key: str = key, values: list[str] = values, lines: Any = lines) -> None:
            places = dict(zip(values, _axis(axes, values), strict=True))
            others = [other for other in keys if other != key]
            telling = [o for o in others if len({setting(next(iter(line.values())), o) for line in lines}) > 1]
            for number_of, line in enumerate(lines):
                colour = colour_of(number_of) if len(lines) <= len(PALETTE) else OTHER
                first = next(iter(line.values()))
                label = ", ".join(f"{first.labels.get(other, other)}={setting(first, other)}" for other in telling)
                _slice(axes, {places[value]: configuration for value, configuration in line.items()}, colour, label)
            axes.set(xlabel=group[0].labels.get(key, key), ylabel=f"test {group[0].score_name}")
            if telling and len(lines) <= LEGEND:
                axes.legend(fontsize=7, loc="best")

        charts.append(panel(draw))
    return charts


def parallel(group: Sequence[Configuration]) -> str | None:
    """Parallel coordinates: a line a configuration through its hyperparameters to its score, brighter for better."""
    keys = varied(group)
    if len(keys) < 2 or len(group) < 4:
        return None
    scores = [configuration.score.mean for configuration in group if configuration.score]
    low, high = min(scores), max(scores)

    def draw(axes: Axes) -> None:
        axes.set_axis_off()
        axes.set_xlim(-0.15, len(keys) + 0.3)
        axes.set_ylim(-0.12, 1.12)
        heights = {key: _heights(sorted({setting(c, key) for c in group}, key=_by_number)) for key in keys}
        for place, key in enumerate(keys):
            axes.vlines(place, 0, 1, color=FAINT, linewidth=1)
            axes.text(place, 1.06, group[0].labels.get(key, key), ha="center", fontsize=8)
            for value, height in heights[key].items():
                behind = {"facecolor": PAPER, "edgecolor": "none", "pad": 1}
                axes.text(place, height, value, ha="center", va="center", fontsize=8, bbox=behind, zorder=4)
        axes.vlines(len(keys), 0, 1, color=FAINT, linewidth=1)
        axes.text(len(keys), 1.06, f"test {group[0].score_name}", ha="center", fontsize=8)
        for height, end in ((0, low), (1, high)):
            axes.text(len(keys) + 0.04, height, f"{end:.3f}", va="center", fontsize=8)
        for configuration, score in sorted(zip(group, scores, strict=True), key=lambda pair: pair[1]):
            share = (score - low) / (high - low) if high > low else 1.0
            path = [*(heights[key][setting(configuration, key)] for key in keys), share]
            colour = to_hex(colormaps["plasma"](0.3 + 0.5 * share))
            axes.plot(range(len(keys) + 1), path, color=colour, linewidth=1 + 1.5 * share, alpha=0.9)

    return panel(draw, size=(2 * SIZE[0], SIZE[1]))


def varied(group: Sequence[Configuration]) -> list[str]:
    """Hyperparameters that have more than one value in a group of configurations."""
    keys = dict.fromkeys(key for configuration in group for key in configuration.changed)
    return [key for key in keys if len({setting(configuration, key) for configuration in group}) > 1]


def setting(configuration: Configuration, key: str) -> str:
    """The value of a hyperparameter, or of a choice."""
    return configuration.settings.get(key) or configuration.changed.get(key, "default")


def colour_of(place: int) -> str:
    """The colour of the configuration at a place of its domain's table; grey past the last colour."""
    return PALETTE[place] if place < len(PALETTE) else OTHER


def _by_epoch(runs: Sequence[Run], key: str) -> dict[int, list[float]]:
    """A figure of the runs' histories, by epoch."""
    found: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        for row in run.history:
            value = number(row.get(key))
            if value is not None and number(row.get("epoch")):
                found[int(row["epoch"])].append(value)
    return dict(sorted(found.items()))


def _slice(axes: Axes, line: Mapping[float, Configuration], colour: str, label: str) -> None:
    """Single runs as dots, means as diamonds on a line, and a cross for what has no score."""
    means = {}
    for place, configuration in sorted(line.items(), key=lambda item: item[0]):
        if configuration.score is None:
            axes.plot(place, 0.03, "x", color=colour, transform=axes.get_xaxis_transform(), markersize=7)
            continue
        means[place] = configuration.score.mean
        scores = [run.figure(f"test.{configuration.score_name}") for run in configuration.runs]
        known = [score for score in scores if score is not None]
        axes.plot([place] * len(known), known, "o", color=colour, alpha=0.45, markersize=3)
    axes.plot(list(means), list(means.values()), color=colour, marker="D", markersize=4, linewidth=1.2, label=label)


def _share(run: Run, accuracy: float | None) -> float | None:
    majority, ceiling = run.figure("majority"), run.figure("ceiling") or 1.0
    if accuracy is None or majority is None or ceiling <= majority:
        return None
    return (accuracy - majority) / (ceiling - majority)


def _by_number(value: str) -> tuple[int, float, str]:
    try:
        return 0, float(value), value
    except ValueError:
        return 1, 0.0, value


def _axis(axes: Axes, values: Sequence[str]) -> Sequence[float]:
    """Lay the values out along x: a place each, or by size where they are many numbers."""
    numbers = [size for kind, size, _ in map(_by_number, values) if kind == 0]
    if len(values) <= TICKS or len(numbers) < len(values):
        axes.set_xticks(range(len(values)), values)
        axes.set_xlim(-0.4, len(values) - 0.6)
        return range(len(values))
    if min(numbers) > 0 and max(numbers) > 30 * min(numbers):
        axes.set_xscale("log")
    return numbers


def _heights(values: Sequence[str]) -> Mapping[str, float]:
    return dict(zip(values, np.linspace(0.05, 0.95, len(values)).tolist() if len(values) > 1 else [0.5], strict=True))
