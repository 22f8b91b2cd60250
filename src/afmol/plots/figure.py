"""What all pictures share: inks, panels placed in inches, the heading, the file."""

from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import ConfigError
from ..files import write_file

INK, QUIET = "#222222", "#6b6b6b"
FORMATS = (".png", ".pdf", ".svg")


def panel(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """New Axes, their lower left corner and size in inches."""
    w, h = figure.get_size_inches()
    return figure.add_axes((x / w, y / h, width / w, height / h))


def heading(figure: Figure, title: str, rest: str) -> None:
    """Two lines in the upper left corner: what it is, and its numbers."""
    w, h = figure.get_size_inches()
    title = title.encode(errors="replace").decode()  # names of files need not be text
    bold: dict[str, Any] = {"fontsize": 12.5, "fontweight": "bold", "parse_math": False}
    figure.text(0.25 / w, 1 - 0.14 / h, title, color=INK, va="top", **bold)
    figure.text(0.25 / w, 1 - 0.38 / h, rest, fontsize=9.5, color=QUIET, va="top")


def save(figure: Figure, path: str | Path) -> None:
    """Write a picture, whole or not at all. Raises ConfigError: a suffix that is not in FORMATS, an unwritable file."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ConfigError(f"{path} is no picture that afmol writes; choose a name that ends in {' or '.join(FORMATS)}.")
    picture = BytesIO()
    figure.savefig(picture, format=suffix[1:], dpi=150)
    write_file(path, picture.getvalue())
