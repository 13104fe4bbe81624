"""Lines of text files as cells: what can be read of them, and what to do about what cannot."""

import csv
import gzip
import logging
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from nsm.config import ConfigError

log = logging.getLogger(__name__)
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
TOLERANT = "domain.strict=false drops such lines and counts them"


class Problems:
    """What is wrong with the files: the first problem ends the run, or (not ``strict``) all are counted by kind."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.dropped: Counter[str] = Counter()

    def report(self, path: Path, line: int, kind: str, what: str, remedy: str) -> None:
        """A line that cannot be used.

        Raises:
            ConfigError: if strict, naming file, line and remedy.
        """
        if self.strict:
            raise ConfigError(f"{path}, line {line}: {what}; {remedy} ({TOLERANT})")
        if not self.dropped[kind]:
            log.warning("%s, line %d: %s; dropped, and so are others like it", path, line, what)
        self.dropped[kind] += 1


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
                raise ConfigError(
                    f"{path}, line {number}: a .csv begins with the names of its columns, subject, predicate and "
                    f"object (or head, relation, tail) among them, not {', '.join(cells)}"
                )
        if places is None:
            yield number, cells
        elif len(cells) != width:
            what = f"{len(cells)} columns where the header has {width}"
            problems.report(path, number, "wrong number of columns", what, "quote names that contain the separator")
        else:
            yield number, ["1" if i is None else cells[i] for i in places]


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
