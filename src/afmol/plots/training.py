"""Training curves and confusions."""

import json
from operator import index
from pathlib import Path

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from ..elements import CLASS_NAMES
from ..errors import ConfigError
from ..limits import read_whole
from .figure import INK, heading, panel, save

CURVES = ("#1f6fb4", "#e07b00", "#2a9d5c", "#c23b3b", "#7a52b8", "#8c6239", "#d6609f", "#4aa8b5")


def loss_plot(metrics: str | Path, path: str | Path) -> None:
    """Training curves of a metrics.jsonl: losses, dashed on the validation set, and its figures, against the step.

    Raises ConfigError: a metrics file that is missing, empty or damaged; a picture that cannot be written.
    """
    rows = read_metrics(metrics)
    names = dict.fromkeys(name for row in rows for name in row)
    losses = [name for name in names if name.startswith("loss")]
    figures = [name for name in names if name.startswith("validation_") and not name.startswith("validation_loss")]
    picture = Figure((11.5, 4.7), facecolor="white")
    left, right = panel(picture, 0.85, 0.55, 4.75, 3.1), panel(picture, 6.35, 0.55, 4.75, 3.1)
    for k, name in enumerate(losses):
        _curve(left, rows, name, CURVES[k % len(CURVES)], name.removeprefix("loss_"))
        _curve(left, rows, f"validation_{name}", CURVES[k % len(CURVES)], "_", dashed=True)  # "_": not in the legend
    for k, name in enumerate(figures):
        length = name.endswith("_error")
        label = name.removeprefix("validation_").replace("_", " ") + " (Å)" * length
        _curve(right, rows, name, CURVES[k % len(CURVES)], label, dashed=length)
    for axes, label in ((left, "loss (dashed: validation)"), (right, "validation")):
        axes.set_xlabel("step", fontsize=9, color=INK)
        axes.set_ylabel(label, fontsize=9, color=INK)
        axes.grid(True, color="#e6e6e6", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8.5, colors=INK)
        axes.set_xlim(0, 1.02 * max(1, rows[-1]["step"]))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if axes.lines:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, fontsize=8, frameon=False, handlelength=1.4)
    left.set_yscale("log", nonpositive="mask")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    left.yaxis.set_minor_formatter(NullFormatter())
    right.set_ylim(bottom=0)
    heading(picture, f"{Path(metrics).resolve().parent.name} training", f"step {rows[-1]['step']:,.0f}")
    save(picture, path)


def _curve(axes: Axes, rows: list[dict[str, float]], name: str, colour: str, label: str, dashed: bool = False) -> None:
    """One figure against the step, where there is any."""
    pairs = [(row["step"], row[name]) for row in rows if name in row]
    if pairs:
        style = {"color": colour, "linestyle": "--" if dashed else "-"}
        axes.plot(*np.transpose(pairs), label=label, linewidth=1.4, marker="o", markersize=1.8, **style)


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl by ascending step, numbers only; of a step logged twice the last one.

    A last line without an end is left out: a run that goes on is writing it.
    Raises ConfigError: a file that is missing, empty or damaged.
    """
    try:
        text = read_whole(Path(path), ConfigError).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = str(getattr(error, "strerror", "not text")).lower()
        raise ConfigError(f"{path} cannot be read ({why}); give the metrics.jsonl of a training run.") from error
    steps: dict[int, dict[str, float]] = {}
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        try:
            row = json.loads(line)
            step = index(row["step"])
            steps[step] = {k: v for k, v in row.items() if isinstance(v, int | float)}
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ConfigError(f"{path}: line {number} is damaged (not JSON with a step); remove it.") from error
    if not steps:
        raise ConfigError(f"{path} holds no step yet; wait until the training run has logged one.")
    return [steps[step] for step in sorted(steps)]


def confusion_picture(confusion: Int[np.ndarray, "6 6"], path: str | Path) -> None:
    """Class confusion [true, predicted], the sixth class missed and spurious atoms: counts and shares of each row.

    Raises ConfigError: a file that cannot be written.
    """
    n = len(CLASS_NAMES)
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    figure = Figure((7.1, 6.9), facecolor="white")
    axes = panel(figure, 1.38, 0.64, 5.5, 5.5)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(confusion.shape):
        if min(i, j) < n:  # neither there nor predicted cannot be counted
            colour = "white" if share[i, j] > 0.55 else INK if confusion[i, j] else "#b0b0b0"
            text = f"{confusion[i, j]:,}\n{100 * share[i, j]:.1f} %"
            axes.text(j, i, text, ha="center", va="center", fontsize=9.5, color=colour)
    axes.set_xticks(range(n + 1), [*CLASS_NAMES, "missed"])
    axes.set_yticks(range(n + 1), [*CLASS_NAMES, "spurious"])
    axes.tick_params(length=0, labelsize=9.5, colors=INK)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted class", fontsize=10, color=INK, labelpad=6)
    axes.set_ylabel("true class", fontsize=10, color=INK, labelpad=6)
    matched = confusion[:n, :n]
    right = 100 * np.trace(matched) / max(matched.sum(), 1)
    heading(figure, "classes of atoms", f"{matched.sum():,} matched atoms, {right:.1f} % right")
    save(figure, path)
