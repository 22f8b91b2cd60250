"""What the page asks for: each job is one function of the package, wrapped in plain values and bytes.

    request (plain values), payload (bytes), say -> answer (plain values), bytes

A stack travels as 32-bit floats in the order (x, y, slice), a molecule as in afmol-prediction/1 (CONVENTIONS.md).
`say` tells the page what is being done.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import load_image_model
from ..data.chemistry import graph_from_geometry, with_charges
from ..elements import BY_SYMBOL, ELEMENTS
from ..errors import ConfigError, MoleculeError, ScanError
from ..files import MOLECULES, in_order, read_scan, scan_files, write_molecule
from ..fitting import Conditions, FitConfig, correlations, fit_conditions, imaged, target
from ..plots import prediction_picture
from ..plots.stack import best_slice
from ..prediction import predict
from ..resampling import constant, usable
from ..results import prediction_record
from ..structures import Molecule, Scan

Say = Callable[[str], None]
Answer = tuple[dict[str, Any], bytes]
MOST_LETTERS = 100
"""Of an uploaded file's name, the last ones are kept."""
STAND_IN = (20.0, 20.0)
"""A size for the picture of a stack whose size is not known yet, A."""


def opened(request: dict[str, Any], payload: bytes, say: Say) -> Answer:
    """A stack: "path" names it on this machine, or "files" its uploaded files, [name, length] in the payload's order.

    "size", "heights", "channel" and "direction" are as of `read_scan`. "lacks" names what has to be given still, and
    then the picture has stand-ins for it; "why" is the sentence about it.
    """
    choices: dict[str, Any] = {name: request.get(name) for name in ("size", "heights", "channel")}
    choices |= {"direction": request.get("direction") or "average"}
    say("reading")
    if request.get("path") is not None:
        return _opened(request["path"], choices)
    with tempfile.TemporaryDirectory(prefix="afmol") as folder:
        paths, start = [], 0
        for k, (name, length) in enumerate(request["files"]):
            last = Path(str(name).replace("\\", "/")).name[-MOST_LETTERS:].lstrip(".")
            path = Path(folder) / f"{k}" / (last or "file")
            path.parent.mkdir()  # of its own: files of several folders may have one name
            path.write_bytes(payload[start : start + length])
            paths.append(path)
            start += length
        return _opened(paths[0] if len(paths) == 1 else in_order(paths), choices)


def _opened(path: Any, choices: dict[str, Any]) -> Answer:
    """The stack, or its picture if it lacks a size or heights: whichever of them, given, makes it readable."""
    try:
        return _stack(read_scan(path, **choices))
    except ScanError as error:
        n = len(scan_files(path)[0]) if isinstance(path, list) or Path(path).is_dir() else 0
        stand_in: dict[str, Any] = {"size": STAND_IN, "heights": list(range(n, 0, -1))}
        for lacks in (["size"], ["heights"], ["size", "heights"]):
            if any(choices[name] is not None for name in lacks) or ("heights" in lacks and not n):
                continue
            try:
                record, data = _stack(read_scan(path, **(choices | {name: stand_in[name] for name in lacks})))
            except ScanError:
                continue
            return record | {"lacks": lacks, "why": str(error)}, data
        raise


def _stack(scan: Scan) -> Answer:
    heights = None if scan.heights is None else [round(float(h), 6) for h in scan.heights]
    record = {"name": scan.source, "shape": list(scan.data.shape), "size": [float(s) for s in scan.size]}
    return record | {"heights": heights, "best": best_slice(scan)}, np.ascontiguousarray(scan.data, "<f4").tobytes()


def found(request: dict[str, Any], payload: bytes, say: Say) -> Answer:
    """The molecule in the stack of the payload, by "model"; of "formula", if that is known; tested by simulation, if
    "refine" says so."""
    say("loading the model")
    network, name = _model(str(request["model"]))
    refine = bool(request.get("refine"))
    say("testing what is read by simulation, for half a minute or more" if refine else "looking for atoms")
    scan, formula = scan_of(request["scan"], payload), _formula(request)
    molecule = predict(scan, network, formula=formula, refine=refine)
    return prediction_record(scan, molecule, name, network.config.depth, formula=formula), b""


def _formula(request: dict[str, Any]) -> str | None:
    formula = request.get("formula")
    return None if formula is None else str(formula)


@lru_cache(maxsize=1)
def _model(name: str) -> tuple[Any, str]:
    return load_image_model(name)


def simulated(request: dict[str, Any], payload: bytes, say: Say) -> Answer:
    """The stack of "molecule" under "conditions", at "pixel", beside the measured one of the payload at that pixel, and
    the correlation of each slice. "slices" are those of the stack that hold an image. "charges" come back, to be sent
    again while atoms only move.
    """
    whole, config = scan_of(request["scan"], payload), _config(request)
    scan = usable(whole)
    molecule, uncharged = _charged(request)
    pixel = max(float(request["pixel"]), *scan.pixel)
    image = imaged(molecule, scan, config, _conditions(request), pixel)
    measured = target(scan, pixel, config).images
    alike = correlations(measured.new_tensor(image.data), measured)
    both = np.stack([measured.numpy(), image.data]).astype("<f4")
    charges = None if molecule.charges is None else [round(float(q), 5) for q in molecule.charges]
    slices = np.flatnonzero(~constant(whole.data)).tolist()
    answer = {"shape": list(image.data.shape), "slices": slices, "correlations": [round(float(c), 4) for c in alike]}
    return answer | {"charges": charges, "uncharged": uncharged}, both.tobytes()


def fitted(request: dict[str, Any], payload: bytes, say: Say) -> Answer:
    """The conditions that make the images of "molecule" most like the stack of the payload; it stays where it lies."""
    say("fitting height, stiffness and charge")
    molecule, _ = _charged(request)
    scan = scan_of(request["scan"], payload)
    conditions, alike = fit_conditions(molecule, scan, _config(request), _conditions(request))
    return {"conditions": conditions._asdict(), "correlations": [round(c, 4) for c in alike]}, b""


def exported(request: dict[str, Any], payload: bytes, say: Say) -> Answer:
    """ "molecule" as a file of "format": xyz, sdf, json, png, svg, smiles; the payload is its stack."""
    form, molecule, scan = request["format"], molecule_of(request["molecule"]), scan_of(request["scan"], payload)
    if form == "json":
        about = str(request["model"]), float(request["depth"])
        record = prediction_record(scan, molecule, *about, formula=_formula(request))
        return {}, f"{json.dumps(record, indent=1)}\n".encode()
    if form == "smiles":
        return {}, f"{graph_from_geometry(molecule.with_likely_bonds(), bonded=True).GetProp('_Name')}\n".encode()
    with tempfile.TemporaryDirectory(prefix="afmol") as folder:
        path = Path(folder) / f"molecule.{form}"
        if path.suffix in MOLECULES:
            write_molecule(molecule.with_likely_bonds(), path)
        elif form in ("png", "svg"):
            prediction_picture(scan, molecule.with_likely_bonds(), path)
        else:
            raise ConfigError(f"A molecule can be had as xyz, sdf, json, png, svg or smiles, not as {form!r}.")
        return {}, path.read_bytes()


JOBS: dict[str, Callable[[dict[str, Any], bytes, Say], Answer]] = {
    "open": opened,
    "predict": found,
    "simulate": simulated,
    "fit": fitted,
    "export": exported,
}


def scan_of(record: dict[str, Any], payload: bytes) -> Scan:
    """A stack from what the page holds of it.

    Raises:
        ScanError: values that do not fit together.
    """
    shape = tuple(int(n) for n in record["shape"])
    if len(shape) != 3 or min(shape) < 1 or 4 * int(np.prod(shape, dtype=object)) != len(payload):
        raise ScanError("The page sent a stack that is cut off; open it again.")
    heights = None if record.get("heights") is None else np.array(record["heights"], float)
    lx, ly = (float(s) for s in record["size"])
    return Scan(np.frombuffer(payload, "<f4").reshape(shape).copy(), (lx, ly), heights, str(record["name"]))


def molecule_of(record: dict[str, Any]) -> Molecule:
    """A molecule from atoms and bonds as in afmol-prediction/1.

    Raises:
        MoleculeError: values that do not fit together.
    """
    atoms, bonds = record["atoms"], record["bonds"]
    unknown = [a["element"] for a in atoms if a["element"] not in BY_SYMBOL]
    if unknown:
        raise MoleculeError(f"{unknown[0]!r} is not an element that afmol knows ({', '.join(BY_SYMBOL)}).")
    said = np.array([_elements(a) for a in atoms]) if any(a.get("elements") for a in atoms) else None
    return Molecule(
        np.array([a["position"] for a in atoms], float).reshape(-1, 3),
        np.array([BY_SYMBOL[a["element"]].number for a in atoms], int),
        np.array([sorted(b["atoms"]) for b in bonds], int).reshape(-1, 2),
        class_probabilities=np.array([a["class_probabilities"] for a in atoms], float).reshape(-1, 5),
        confidence=np.array([a["confidence"] for a in atoms], float),
        bond_probabilities=np.array([b["probability"] for b in bonds], float),
        name=str(record.get("name", "")),
        element_probabilities=said,
        warnings=tuple(str(warning) for warning in record.get("warnings", ())),
    )


def _elements(atom: dict[str, Any]) -> np.ndarray:
    """Probabilities of the elements of an atom, as far as the page knows; one that a person put there is certain."""
    p = np.zeros(len(ELEMENTS))
    for symbol, share in atom.get("elements") or [(atom["element"], 1.0)]:
        p[ELEMENTS.index(BY_SYMBOL[symbol])] = share
    return p


def _charged(request: dict[str, Any]) -> tuple[Molecule, str]:
    """The molecule with charges, and why it has none, if it has not."""
    molecule = molecule_of(request["molecule"]).with_likely_bonds()
    charges: Sequence[float] | None = request.get("charges")
    if charges is not None:
        return replace(molecule, charges=np.array(charges, float)), ""
    try:
        return with_charges(molecule), ""
    except MoleculeError as error:
        return molecule, str(error)


def _config(request: dict[str, Any]) -> FitConfig:
    return FitConfig(request["force"], request["tip"], step=float(request["step"]))


def _conditions(request: dict[str, Any]) -> Conditions:
    found = Conditions(**{name: float(request["conditions"][name]) for name in Conditions._fields})
    if not (0.01 <= found.stiffness <= 10 and 0.5 <= found.above_topmost <= 20 and abs(found.charge) <= 10):
        raise ConfigError("The tip is 0.5 to 20 A above the molecule, its stiffness 0.01 to 10 N/m.")
    return found
