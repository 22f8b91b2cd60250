"""The page's worker: from a stack to its molecule, an edit simulated again, memory after many predictions; its lines.

    python benchmarks/page.py [PREDICTIONS]

A stack of 128 x 128 x 10 of a flat molecule of 30 atoms; `afmol predict` on it in a process of its own, from its start
to the files. Run it on a machine that does nothing else.
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

import afmol
from afmol.files import write_scan
from afmol.results import prediction_record
from afmol.serve import server
from afmol.serve.worker import Worker
from afmol.simulation import Grid, Tip, simulate, standard_heights

TETRACENE = "c1ccc2cc3cc4ccccc4cc3cc2c1"
CONDITIONS = {"above_topmost": 2.7, "stiffness": 0.25, "charge": 0.05}


def timed(worker, job, request, payload):
    """Seconds of a job, and its answer."""
    start = time.perf_counter()
    *_, last = worker.do(job, request, payload)
    assert last[0] == "done", last
    return time.perf_counter() - start, last[1]


def main(predictions="100"):
    """Print the figures."""
    molecule = afmol.molecule_from_smiles(TETRACENE)
    molecule = replace(molecule, positions=molecule.positions + np.array([8.0, 8.0, 0.0]))
    tip = Tip()
    heights = standard_heights(molecule, tip, 2.97, 10)
    scan = simulate(molecule, tip, Grid((0.0, 0.0), (16.0, 16.0), (128, 128), heights))
    payload = np.ascontiguousarray(scan.data, "<f4").tobytes()
    stack = {"name": "tetracene", "shape": list(scan.data.shape), "size": list(scan.size), "heights": heights.tolist()}
    worker = Worker()
    request = {"model": "base", "scan": stack}
    first, again = (timed(worker, "predict", request, payload)[0] for _ in range(2))
    print(f"from a stack to its molecule: {first:.2f} s in a new worker, then {again:.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        write_scan(scan, Path(folder) / "stack.npz")
        start = time.perf_counter()
        command = [sys.executable, "-c", "from afmol.cli import main; main()", "predict", "stack.npz", "-o", "out"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        print(f"afmol predict: {time.perf_counter() - start:.2f} s")

    atoms = prediction_record(scan, molecule, "base", 0.8)
    edit = {"molecule": atoms, "scan": stack, "charges": None, "tip": "co-charge", "force": "exponential"}
    edit |= {"step": 0.1, "pixel": 0.25, "conditions": CONDITIONS}
    timed(worker, "simulate", edit, payload)  # RDKit is imported
    new, answer = timed(worker, "simulate", edit, payload)
    same, _ = timed(worker, "simulate", edit | {"charges": answer["charges"]}, payload)
    print(
        f"an edit of {len(molecule)} atoms, {answer['shape']}: {new:.3f} s with new charges, {same:.3f} s with the same"
    )

    process = psutil.Process(worker.process.pid)
    before = process.memory_info().rss / 2**20
    for _ in range(int(predictions)):
        timed(worker, "predict", request, payload)
    print(
        f"memory before and after {predictions} predictions: {before:.0f}, {process.memory_info().rss / 2**20:.0f} MB"
    )
    worker.stop()
    folder = Path(server.__file__).parent
    for kind, files in (("Python", folder.glob("*.py")), ("JavaScript", (folder / "page").glob("*.js"))):
        print(f"lines of {kind}: {sum(len(f.read_text().splitlines()) for f in files if 'min' not in f.name)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
