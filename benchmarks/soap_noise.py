"""What an error of a SOAP predictor would do to the ASD model: noise on the true SOAP of a trained one.

The noise is normal, on all entries of pairs of classes that a graph has (of the others a predictor says zero), drawn
anew at each step, its variance being the mean squared error that it stands for.

usage: python benchmarks/soap_noise.py WEIGHTS DATA.npz [SAMPLES]
WEIGHTS: of a SOAP variant of a study, such as study/soap_messages_0/soap_messages.safetensors; DATA: a packed set, its
test part.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from afmol.checkpoint import load_model
from afmol.config import config_from_toml
from afmol.data.molecules import load_molecules
from afmol.study.judge import judge
from afmol.training import TrainConfig

ERRORS = (0.0, 0.01, 0.1, 1.0, 3.0, 10.47, 30.0, 100.0, 1000.0)
"""Mean squared errors; 10.47 is the report's."""


def noisy(spectrum, error, generator):
    """SOAP as the model computes it, with noise."""

    def with_noise(*arguments):
        soap = spectrum(*arguments)
        noise = torch.randn(soap.shape, generator=generator).to(soap) * error**0.5
        return soap + noise * (soap != 0).any(2, keepdim=True)

    return with_noise


def main(weights, data, samples="100"):
    """Print the table."""
    molecules = load_molecules(data, "test")
    usual = config_from_toml(TrainConfig, Path(__file__).parents[1] / "configs" / "asd" / "soap_messages.toml")
    print("MSE; single steps: class accuracy, N/P precision, bond precision, bond recall; losses: class, bond;")
    print("whole graphs: class accuracy")
    for error in ERRORS:
        model, _ = load_model(weights)
        if error:
            model.builder.spectrum = noisy(model.builder.spectrum, error, torch.Generator().manual_seed(0))
        figures = judge(model, molecules, usual.data, int(samples), 0.0, given=True)
        steps, losses = figures["steps"], figures["losses"]
        numbers = [steps["class_accuracy"], steps["class_precision"][2], steps["bond_precision"], steps["bond_recall"]]
        numbers += [losses["class"], losses["bond"], figures["whole"]["class_accuracy"]]
        text = "  ".join("-" if v is None or np.isnan(v) else f"{v:.4f}" for v in numbers)
        print(f"{error:8.2f} {text}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
