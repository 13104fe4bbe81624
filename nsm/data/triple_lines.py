"""Lines of text files as cells: what can be read of them, and what to do about what cannot."""

import codecs
import csv
import gzip
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from nsm.config import ConfigError

LONGEST_LINE = 1 << 20
"""Bytes of a line, at most: no more of it is read into memory."""
HEADERS = (
    ("subject", "head", "source", "h", "s"),
    ("predicate", "relation", "rel", "r", "p"),
    ("object", "tail", "target", "t", "o"),
    ("confidence",),
    ("level",),
)
"""Names of columns: a first line that has one for each of subject, predicate and object is a header."""
MANY = 0.05
"""Share of a file's lines from which on dropping them deserves a reason."""
DUPLICATE = "duplicate"
"""The kind of fault that costs nothing to drop."""
REASONS = {
    "unknown relation": "the columns stand in another order than subject, predicate, object (a first line that names "
    "them gives it), or train holds other data",
    "unknown entity": "no training triple mentions these entities: what is measured holds for the others alone",
    "wrong number of columns": "a name holds the separator, or something else than tabs separates the columns",
    "not UTF-8": "the file was saved in another encoding: save it as UTF-8",
    "empty field": "the file was exported with gaps, which say nothing that could be learned",
    "bad confidence": "the fourth column holds something else than a confidence: name the columns in a first line",
    "bad level": "the fifth column holds something else than a level: name the columns in a first line",
    "also in": "the files were not split apart: each triple belongs in one of them",
}
"""What most likely lies behind many faults of a kind."""


class Fault(NamedTuple):
    """Why a line cannot be used, and what to do about it."""

    line: int
    what: str
    remedy: str


class Problems:
    """What is wrong with the files: at the end of each its first fault ends the run, or (not ``strict``) all count."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.dropped: dict[Path, Counter[str]] = {}
        """How many lines of each file cannot be used, by kind of fault."""
        self.warnings: list[str] = []
        """What was dropped of each file, in words."""
        self._first: dict[str, Fault] = {}

    def report(self, path: Path, line: int, kind: str, what: str, remedy: str) -> None:
        """A line of the file being read that cannot be used."""
        self._first.setdefault(kind, Fault(line, what, remedy))
        self.dropped.setdefault(path, Counter())[kind] += 1

    @contextmanager
    def reading(self, path: Path) -> Iterator[None]:
        """Around the reading of one file, which goes on after a fault, so that others like it are counted.

        Raises:
            ConfigError: if strict, about the first fault, where what ended the reading came later.
        """
        self._first = {}
        self.dropped.pop(path, None)
        try:
            yield
        except ConfigError as error:
            if self.strict and self._first:
                raise self.error(path) from error
            raise

    def end(self, path: Path, kept: int) -> None:
        """Say what came of a file, of which ``kept`` lines can be used.

        Raises:
            ConfigError: if lines cannot be used and strict, or more than half of them for anything but repetition.
        """
        if not self._first:
            return
        counts = self.dropped[path]
        bad = counts.total()
        total = kept + bad
        harmful = bad - counts[DUPLICATE]
        of_all = f"{bad:,} of its {total:,} line{'s' * (total > 1)}"
        if 2 * harmful > total:
            raise self.error(path, f"{of_all} cannot be used: dropping that many is no remedy")
        reason = _most_likely(counts) if harmful > MANY * total else ""
        if self.strict:
            closing = "domain.strict=false drops such lines and counts them"
            raise self.error(path, f"domain.strict=false would drop {of_all}{reason}" if reason else closing)
        kinds = [
            f"{counts[kind]:,} {kind} ({'the first in ' * (counts[kind] > 1)}line {fault.line}: {fault.what})"
            for kind, fault in self._first.items()
        ]
        said = f"{path.name}: domain.strict=false dropped {of_all}: {', '.join(kinds)}"
        if reason:
            said += f". {100 * harmful / total:.0f} % OF THE FILE IS LOST, more than a few odd lines{reason}"
        self.warnings.append(said)

    def error(self, path: Path, closing: str = "") -> ConfigError:
        """About the first fault that was met."""
        counts = self.dropped[path]
        kind, (line, what, remedy) = next(iter(self._first.items()))
        like, other = counts[kind] - 1, counts.total() - counts[kind]
        more = f"; and {like:,} more line{'s' * (like > 1)} like it" if like else ""
        more += f"; and {other:,} with other faults" if other else ""
        return ConfigError(f"{path}, line {line}: {what}; {remedy}{more}" + f" ({closing})" * bool(closing))


def _most_likely(counts: Mapping[str, int]) -> str:
    """What lies behind many faults."""
    # Where columns are swapped, names are unknown as entities too, and perhaps more often.
    kind = max(counts, key=lambda kind: (kind == "unknown relation", kind != DUPLICATE, counts[kind]))
    kind = "also in" if kind.startswith("also in ") else kind
    return f"; most likely {REASONS.get(kind, 'the file is damaged, or of another kind')}"


def rows(path: Path, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    """The cells of each line that is neither empty nor a comment, with its number, in the order of ``HEADERS``."""
    is_csv = ".csv" in path.suffixes
    places: list[int | None] | None = None
    width = 0
    for number, cells in (_csv_cells if is_csv else _tab_cells)(path, problems):
        if not width:
            width, places = len(cells), _places(cells)
            if places is not None:
                continue
            if is_csv:
                raise ConfigError(f"{path}, line {number}: {_headless(cells)}")
        if places is None:
            yield number, cells
        elif len(cells) != width:
            what = f"{len(cells)} columns where the header has {width}"
            problems.report(path, number, "wrong number of columns", what, "quote names that contain the separator")
        else:
            yield number, ["" if i is None else cells[i] for i in places]


def _headless(cells: Sequence[str]) -> str:
    """What is wrong with the first line of a CSV that names no columns."""
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(cells) == 1 and separator in cells[0]:
            return f"the columns of a .csv stand between commas, not {name}: separate by commas"
    return (
        "a .csv begins with the names of its columns, subject, predicate and object (or head, relation, tail) among "
        f"them, not {', '.join(cells)}"
    )


def _places(cells: Sequence[str]) -> list[int | None] | None:
    """Where each column of ``HEADERS`` stands, None for one that is not there; None in all if this is no header."""
    names = [cell.strip().lower() for cell in cells]
    places = [next((i for i, name in enumerate(names) if name in column), None) for column in HEADERS]
    if None in places[:3]:
        return None
    while places[-1] is None:
        places.pop()
    return places


def _tab_cells(path: Path, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    for number, line in _lines(path, problems):
        if line and not line.startswith("#"):
            yield number, line.split("\t")


def _csv_cells(path: Path, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    last = 0

    def texts() -> Iterator[str]:
        nonlocal last
        for number, line in _lines(path, problems):
            if line and not line.startswith("#"):
                last = number
                yield line + "\n"

    try:
        for cells in csv.reader(texts(), strict=True):
            yield last, cells
    except csv.Error as error:
        raise ConfigError(f"{path}, line {last}: not CSV ({error}); mend the quotes") from error


def _lines(path: Path, problems: Problems) -> Iterator[tuple[int, str]]:
    """Number and text of each line that can be read, without its end."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while raw := file.readline(LONGEST_LINE + 1):
                number += 1
                if number == 1 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise ConfigError(f"{path} is UTF-16 (it begins with that byte-order mark): save it as UTF-8")
                if len(raw) > LONGEST_LINE:
                    while raw and not raw.endswith(b"\n"):
                        raw = file.readline(LONGEST_LINE)
                    what = f"longer than {LONGEST_LINE:,} bytes"
                    problems.report(path, number, "line too long", what, "each triple stands on a line of its own")
                    continue
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    what = f"byte {error.start + 1} of the line (0x{raw[error.start]:02x}) is not UTF-8"
                    problems.report(path, number, "not UTF-8", what, "save the whole file as UTF-8")
                    continue
                yield number, text.rstrip("\r\n")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"{path}, after line {number}: not a whole gzip file ({error}); copy it again") from error
