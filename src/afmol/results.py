"""From a molecule that was found, or fitted, to the files that a person takes home; from files of stacks to those."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from .checkpoint import DEFAULT_MODEL, load_image_model
from .data.workers import results
from .doubts import at_true_size
from .errors import AfmolError, ConfigError
from .files import in_order, is_single_slice, make_folder, read_scan, write_file, write_molecule
from .files.molecules import sdf
from .fitting import Fit
from .hydrogens import with_hydrogens
from .naming import Namer
from .plots import prediction_picture
from .plots.fit import fit_picture
from .prediction import check_depth, check_refinement, check_threshold, known_formula, predict
from .resampling import with_images
from .structures import Molecule, Scan

RESULTS = (".json", ".xyz", ".sdf", ".png")
"""Suffixes of the files of a prediction."""
LONGEST_BOND = 1.5
"""Of most atoms to the next one, A."""
CUT = "a molecule reaches the rim of the image and may go on beyond it, so no hydrogens were added to it."


def prediction_record(
    scan: Scan,
    molecule: Molecule,
    model: str,
    depth: float,
    stated: tuple[float, float] | None = None,
    formula: str | None = None,
) -> dict:
    """A prediction as plain values, format afmol-prediction/1 (CONVENTIONS.md). `stated`: the size that the scan was
    said to have, A, if that is not its size; `formula`: that of the molecule, if it was told."""
    n, m, alternatives, parts = len(molecule), len(molecule.bonds), molecule.alternatives(), molecule.parts()
    classes, symbols, unseen = molecule.classes, molecule.symbols, molecule.unseen
    smiles = molecule.smiles or [None] * len(parts)
    probabilities = molecule.class_probabilities if molecule.class_probabilities is not None else np.zeros((n, 5))
    confidence = molecule.confidence if molecule.confidence is not None else np.ones(n)
    bonds = molecule.bond_probabilities if molecule.bond_probabilities is not None else np.ones(m)
    return {
        "format": "afmol-prediction/1",
        "scan": {
            "source": scan.source,
            "shape": list(scan.data.shape),
            "size": [float(side) for side in scan.size],
            "stated_size": [float(side) for side in stated or scan.size],
        },
        "model": {"name": model, "depth": depth} | ({} if formula is None else {"formula": formula}),
        "atoms": [
            {
                "position": [round(float(v), 4) for v in molecule.positions[i]],
                "class": int(classes[i]),
                "element": symbols[i],
                "class_probabilities": [round(float(v), 4) for v in probabilities[i]],
                "elements": [[symbol, round(p, 4)] for symbol, p in alternatives[i]],
                "confidence": round(float(confidence[i]), 4),
            }
            | ({"unseen": True} if unseen[i] else {})
            for i in range(n)
        ],
        "bonds": [
            {"atoms": [int(i), int(j)], "probability": round(float(p), 4)}
            for (i, j), p in zip(molecule.bonds, bonds, strict=True)
        ],
        "molecules": [
            {"atoms": part.tolist(), "smiles": name, "readings": _readings(molecule, part)}
            for part, name in zip(parts, smiles, strict=True)
        ],
        "warnings": list(molecule.warnings),
    } | ({} if molecule.explained is None else {"explained": round(molecule.explained, 4)})


def _readings(molecule: Molecule, part: Int[np.ndarray, " k"]) -> list[dict]:
    """Of one molecule in a scan; atoms count through the scan."""
    return [
        {"probability": round(p, 4), "changes": [[int(part[i]), symbol] for i, symbol in changes.items()]}
        for changes, p in molecule.taken(part).readings()
    ]


def write_prediction(
    scan: Scan,
    molecule: Molecule,
    out: str | Path,
    name: str,
    model: str,
    depth: float,
    reference: Molecule | None = None,
    source: str = "",
    stated: tuple[float, float] | None = None,
    formula: str | None = None,
) -> list[Path]:
    """NAME.json (every candidate bond with its probability), NAME.xyz, NAME.sdf and NAME.png (bonds above 0.5) in OUT.

    In NAME.sdf each molecule of a scan that shows several is an entry of its own.

    Where the stated size of the scan is doubted, all of them are of the size that bonds speak for (doubts.py).

    NAME.json says that the scan came from `source`, and that its size was said to be `stated` (A): from what the scan
    itself says, if they are not given; and the `formula`, if one was told.

    Raises:
        ConfigError: a folder that cannot be written.
    """
    out, stated = Path(out), stated or scan.size
    scan, molecule = at_true_size(scan, molecule)
    bonded = molecule.with_likely_bonds()
    paths = [out / f"{name}{suffix}" for suffix in RESULTS]
    make_folder(out)
    record = prediction_record(replace(scan, source=source or scan.source), molecule, model, depth, stated, formula)
    text = json.dumps(record, indent=1)
    write_file(paths[0], f"{text}\n".encode())
    write_molecule(bonded, paths[1])
    write_file(paths[2], b"".join(sdf(bonded.taken(part)) for part in bonded.parts()) or sdf(bonded))
    prediction_picture(scan, bonded, paths[3], reference)
    return paths


def predict_files(
    sources: Sequence[str],
    out: str | Path,
    model: str = DEFAULT_MODEL,
    threshold: float = 0.5,
    *,
    depth: float | None = None,
    formula: str | None = None,
    refine: bool = False,
    hydrogens: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    scheduler: str = "",
    workers: int = 0,
    **reading: Any,
) -> Iterator[tuple[str, Molecule | AfmolError]]:
    """Predict stacks from files and write the results: the name of each one's results, and its molecule or mistake.

    Results are named after the stack's file; where several of a call have one name, each gets a part of the SHA-256 of
    its path besides. Results of the same stack are replaced. Those of several processes come as they are done.

    Args:
        sources: a stack each; several files of one slice each are together one stack.
        out: folder for the results; made if it is not there.
        model: a shipped name or a weight file.
        threshold: atoms with less confidence are left out, and those that are rather deeper than `depth`.
        depth: atoms further below the topmost one are left out, A, sure ones from 0.2 A further; None: the model's
            usual depth.
        formula: of the molecule, if it is known, as of `predict`.
        refine: test what is read by simulation, as of `predict`.
        hydrogens: add those that valences ask for and no image shows, with confidence 0 (hydrogens.py).
        overwrite: replace the results of other stacks, and other files of these names, too.
        progress: show a bar over the tiles of a large stack that is read in this process.
        scheduler: address of a Dask scheduler; its workers need afmol and the same files at the same paths.
        workers: processes on this machine where there is no scheduler; 0: this process alone.
        reading: size, heights, channel, direction, as of `read_scan`.

    Raises:
        ConfigError: no sources, an impossible threshold, depth or formula, a folder that cannot be written, a scheduler
            that does not answer.
        WeightsError: the model.
    """
    if not sources:
        raise ConfigError("Name at least one stack to read; see afmol predict --help.")
    check_threshold(threshold)
    out = Path(os.path.abspath(make_folder(out)))  # before the work, not after it; workers may stand elsewhere
    network, name = load_image_model(model)
    check_depth(network, depth)
    known_formula(formula, network, threshold)
    slices = len(sources) > 1 and all(is_single_slice(source) for source in sources)
    stacks = [tuple(map(str, in_order(sources)))] if slices else [(source,) for source in sources]
    named_stacks = zip(stacks, result_names([paths[0] for paths in stacks]), strict=True)
    if refine:
        check_refinement(network, threshold)
    how = {"threshold": threshold, "depth": depth, "formula": formula, "refine": refine}
    work = partial(_predict_file, out=out, **how, hydrogens=hydrogens, overwrite=overwrite, reading=reading)
    if scheduler or workers:
        whole = ((tuple(map(os.path.abspath, paths)), stem) for paths, stem in named_stacks)
        at = os.path.abspath(model) if Path(model).is_file() else model
        yield from results(partial(_predict_elsewhere, work=work, model=at), whole, scheduler, workers)
        return
    with Namer() as namer:
        for stack in named_stacks:
            yield work(stack, network=network, name=name, namer=namer, progress=progress)


def _predict_file(
    stack: tuple[tuple[str, ...], str],
    *,
    network: Any,
    name: str,
    namer: Namer,
    out: Path,
    threshold: float,
    depth: float | None,
    formula: str | None,
    refine: bool,
    hydrogens: bool,
    overwrite: bool,
    progress: bool = False,
    reading: dict[str, Any],
) -> tuple[str, Molecule | AfmolError]:
    """One of `predict_files`: the file, or the slices, of a stack, and what its results are called."""
    (first, *further), stem = stack
    origin = _origin(first, *further)
    try:
        if not overwrite:
            _check_results([out / f"{stem}{suffix}" for suffix in RESULTS], ("scan", "source"), origin, "stack")
        scan = read_scan([first, *further] if further else first, **reading)
        how = {"depth": depth, "formula": formula, "refine": refine}
        molecule = predict(scan, network, threshold, **how, progress=progress)
        true, molecule = at_true_size(scan, molecule)  # what is one molecule depends on it
        decided = replace(molecule, stretch=None)  # hydrogens that are added say nothing of the size
        molecule = named(decided, namer, true.size, hydrogens=hydrogens)
        down = network.config.depth if depth is None else depth
        about = {"source": origin, "stated": scan.size, "formula": formula}
        write_prediction(true, molecule, out, stem, name, down, **about)
    except AfmolError as error:
        return first, error
    return stem, molecule


def _predict_elsewhere(
    stack: tuple[tuple[str, ...], str], *, work: Callable[..., tuple[str, Molecule | AfmolError]], model: str
) -> tuple[str, Molecule | AfmolError]:
    """The same in another process, which needs a network and a namer of its own."""
    network, name = load_image_model(model)
    with Namer() as namer:
        return work(stack, network=network, name=name, namer=namer)


def named(
    molecule: Molecule, namer: Namer, size: tuple[float, float] | None = None, *, hydrogens: bool = False
) -> Molecule:
    """The molecule with the SMILES of each of its parts; with the hydrogens that those lack, if they are asked for, but
    for parts that an image of a `size` in A may have cut."""
    pieces = [(part, molecule.taken(part)) for part in molecule.parts()]
    names = tuple(namer.smiles(piece) for _, piece in pieces)
    if not hydrogens:
        return replace(molecule, smiles=names)
    lacking = [piece for piece, name in zip(pieces, names, strict=True) if name is None]
    inside = [(part, piece) for part, piece in lacking if size is None or not _may_be_cut(piece, size)]
    added = {int(part[i]): where for part, piece in inside for i, where in namer.hydrogens(piece).items()}
    if len(inside) < len(lacking):
        molecule = replace(molecule, warnings=(*molecule.warnings, CUT))
    return named(with_hydrogens(molecule, added), namer, size)


def _may_be_cut(piece: Molecule, size: tuple[float, float]) -> bool:
    """Whether a heavy atom is so near the rim that one bonded to it may lie outside."""
    xy = piece.positions[piece.numbers > 1, :2]
    return bool((np.minimum(xy, size - xy) < LONGEST_BOND).any())


def result_names(sources: Sequence[str]) -> list[str]:
    """A name for the results of each stack: that of its file, and a part of the SHA-256 of its path where several files
    have that name (CONVENTIONS.md). The same path gets the same name, in whatever order."""
    paths = [os.path.abspath(source) for source in dict.fromkeys(sources)]
    shared = Counter(Path(path).stem for path in {*paths})
    names = {}
    for source in sources:
        path = os.path.abspath(source)
        stem, mark = Path(path).stem, hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
        names[source] = f"{stem}-{mark}" if shared[stem] > 1 else stem
    return [names[source] for source in sources]


def _origin(first: str, *further: str) -> str:
    """The whole path of a stack, of slices that of the first and the name of the last."""
    return " to ".join([os.path.abspath(first), *(Path(path).name for path in further[-1:])])


def _check_results(paths: Sequence[Path], keys: Sequence[str], mine: str, what: str) -> None:
    """ConfigError if there are files of these paths that are no results of mine, by a value in the first, a JSON.

    Args:
        paths: of the results.
        keys: where in it the value stands.
        mine: what it has to be.
        what: what it names, for the sentence: a stack.
    """
    there = [path for path in paths if os.path.lexists(path)]
    if not there:
        return
    try:
        of = json.loads(paths[0].read_bytes())
        for key in keys:
            of = of[key]
        of = str(of)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        of = ""
    if of != mine:
        which = f"is of another {what}, {of}" if of else "is there and no result of afmol's"
        raise ConfigError(f"{there[0]} {which}; choose another folder, or --overwrite.")


def check_fit(out: str | Path, name: str, about: dict[str, str]) -> None:
    """ConfigError if there are files of these names in OUT that are not the fit of this stack and this molecule."""
    for what, of in about.items():
        _check_results(_fit_paths(out, name), (what,), of, what)


def _fit_paths(out: str | Path, name: str) -> list[Path]:
    return [Path(out) / f"{name}_fit{suffix}" for suffix in (".json", ".xyz", ".png")]


def write_fit(
    result: Fit, molecule: Molecule, measured: Scan, image: Scan, out: str | Path, name: str, about: dict[str, str]
) -> list[Path]:
    """NAME_fit.json, NAME_fit.xyz (the molecule as it lies) and NAME_fit.png (slices side by side) in OUT.

    `about`: which "stack" and which "molecule", for NAME_fit.json.

    Raises:
        ConfigError: a folder or file that cannot be written.
    """
    make_folder(out)
    paths = _fit_paths(out, name)
    record = about | {f.name: getattr(result, f.name) for f in fields(result)}
    write_file(paths[0], f"{json.dumps(record, indent=1)}\n".encode())
    write_molecule(molecule, paths[1])
    fit_picture(with_images(measured), image, result.per_slice, molecule, paths[2])
    return paths
