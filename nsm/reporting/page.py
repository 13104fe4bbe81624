"""A summary as one HTML file that needs nothing else: no network, no script but its own, light and dark, any width."""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from nsm import figures
from nsm.figures import PALETTE
from nsm.reporting import charts, text
from nsm.reporting.configuration import Configuration, Spread, spread
from nsm.reporting.records import Run, age
from nsm.reporting.summary import Summary

COLOURED = len(PALETTE)
"""Configurations of a domain that have a colour, curves and a confusion matrix of their own: the best ones."""
SPARED = 2
"""Of these colours, how many go to configurations that have no result yet, if there are any."""


def write(summary: Summary, path: Path, *, folders: Sequence[Path], refresh: float | None = None) -> None:
    """Write the page whole or not at all.

    Args:
        folders: where the runs were looked for; said on the page.
        refresh: seconds after which a browser loads it again; None for never.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(render(summary, folders=folders, refresh=refresh, base=path.parent), encoding="utf-8")
    os.replace(beside, path)


def render(summary: Summary, *, folders: Sequence[Path], refresh: float | None = None, base: Path | None = None) -> str:
    """The page's HTML.

    Args:
        base: the folder that the page will lie in, for links to the runs' folders.
    """
    environment = Environment(
        loader=PackageLoader("nsm.reporting", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "pm": text.plus_minus,
        "whole": text.whole,
        "counted": text.counted,
        "money": text.money,
        "age": age,
        "id": id,
        "explain": text.explain,
        "signed": _signed,
        "mean": lambda figure: text.plus_minus(figure).split(" ±")[0],
        "duration": _duration,
        "spread": spread,
    }
    counts = Counter(run.status for run in summary.runs)
    seconds = [run.figure("seconds") for run in summary.runs]
    costs = [run.figure("cost_usd") for run in summary.runs]
    return environment.get_template("page.html.j2").render(
        title=", ".join(str(folder) for folder in folders),
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        refresh=refresh,
        palette=PALETTE,
        counts=counts,
        seconds=sum(value for value in seconds if value is not None),
        cost=sum(value for value in costs if value is not None) if any(value is not None for value in costs) else None,
        best=[pair for pair in (_best_two(summary, domain) for domain in summary.domains) if pair[0].score],
        comparison=_safe(charts.comparison(summary)),
        domains=[_domain(summary, domain) for domain in summary.domains],
        levels=_levels(summary),
        unsuccessful=sorted((run for run in summary.runs if run.status != "completed"), key=lambda run: run.status),
        runs=summary.runs,
        link=lambda run: _link(run, base),
        path=lambda run: _path(run, folders),
        given=_given,
    )


def _domain(summary: Summary, domain: str) -> dict[str, Any]:
    """What the page shows of one domain."""
    mine = summary.of(domain)
    scored = [configuration for configuration in mine if configuration.score]
    trained = [configuration for configuration in scored if not configuration.members]
    unscored = [configuration for configuration in mine if not configuration.score and configuration.unfinished]
    best = trained[: COLOURED - min(SPARED, len(unscored))]
    coloured = list(enumerate([*best, *unscored][:COLOURED]))
    metrics = text.test_figures(scored)
    return {
        "name": domain,
        "configurations": mine,
        "colour": {id(configuration): place for place, configuration in coloured},
        "common": summary.common[domain],
        "judges": text.judges(scored[:1]),
        "strips": _strips(scored),
        "curves": [Markup(chart) for chart in charts.curves(coloured)],
        "coloured": [configuration for _, configuration in coloured],
        "best": len(best),
        "trained": len(trained),
        "confusions": [shares for configuration in scored[:COLOURED] if (shares := _confusion(configuration))],
        "sweeps": _sweeps(mine),
        "ranked": any(configuration.spread("test.mrr") for configuration in scored),
        "cycles": any(configuration.spread("test.cycle_error") for configuration in scored),
        "thresholds": domain.split()[0] == "triples",
        "metrics": metrics,
        "details": [
            _details(configuration) for configuration in scored if any(run.evaluation for run in configuration.runs)
        ][:1],
        "scored": scored,
    }


def _best_two(summary: Summary, domain: str) -> tuple[Configuration, Configuration | None]:
    first, *others = summary.of(domain)
    return first, next((other for other in others if other.score), None)


def _strips(scored: Sequence[Configuration]) -> dict[int, dict[str, float]]:
    """For each configuration: where majority, best shortcut, ceiling and accuracy lie, 0 to 100, on one scale."""
    marked = {}
    for configuration in scored:
        marks = {
            "majority": configuration.spread("majority"),
            "shortcut": configuration.best_shortcut[1] if configuration.best_shortcut else None,
            "ceiling": configuration.spread("ceiling"),
            "score": configuration.spread("test.accuracy"),
        }
        if marks["score"]:
            marked[id(configuration)] = {name: figure for name, figure in marks.items() if figure}
    ends = [
        figure.mean + sign * (figure.deviation or 0)
        for marks in marked.values()
        for figure in marks.values()
        for sign in (-1, 1)
    ]
    low, high = max(0.0, min(ends, default=0.0)), min(1.0, max(ends, default=1.0))
    scale = 96 / max(high - low, 1e-9)
    return {
        key: {name: 2 + scale * (figure.mean - low) for name, figure in marks.items()}
        | {"spread": scale * (marks["score"].deviation or 0)}
        for key, marks in marked.items()
    }


def _confusion(configuration: Configuration) -> dict[str, Any] | None:
    """Share of each true class that is answered 0 and 1, over the configuration's runs."""
    right = [configuration.spread(f"test.accuracy_class_{label}") for label in (0, 1)]
    if right[0] is None or right[1] is None:
        return None
    zero, one = (figure.mean for figure in right if figure)
    return {"configuration": configuration, "rows": [[zero, 1 - zero], [1 - one, one]]}


def _sweeps(mine: Sequence[Configuration]) -> list[dict[str, Any]]:
    """Charts of what varied, for each model with more than one configuration, those without a result last."""
    groups: dict[tuple[str, int | None, str | None], list[Configuration]] = defaultdict(list)
    for configuration in mine:
        groups[configuration.model, configuration.levels, configuration.score_name].append(configuration)
    sweeps = []
    for (model, levels, score), scored in groups.items():
        if score is None:
            continue
        unscored = groups.get((model, levels, None), [])
        parallel, slices = charts.parallel(scored), charts.slices([*scored, *unscored])
        if parallel or slices:
            sweeps.append(
                {
                    "name": scored[0].kind,
                    "parallel": _safe(parallel),
                    "slices": [Markup(chart) for chart in slices],
                    "configurations": len(scored),
                    "runs": sum(len(configuration.runs) for configuration in scored),
                    "unscored": len(unscored),
                }
            )
    return sweeps


def _levels(summary: Summary) -> list[dict[str, Any]]:
    """Configurations that differ in nothing but their number of levels, side by side."""
    groups: dict[tuple[str, str, frozenset[tuple[str, str]]], list[Configuration]] = defaultdict(list)
    for configuration in summary.configurations:
        if configuration.levels and configuration.score:
            settings = configuration.settings or configuration.changed
            same = frozenset(item for item in settings.items() if item[0] != "model.levels")
            groups[configuration.domain, configuration.model, same].append(configuration)
    tables = []
    for group in groups.values():
        if len(group) < 2:
            continue
        group.sort(key=lambda configuration: configuration.levels or 0)
        first = group[0]
        rows = [{"configuration": other, "gain": None if other is first else other.gain_over(first)} for other in group]
        tables.append({"rows": rows, "domain": first.domain, "name": first.choices or "default"})
    return tables


def _details(configuration: Configuration) -> dict[str, Any]:
    """What ``nsm.evaluate`` found of the newest run that it was asked about."""
    run = max((run for run in configuration.runs if run.evaluation), key=lambda run: run.written)
    evaluation: Any = run.evaluation
    drawn = []
    for name, scored in evaluation.get("sets", {}).items():
        if scored.get("calibration") and name == evaluation.get("split"):
            drawn.append(figures.calibration(scored["calibration"], "calibration"))
        if scored.get("breakdowns"):
            small = {key: rows for key, rows in scored["breakdowns"].items() if len(rows) <= 16}
            drawn += [figures.breakdowns(small, f"accuracy on {name}")] if small else []
    return {"run": run, "figures": [Markup(charts.svg(figure)) for figure in drawn], "configuration": configuration}


def _link(run: Run, base: Path | None) -> str:
    """The run's folder, as seen from the page."""
    return Path(os.path.relpath(run.folder, base or ".")).as_posix()


def _path(run: Run, folders: Sequence[Path]) -> str:
    """The run's folder as seen from the one that was asked for; as it is where there were several."""
    inside = len(folders) == 1 and folders[0] in run.folder.parents
    return (run.folder.relative_to(folders[0]) if inside else run.folder).as_posix()


def _given(run: Run) -> list[str]:
    """Overrides that no column of its own tells."""
    return [each for each in run.overrides if each.split("=")[0] not in ("domain", "model", "seed")]


def _safe(chart: str | None) -> Markup | None:
    return None if chart is None else Markup(chart)


def _signed(figure: Spread | None) -> str:
    """As :func:`nsm.reporting.text.plus_minus`, the mean with its sign."""
    if figure is None:
        return "-"
    magnitude = text.plus_minus(Spread(abs(figure.mean), figure.deviation, figure.count))
    return ("-" if figure.mean < 0 else "+") + magnitude


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
