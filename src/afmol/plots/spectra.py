"""Errors of predicted SOAP vectors: by degree, by case, by size; and over the epochs of training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from .figure import INK, heading, panel, save
from .training import CURVES


def spectrum_picture(figures: Mapping[str, Any], path: str | Path) -> None:
    """What `evaluate_predictor` found, told and on its own.

    Raises ConfigError: a file that cannot be written.
    """
    figure = Figure((11.5, 4.7), facecolor="white")
    degree, case, size = (panel(figure, x, 1.1, 2.95, 2.7) for x in (0.75, 4.5, 8.3))
    for k, way in enumerate(("told", "own")):
        f = figures[way]
        cases = {name: v for name, v in f["mse_by_case"].items() if v is not None}
        for axes, values in ((degree, f["mse_by_degree"]), (case, list(cases.values()))):
            axes.bar(np.arange(len(values)) + 0.38 * (k - 0.5), values, 0.36, color=CURVES[k], label=way)
        degree.set_xticks(range(len(f["mse_by_degree"])))
        case.set_xticks(range(len(cases)), [name.replace(" ", "\n") for name in cases], fontsize=7)
        relative = [np.nan if v is None else 100 * v for v in f["relative_by_size"]]
        size.plot(f["sizes"], relative, "o-", markersize=3, color=CURVES[k], label=way)
    for axes, x, y in (
        (degree, "degree l", "mean squared error"),
        (case, "classes of the pair and of the centre", "mean squared error"),
        (size, "nodes", "relative error (%)"),
    ):
        _style(axes, x, y)
        axes.set_ylim(bottom=0)
    degree.legend(fontsize=8, frameon=False)
    numbers = ", ".join(f"{way}: MSE {figures[way]['mse']:.3g}" for way in ("told", "own"))
    heading(figure, f"{figures['model']} on {figures['data']}", numbers)
    save(figure, path)


def epoch_picture(rows: Sequence[Mapping[str, float]], epoch: int, path: str | Path, title: str) -> None:
    """Mean squared error over the epochs of training, as the report's figures 14 and 25.

    Args:
        rows: of `read_metrics`.
        epoch: steps of an epoch; rows are averaged over each.
        path, title: of the picture.

    Raises ConfigError: a file that cannot be written.
    """
    steps, losses = (np.array([row[name] for row in rows if "loss_soap" in row]) for name in ("step", "loss_soap"))
    which = ((steps - 1) // epoch).astype(int)
    epochs = np.unique(which)
    means = [losses[which == e].mean() for e in epochs]
    figure = Figure((6.4, 4.4), facecolor="white")
    axes = panel(figure, 0.85, 0.6, 5.2, 3.0)
    axes.plot(epochs + 1, means, "o-", markersize=2.5, linewidth=1.4, color=CURVES[0])
    axes.set_yscale("log")
    _style(axes, "epoch", "mean squared error")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    heading(figure, title, f"epoch {epochs[-1] + 1}: {means[-1]:.3g}")
    save(figure, path)


def _style(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.grid(True, color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
