"""Tables and pictures as notebooks show them, in JupyterLab and in VS Code alike."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from IPython.display import HTML, Image
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """Rows under a header; a notebook shows it as a table, a terminal as lines."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""

    def _repr_markdown_(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        shown = (f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)
        return "\n".join(shown) + (f"\n\n{self.note}" if self.note else "")

    def __repr__(self) -> str:
        lines = ["  ".join(str(cell) for cell in line) for line in (self.header, *self.rows)]
        return "\n".join([*lines, *([self.note] if self.note else [])])


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def preformatted(text: str) -> HTML:
    """Text whose columns stand below one another, in an exported notebook too, whose style sheet says otherwise."""
    return HTML(f'<pre style="font-family: monospace; white-space: pre; overflow-x: auto">{escape(text)}</pre>')


def picture(figure: Figure) -> Image:
    """A figure as a PNG, which needs no plotting mode of the notebook."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return Image(out.getvalue())


def size(count: float) -> str:
    """Bytes, readable."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
