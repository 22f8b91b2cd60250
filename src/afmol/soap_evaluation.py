"""Evaluation of a SOAP predictor on graphs that it has not seen: random points, or molecules of a test set.

"told": of the graph before the last addition the network is told the truth. "own": it goes by what it said itself at
each addition from the first node on, as it would in use.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .checkpoint import load_model
from .data.molecules import load_molecules
from .errors import ConfigError
from .files import make_folder, write_file
from .metrics import SpectrumErrors, count_spectra, spectrum_summary
from .model import SoapPredictor
from .model.soap_predictor import GrowingMolecules, Growth, PointsConfig, RandomPoints
from .plots.spectra import spectrum_picture

SEED = 2000
"""Added to the seed of the graphs: training takes the first ones."""
TOLD, OWN = (1.0, 1.0), (0.0, 0.0)


@dataclass(frozen=True)
class SoapEvaluationConfig:
    """What is evaluated."""

    graphs: int = 1000
    """Random points: graphs of each number of nodes. Molecules: partial graphs, and as many whole ones."""
    nodes: int = 10
    """Random points: of the largest graphs."""
    together: int = 10
    """Graphs that are read at once; those of random points share their classes, which decide most of the error."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.graphs, self.together) < 1 or self.nodes < 2:
            raise ConfigError("Evaluate at least one graph, of two nodes or more.")


def evaluate_predictor(
    model: str | Path, data: str | Path | None = None, config: SoapEvaluationConfig | None = None
) -> dict[str, Any]:
    """Figures of a SOAP predictor, see `metrics.spectrum_summary`, for "told" and "own".

    Args:
        model: weight file.
        data: packed molecule set (its test part); random points (report, 4.1.2) if None.

    Raises:
        MoleculeError, WeightsError, ConfigError: input that cannot be used.
    """
    config = config or SoapEvaluationConfig()
    predictor, name = load_model(model)
    if not isinstance(predictor, SoapPredictor):
        raise ConfigError(f"The model {name} is no SOAP predictor: it reads images; give it molecules with --data.")
    figures: dict[str, Any] = {"model": name, "data": "random points" if data is None else Path(data).name}
    figures["parameters"] = sum(p.numel() for p in predictor.parameters())
    for way, forcing in (("told", TOLD), ("own", OWN)):
        errors, began, n_graphs = SpectrumErrors(), time.perf_counter(), 0
        for batch in _batches(predictor, data, forcing, config):
            errors += errors_of(predictor, batch)
            n_graphs += len(batch.positions)
        seconds = time.perf_counter() - began
        figures[way] = spectrum_summary(errors) | {"graphs": n_graphs, "seconds_per_graph": seconds / n_graphs}
    return figures


@torch.no_grad()
def errors_of(predictor: SoapPredictor, batch: Growth) -> SpectrumErrors:
    """Counts of a batch of graphs."""
    soap = predictor.config.soap
    counts = batch.counts(soap.n_species)
    shape = (-1, soap.max_l + 1)
    found, truth = (x.unflatten(3, shape).double().numpy(force=True) for x in (predictor.grown(batch), batch.labels))
    return count_spectra(found, truth, batch.classes.numpy(force=True), counts.numpy(force=True))


def _batches(
    predictor: SoapPredictor, data: str | Path | None, forcing: tuple[float, float], config: SoapEvaluationConfig
) -> Iterator[Growth]:
    size = min(config.together, config.graphs)
    rounds, soap = -(-config.graphs // size), predictor.config.soap
    if data is None:
        points = PointsConfig(SEED + config.seed, config.nodes, forcing=forcing, noise=0.0)
        source = RandomPoints(points, soap, size, rounds * config.nodes)
        yield from (source.batch(q) for q in range(rounds * config.nodes))
        return
    molecules = load_molecules(data, "test")
    most = int(molecules.n_atoms.max())
    for first in (1, most):  # parts of molecules, then whole ones
        points = PointsConfig(SEED + config.seed, most, first, forcing=forcing, noise=0.0)
        source = GrowingMolecules(molecules, points, soap, size, rounds)
        yield from (source.batch(q) for q in range(rounds))


def spectrum_table(figures: dict[str, Any]) -> str:
    """The figures as text for a terminal."""
    lines = [f"{figures['model']} on {figures['data']}, {figures['parameters']:,} parameters"]
    for way in ("told", "own"):
        f = figures[way]
        lines += [
            "",
            f"{way}: MSE {f['mse']:.3f}, relative error {f['relative']:.4f}, {f['graphs']} graphs, "
            f"{1e3 * f['seconds_per_graph']:.1f} ms each with their labels",
            "  by degree l    " + "  ".join(f"{degree}: {v:.3f}" for degree, v in enumerate(f["mse_by_degree"])),
            *(f"  {case:28s} {v:.3f}" for case, v in f["mse_by_case"].items() if v is not None),
            "  nodes: MSE, relative error",
        ]
        rows = list(zip(f["sizes"], f["mse_by_size"], f["relative_by_size"], strict=True))
        chosen = rows if len(rows) <= 12 else [r for r in rows if r[0] % 5 == 0]
        lines += [f"  {size:3d}: {mse:.3f}, {relative:.4f}" for size, mse, relative in chosen]
    return "\n".join(lines)


def write_soap_evaluation(figures: dict[str, Any], out: str | Path) -> None:
    """soap_evaluation.json, .txt and .png.

    Raises:
        ConfigError: a folder or file that cannot be written.
    """
    out = make_folder(out)
    write_file(out / "soap_evaluation.json", f"{json.dumps(figures, indent=1)}\n".encode())
    write_file(out / "soap_evaluation.txt", f"{spectrum_table(figures)}\n".encode())
    spectrum_picture(figures, out / "soap_evaluation.png")
