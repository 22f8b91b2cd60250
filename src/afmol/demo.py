"""The example of `afmol demo`: a molecule of the test split, built, simulated with noise, predicted and compared."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from .checkpoint import DEFAULT_MODEL, load_model
from .data.bending import lay_down
from .data.chemistry import molecule_from_smiles
from .evaluation import YARDSTICK
from .files import make_folder, write_molecule, write_scan
from .metrics import compare, summary, table, total
from .plots import stack_strip
from .prediction import predict
from .results import write_prediction
from .simulation import TIPS, grid_around, simulate
from .simulation.artefacts import white_noise

SMILES = "O=C1/C(=C2\\Nc3cccc(Cl)c3C2=O)Nc2ccccc21"
NAME = "chloroindirubin"
SEED = 1


def demo(out: str | Path) -> str:
    """Writes NAME.npz (the stack), NAME_stack.png, NAME_truth.xyz and the prediction; returns the comparison as text.

    Raises:
        ConfigError: a folder that cannot be written.
    """
    out = Path(out)
    make_folder(out)
    network, model = load_model(DEFAULT_MODEL)
    rng = np.random.default_rng(SEED)
    molecule = replace(lay_down(molecule_from_smiles(SMILES, seed=SEED), rng, tilt=2.0), name=NAME)
    grid = grid_around(molecule, TIPS["co"], margin=YARDSTICK.margin, pixel=YARDSTICK.pixel)
    scan = simulate(molecule, TIPS["co"], grid)
    scan = replace(scan, data=white_noise(scan.data, YARDSTICK.noise, rng), source=NAME)
    truth = replace(molecule, positions=molecule.positions - [*grid.origin, 0.0])
    write_scan(scan, out / f"{NAME}.npz")
    write_molecule(truth, out / f"{NAME}_truth.xyz")
    stack_strip(scan, out / f"{NAME}_stack.png")

    found = predict(scan, network)
    paths = write_prediction(scan, found, out, NAME, model, network.config.depth, reference=truth)
    seen = truth.within(network.config.depth)
    figures = summary(total([compare(found, truth, seen)]))
    return (
        f"Simulated {NAME} ({SMILES}), which the network has never seen: {len(truth)} atoms, "
        f"{int(seen.sum())} of them within {network.config.depth} A of the top.\n\n{table(figures)}\n\n"
        f"Pictures: {paths[-1]}, {out / f'{NAME}_stack.png'}"
    )
