"""A summary as text: a table for the terminal, Markdown, CSV and JSON."""

import csv
import difflib
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nsm.reporting.configuration import Configuration, Spread, spread
from nsm.reporting.records import Run, age
from nsm.reporting.summary import Summary

OPTIONAL = ("mrr", "cycle", "$")
"""Columns that are left out where no configuration has a value."""
HEADER = (
    "domain",
    "model",
    "seeds",
    "accuracy",
    "mrr",
    "shortcut",
    "beaten",
    "ceiling",
    "cycle",
    "collapsed",
    "s",
    "$",
    "changed",  # last, since it may be longer than a terminal is wide
)
UNSUCCESSFUL_SHOWN = 20


def table(summary: Summary) -> str:
    """One line a configuration, the best of each domain first; below, what did not complete and why."""
    cells = [_cells(configuration) for configuration in summary.configurations]
    kept = [
        place
        for place, column in enumerate(HEADER)
        if column not in OPTIONAL or any(row[place] != "-" for row in cells)
    ]
    rows = [[row[place] for place in kept] for row in (HEADER, *cells)] if cells else []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines[1:1] = ["  ".join("-" * width for width in widths)] if rows else []
    for domain, common in summary.common.items():
        if common:
            lines.append(f"all of {domain}: {', '.join(f'{key}={value}' for key, value in common.items())}")
    counts = Counter(run.status for run in summary.runs)
    lines += [
        *([""] if lines else []),
        f"{counted(len(summary.runs), 'run')}: "
        + ", ".join(f"{count} {status}" for status, count in counts.most_common()),
    ]
    repeated = sum(len(configuration.repeated) for configuration in summary.configurations)
    if repeated:
        were = "was" if repeated == 1 else "were"
        lines.append(f"{repeated} of them {were} repeated later with the same seed and count nowhere")
    unsuccessful = [run for run in summary.runs if run.status != "completed"]
    for run in unsuccessful[:UNSUCCESSFUL_SHOWN]:
        lines.append(f"  {run.status:<12}{run.folder}  {explain(run)}")
        if run.continuing:
            lines.append(f"  {'':<12}to continue: {run.continuing}")
    more = len(unsuccessful) - UNSUCCESSFUL_SHOWN
    return "\n".join([*lines, *([f"  … and {more} more"] if more > 0 else [])])


def explain(run: Run) -> str:
    """What is known of a run that did not complete, in one line."""
    reason = run.error.strip().splitlines()[0] if run.error else f"last written {age(run)}"
    return f"after {counted(run.epochs, 'epoch')}: {reason}" if run.epochs else reason


def markdown(summary: Summary, metrics: Sequence[str]) -> str:
    """A table for each domain: mean ± standard deviation over seeds, and below it what the figures are judged by.

    Args:
        metrics: names of test figures, in order; empty for all that there are.
    """
    tables = []
    for domain in summary.domains:
        mine = [configuration for configuration in summary.of(domain) if configuration.runs]
        if not mine:
            continue
        columns = [name for name in metrics or test_figures(mine) if any(c.spread(f"test.{name}") for c in mine)]
        header = ["model", "seeds", *columns, "parameters", "seconds"]
        lines = [f"**{domain}**", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        for configuration in sorted(mine, key=lambda configuration: configuration.name):
            cells = [configuration.name, ", ".join(map(str, configuration.seeds))]
            cells += [plus_minus(configuration.spread(f"test.{name}")) for name in columns]
            cells += [whole(configuration.spread("parameters")), whole(configuration.spread("seconds"))]
            lines.append("| " + " | ".join(cells) + " |")
        collapsed = sum(configuration.collapsed for configuration in mine)
        total = sum(len(configuration.runs) for configuration in mine if not configuration.members)
        lines += ["", f"To judge by: {', '.join(judges(mine))}. Collapsed runs: {collapsed} of {total}."]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def judges(mine: Sequence[Configuration]) -> list[str]:
    """Majority, shortcuts and ceilings of a domain's runs, over their seeds, in words."""
    by_seed = list({run.seed: run for configuration in mine for run in configuration.runs}.values())
    shortcuts = list(dict.fromkeys(name for run in by_seed for name in run.figures("shortcuts")))
    names = {"majority": "majority", **{name: f"shortcuts.{name}" for name in shortcuts}}
    names |= {"ceiling": "ceiling", "ceiling_do": "ceiling_do"}
    found = {name: spread([run.figure(path) for run in by_seed]) for name, path in names.items()}
    return [f"{name} {plus_minus(figure)}" for name, figure in found.items() if figure]


def test_figures(mine: Sequence[Configuration]) -> list[str]:
    """Names of every test figure that the runs have, in the order of the first run that has it."""
    return list(
        dict.fromkeys(name for configuration in mine for run in configuration.runs for name in run.figures("test"))
    )


def unknown_figures(summary: Summary, names: Sequence[str]) -> str | None:
    """What to say of names that are no test figure of any run; None where all are."""
    runs = [*summary.runs, *(run for configuration in summary.configurations for run in configuration.runs)]
    known = {name for run in runs if isinstance(test := run.results.get("test"), dict) for name in test}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=3)
            instead = (
                f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(known)) or 'none'}"
            )
            return f"no run has a test figure {name}: {instead}"
    return None


def as_csv(summary: Summary) -> str:
    """One line a run: what it is, every figure, its hyperparameters."""
    rows = [_record(run) for run in summary.runs]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_json(summary: Summary) -> dict[str, Any]:
    """Configurations with their spreads, and every run."""
    described = []
    for configuration in summary.configurations:
        names = [f"test.{name}" for name in test_figures([configuration])]
        names += ["majority", "ceiling", "parameters", "seconds", "epochs"]
        spreads = {name: configuration.spread(name) for name in names}
        described.append(
            {
                "domain": configuration.domain,
                "model": configuration.model,
                "levels": configuration.levels,
                "changed": {**summary.common[configuration.domain], **configuration.changed},
                "seeds": configuration.seeds,
                "verdict": configuration.verdict[1],
                "collapsed": configuration.collapsed,
                "cost_usd": configuration.cost,
                "figures": {name: asdict(figure) for name, figure in spreads.items() if figure},
                "unsuccessful": [str(run.folder) for run in configuration.unsuccessful],
            }
        )
    return {"configurations": described, "runs": [_record(run) for run in summary.runs]}


def plus_minus(figure: Spread | None, digits: int = 3) -> str:
    """Mean and standard deviation, as ``.847 ± .006``; a dash where there is nothing."""
    if figure is None:
        return "-"
    deviation = "" if figure.deviation is None else f" ± {figure.deviation:.{digits}f}"
    return re.sub(r"\b0\.", ".", f"{figure.mean:.{digits}f}{deviation}")


def counted(number: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def whole(figure: Spread | None) -> str:
    """The mean without decimals."""
    return "-" if figure is None else f"{figure.mean:,.0f}"


def money(amount: float | None) -> str:
    """US$ with two decimals."""
    return "-" if amount is None else f"{amount:.2f}"


def _cells(configuration: Configuration) -> tuple[str, ...]:
    shortcut = configuration.best_shortcut
    wins = f"{sum(margin > 0 for margin in configuration.margins)}/{len(configuration.margins)}"
    return (
        configuration.domain,
        configuration.kind,
        ",".join(map(str, configuration.seeds)) or configuration.outcomes,
        plus_minus(configuration.score) + (" r2" if configuration.score_name == "r2" else ""),
        plus_minus(configuration.spread("test.mrr")),
        f"{plus_minus(shortcut[1])} {shortcut[0]}" if shortcut else "-",
        wins if configuration.margins else "-",
        plus_minus(configuration.spread("ceiling")).split(" ±")[0],
        plus_minus(configuration.spread("test.cycle_error")),
        f"{configuration.collapsed}/{len(configuration.runs)}" if configuration.runs else "-",
        whole(configuration.spread("seconds")),
        money(configuration.cost),
        configuration.choices,
    )


def _record(run: Run) -> dict[str, Any]:
    known = ("epochs", "best_epoch", "best_val_loss", "majority", "ceiling", "ceiling_do", "parameters", "seconds")
    more = ("graphs_per_second", "peak_memory_bytes", "cost_usd")
    return {
        "folder": str(run.folder),
        "status": run.status,
        "error": run.error,
        "domain": run.domain,
        "model": run.model,
        "levels": run.levels,
        "seed": run.seed,
        **{name: run.figure(name) for name in (*known, *more)},
        "collapsed": run.results.get("collapsed"),
        "device": run.results.get("device"),
        "git_commit": run.results.get("git_commit"),
        "config_hash": run.results.get("config_hash"),
        **{f"{group}.{name}": value for group in ("test", "shortcuts") for name, value in run.figures(group).items()},
        **run.settings,
    }
