"""SMILES of predicted molecules where what was found is a whole molecule, by RDKit in a process of its own.

The search for bond orders may take minutes or gigabytes, and no stack is worth that: the process is ended after
`SECONDS`, the molecule has no name then, and the next one gets a new process.

    python -m afmol.naming      a molecule a line in JSON -> its SMILES, or null, a line; asked for hydrogens that it
                                lacks, their directions by the atom that each is bonded to
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np

from .errors import AfmolError
from .hydrogens import Arrangement, lacking
from .structures import Molecule

SECONDS = 10.0
"""For one molecule."""
MEMORY = 2 * 2**30
"""Address space of the process, bytes; RDKit alone takes 0.6 GiB of it."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""The process's environment: a thread of OpenBLAS's takes 80 MiB of that address space, and it starts one a core."""

CHARGED = {("N", 1), ("O", -1)}
"""Charged atoms that a molecule may have side by side, those of nitro groups and N-oxides. Others, and triple bonds in
rings, are what RDKit makes of a hydrogen that was not seen or an element that is wrong."""


class Namer:
    """The process, which starts with the first molecule; a context that ends it."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Namer":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def smiles(self, molecule: Molecule) -> str | None:
        """Canonical SMILES of a molecule by its positions, elements and likely bonds; None where its valences are those
        of no neutral molecule, as where a part of it was not seen, or where to find out took too long."""
        return self._asked(molecule, add=False)

    def hydrogens(self, molecule: Molecule) -> dict[int, Arrangement]:
        """The hydrogens that a molecule lacks (hydrogens.py), if there are such that make it whole."""
        added = self._asked(molecule, add=True) or {}
        return {int(i): np.array(directions) for i, directions in added.items()}

    def _asked(self, molecule: Molecule, *, add: bool) -> Any:
        bonded = molecule.with_likely_bonds()
        if not len(bonded):
            return None
        process = self.process = self.process or subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],  # -P: nothing in the user's folder is taken for a module
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **ONE_THREAD},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        values = {name: getattr(bonded, name).tolist() for name in ("positions", "numbers", "bonds")} | {"add": add}
        late = threading.Timer(self.seconds, process.kill)
        late.start()
        try:
            process.stdin.write(f"{json.dumps(values)}\n".encode())
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = b""
        finally:
            late.cancel()
        if not line.endswith(b"\n"):
            self._stop()
            return None
        return json.loads(line)

    def _stop(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.communicate()


def _answer(values: dict) -> str | dict[int, list] | None:
    """To one line, here and now."""
    molecule = Molecule(
        np.array(values["positions"], float).reshape(-1, 3),
        np.array(values["numbers"], int),
        np.array(values["bonds"], int).reshape(-1, 2),
    )
    if not values["add"]:
        return smiles_of(molecule)
    return {i: directions.tolist() for i, directions in lacking(molecule, smiles_of).items()}


def smiles_of(molecule: Molecule) -> str | None:
    """As `Namer.smiles`, in this process, of a molecule whose bonds all count."""
    from .data.chemistry import graph_from_geometry

    with contextlib.suppress(AfmolError):
        mol = graph_from_geometry(molecule, bonded=True)
        charged = [a for a in mol.GetAtoms() if a.GetFormalCharge()]
        if all(
            (a.GetSymbol(), a.GetFormalCharge()) in CHARGED
            and any(b.GetFormalCharge() == -a.GetFormalCharge() for b in a.GetNeighbors())
            for a in charged
        ) and not any(b.IsInRing() and b.GetBondTypeAsDouble() == 3 for b in mol.GetBonds()):
            return mol.GetProp("_Name")
    return None


def _main() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # a system without the limit, or with a lower one
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    _main()
