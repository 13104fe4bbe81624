"""``make bench``, or ``python -m benchmarks``: measure and print."""

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch_geometric

from benchmarks.domains import measure_domain
from benchmarks.graphs import QUICK_SIZES, SIZES, measure_graphs
from benchmarks.layers import QUICK_SHAPES, SHAPES, measure_layers
from benchmarks.report import format_report
from nsm.config import ConfigError
from nsm.train import CONF


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, print it, and write it if asked to."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json {options.json}: there is no folder {options.json.parent}")
    torch.set_num_threads(options.threads)
    rounds, share = (2, 0.0) if options.quick else (options.rounds, options.share)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report: dict[str, Any] = {"machine": describe_machine(), "rounds": rounds, "share": share}
    try:
        report["domains"] = {
            name: measure_domain(name, share=share, rounds=rounds, threads=options.threads) for name in options.domains
        }
    except ConfigError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{error}. Run it from a folder that can be written: the data cache is {Path('data').absolute()}")
    report["layers"] = [
        measure_layers(shape, rounds=rounds, device=device) for shape in (QUICK_SHAPES if options.quick else SHAPES)
    ]
    sizes = QUICK_SIZES if options.quick else SIZES
    report["graphs"] = measure_graphs(sizes, rounds=rounds, threads=options.threads)
    print(format_report(report))
    if options.json:
        try:
            options.json.write_text(json.dumps(report, indent=2) + "\n")
        except OSError as error:
            parser.error(f"--json {options.json} cannot be written: {error.strerror}")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    domains = sorted(path.stem for path in Path(CONF, "domain").glob("*.yaml") if path.stem != "triples")
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the speed of NSM.")
    parser.add_argument(
        "--domains",
        nargs="*",
        choices=domains,
        default=domains,
        metavar="NAME",
        help="any of %(choices)s (default: all); without a name the layers alone",
    )
    parser.add_argument(
        "--rounds", type=whole, default=30, help="times that each thing is measured (default: %(default)s)"
    )
    parser.add_argument(
        "--share", type=positive, default=0.1, help="share of the default data to generate (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=whole, default=torch.get_num_threads(), help="CPU threads (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="two rounds on the least data: does everything run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    return parser


def whole(text: str) -> int:
    """A whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return number


def positive(text: str) -> float:
    """A number above 0."""
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return number


def describe_machine() -> dict[str, Any]:
    """What the numbers depend on beside the code."""
    return {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "torch_geometric": torch_geometric.__version__,
    }


def cpu_name() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
