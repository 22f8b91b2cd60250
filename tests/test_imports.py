"""The tree is the pipeline: imports run one way along it, and importing the package costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

from afmol.elements import bonds_by_distance

PACKAGE = Path(__file__).parents[1] / "src" / "afmol"
ORDER = (
    *(
        "errors",
        "limits",
        "elements",
        "structures",
        "config",
        "files",
        "simulation",
        "resampling",
        "tiling",
        "lengths",
        "scale",
        "restraints",
        "data",
        "soap",
        "precision",
        "model",
    ),
    *(
        "checkpoint",
        "doubts",
        "metrics",
        "optimizer",
        "training",
        "plots",
        "imaging",
        "fitting",
        "hydrogens",
        "naming",
        "composition",
        "valences",
        "refinement",
        "prediction",
        "results",
        "evaluation",
        "calibration",
        "soap_evaluation",
    ),
    *("study", "demo", "serve", "cli"),
)
MODEL_MUST_NOT_IMPORT = {"afmol.files", "afmol.plots", "afmol.cli", "matplotlib", "ase", "rdkit", "h5py"}
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported(path: Path, text: str) -> set[str]:
    """Absolute names of all modules that the source in `path` imports, inside functions too."""
    package = ("afmol", *path.relative_to(PACKAGE).parts[:-1])
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join((*base, *(node.module or "").split("."))).strip(".")
            # `from . import files` names modules in the list, `from .files import read` names one before it
            names |= {f"{origin}.{alias.name}" for alias in node.names} if origin == "afmol" else {origin}
    return names


def stage(module: str) -> str:
    return module.split(".")[1]


def wrong_imports(path: Path, text: str) -> list[str]:
    """What the source in `path` may not import: later stages, and for the model what is not for a model."""
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    names = imported(path, text)
    own = {name for name in names if name.startswith("afmol.") and stage(name) in ORDER}
    wrong = {name for name in own if ORDER.index(stage(name)) > ORDER.index(here)}
    if here == "model":
        prefixes = {name for full in names for name in (full.split(".")[0], ".".join(full.split(".")[:2]))}
        wrong |= prefixes & MODEL_MUST_NOT_IMPORT
    return sorted(wrong)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_along_the_pipeline(path):
    assert path.relative_to(PACKAGE).parts[0].removesuffix(".py") in ORDER, "a new stage: give it its place in ORDER"
    assert wrong_imports(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("file", "text", "wrong"),
    [
        ("files.py", "from .cli import main", ["afmol.cli"]),
        ("files.py", "def f():\n    from . import plots, errors", ["afmol.plots"]),
        ("files.py", "import afmol.data.samples", ["afmol.data.samples"]),
        ("data/samples.py", "from afmol import training", ["afmol.training"]),
        ("model/layers.py", "from ..files import read_scan\nfrom .posnet import PosNet", ["afmol.files"]),
        ("model/layers.py", "import matplotlib.pyplot as plt", ["matplotlib"]),
        ("model/layers.py", "from ..structures import Molecule\nimport torch", []),
        ("plots.py", "import matplotlib\nfrom .files import read_scan", []),
    ],
)
def test_the_rule_sees_each_kind_of_import(file, text, wrong):
    assert wrong_imports(PACKAGE / file, text) == wrong


def test_importing_the_package_is_free():
    code = (
        "import sys, time; start = time.perf_counter(); import afmol; seconds = time.perf_counter() - start; "
        "print(seconds, *{'torch', 'numpy'} & sys.modules.keys())"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    words = [run.stdout.split() for run in runs]
    assert [heavy for _, *heavy in words] == [[], [], []]
    assert min(float(seconds) for seconds, *_ in words) < 0.1


def test_training_needs_no_chemistry_no_command_line_and_no_cluster():
    """Machines with GPUs often have torch and little else."""
    missing = ("rdkit", "ase", "tyro", "nanonispy2", "dask", "distributed", "h5py", "dscribe", "PIL")
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); import afmol.training"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_shapes_are_checked_in_test_runs():
    with pytest.raises(jaxtyping.TypeCheckError):
        bonds_by_distance(np.zeros((3, 2)), np.array([1, 1, 1]))
