"""``make test-faults``: kill runs and feed them bad input, in bulk, and print what came of it."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.faults import bad_input, kills

parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
parser.add_argument("--kills", type=int, default=30, help="runs killed, at least (default: %(default)s)")
parser.add_argument("--inputs", type=int, default=240, help="bad inputs (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--keep", type=Path, help="an empty folder for all that is written; a temporary one by default")


def main() -> int:
    """The exit code: 0 if every run was continued exactly, every input answered, and no file lost."""
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        (folder / "kills").mkdir(parents=True)
        start = time.monotonic()
        killed = kills.kill(arguments.kills, seed=arguments.seed, folder=folder / "kills")
        between = time.monotonic()
        fed = bad_input.feed(arguments.inputs, seed=arguments.seed, folder=folder / "inputs")
        end = time.monotonic()
    print(f"\nkills, seed {arguments.seed}, {between - start:.0f} s: {kills.told(killed)}")
    print(f"bad inputs, seed {arguments.seed}, {end - between:.0f} s: {bad_input.told(fed)}")
    exact = killed["bit-identical"] == killed["continued"] and not killed["files half-written"] + killed["files lost"]
    return 0 if exact and not bad_input.wrong(fed) else 1


if __name__ == "__main__":
    sys.exit(main())
