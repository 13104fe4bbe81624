"""``python -m nsm.report FOLDER…``: every run beneath the folders, as a table and as one HTML page."""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nsm.reporting import page, text
from nsm.reporting.records import find_runs
from nsm.reporting.summary import Summary, summarise


def main(arguments: Sequence[str] | None = None) -> None:
    """Report as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m nsm.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="of runs, or with runs anywhere beneath")
    parser.add_argument("--html", type=Path, metavar="FILE", help="the page; FOLDER/report.html by default")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--csv", action="store_true", help="print one line a run instead, every figure and hyperparameter"
    )
    form.add_argument("--json", action="store_true", help="print configurations and runs instead")
    form.add_argument("--markdown", action="store_true", help="print a table for each domain instead")
    parser.add_argument(
        "--metrics", nargs="+", default=[], metavar="NAME", help="columns of --markdown; all by default"
    )
    parser.add_argument("--watch", nargs="?", type=float, const=10.0, metavar="SECONDS", help="do it again and again")
    options = parser.parse_args(arguments)
    if options.metrics and not options.markdown:
        parser.error("--metrics chooses the columns of --markdown")
    missing = [str(folder) for folder in options.folders if not folder.is_dir()]
    if missing:
        parser.error(f"no folder {', '.join(missing)}; runs lie in outputs/ unless hydra.run.dir= says otherwise")
    if options.watch is not None and (options.watch <= 0 or options.csv or options.json or options.markdown):
        parser.error("--watch repeats the table and the page; it takes a number of seconds above 0")
    try:
        while True:
            summary = summarise(find_runs(options.folders))
            if options.watch is not None and sys.stdout.isatty():
                print("\033[2J\033[H", end="")
            if not summary.runs and options.watch is None:
                parser.error(f"no runs beneath {', '.join(map(str, options.folders))}")
            if unknown := text.unknown_figures(summary, options.metrics):
                parser.error(unknown)
            show(summary, options)
            sys.stdout.flush()
            if options.watch is None:
                return
            time.sleep(options.watch)
    except KeyboardInterrupt:
        return
    except BrokenPipeError:  # whoever read has seen enough; Python would say so once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show(summary: Summary, options: argparse.Namespace) -> None:
    """Print what was asked for; with the table goes the page."""
    if options.csv:
        print(text.as_csv(summary), end="")
    elif options.json:
        print(json.dumps(text.as_json(summary), indent=2))
    elif options.markdown:
        print(text.markdown(summary, options.metrics))
    else:
        path = options.html or options.folders[0] / "report.html"
        page.write(summary, path, folders=options.folders, refresh=options.watch)
        print(f"{text.table(summary)}\n\n{path}", flush=True)


if __name__ == "__main__":
    main()
