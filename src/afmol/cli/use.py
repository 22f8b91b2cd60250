"""Commands for people with a stack: predict, serve, simulate, fit, soap, evaluate, calibrate, demo, info."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from .. import __version__
from ..errors import AfmolError, ConfigError

if TYPE_CHECKING:
    from ..structures import Molecule

Folder = Annotated[Path, tyro.conf.arg(aliases=["-o"])]
Scheduler = Annotated[str, tyro.conf.arg(metavar="ADDRESS", help_behavior_hint="(default: none)")]


REQUIRED = "(required)"
"""What --help says of arguments of any number, of which there must be one."""
FIGURES = ("precision", "recall", "class_accuracy", "bond_f1", "exact_graph_rate")
"""That a calibration must not spoil."""
LONGEST = 300
"""Characters of a sentence; names of files can be longer than what is said of them."""


def sentence(error: AfmolError) -> str:
    """A mistake as the command line tells it: one line, the middle of a long one left out."""
    text = " ".join(f"afmol: {error}".split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 150]} ... {text[-145:]}"


def predict(
    scans: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SCAN [SCAN ...]", help_behavior_hint=REQUIRED)
    ],
    /,
    out: Folder,
    model: str = "measured",
    size: Annotated[tuple[float, float] | None, tyro.conf.arg(metavar="LX LY")] = None,
    heights: Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="Z [Z ...]")] = None,
    channel: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    direction: Literal["average", "forward", "backward"] = "average",
    threshold: float = 0.5,
    depth: float | None = None,
    formula: Annotated[str | None, tyro.conf.arg(metavar="FORMULA")] = None,
    refine: bool = False,
    hydrogens: bool = False,
    overwrite: bool = False,
    scheduler: Scheduler = "",
    workers: int = 0,
) -> None:
    """Find the molecule in each stack: writes NAME.json, NAME.xyz, NAME.sdf and NAME.png, prints a line a stack.

    Example: afmol predict stack.npz -o results

    A stack is an .npz or .h5 file, or a folder of .sxm or .gsf images taken at different heights. Several .sxm or .gsf
    files named together are one stack. NAME is that of the stack's file; of stacks of one name each gets eight letters
    besides, which its path decides. A stack larger than 12 nm is read in tiles. Where bonds contradict the stated size
    beyond doubt, the files are of the size that they speak for, and a warning says so.

    Args:
        scans: stacks to read.
        out: folder for the results; made if it does not exist.
        model: name of a shipped model or path of a weight file.
        size: lengths of the image in x and y, in Angstrom; needed where the file does not say, and goes before what it
            says.
        heights: tip height of each slice, in Angstrom, larger is farther; of a folder in the order of the files' names
            (2 before 10). They go before what the files say.
        channel: name of the frequency-shift channel of .sxm files, if it is not recognised.
        direction: fast scan direction of .sxm files.
        threshold: atoms with less confidence than this are left out, and those that are rather deeper than asked for;
            below 0.5 atoms are as the network says them, whether or not their valences make a molecule.
        depth: atoms further below the topmost one than this are left out, in Angstrom, sure ones from 0.2 further; a
            model has a usual depth and, if it has learned more, a largest one (afmol info). The deeper an atom, the
            less is seen of it.
        formula: of the molecule, such as C24H8O6, if you know it: then there are no other elements, and no more atoms
            of any. It is believed, so be sure. Write ? for a number that you do not know: C24H?O6, C?H?O?.
        refine: test what is read by simulating it, and change what explains the stack badly: atoms, elements, places.
            Half a minute for a molecule of 15 atoms, up to five for one of 40. It is said how much of the images the
            molecule then explains.
        hydrogens: add hydrogens that the image does not show where the molecule's valences ask for them, for those who
            want to calculate on. They are guesses: confidence 0, "unseen" in NAME.json. A molecule that the rim of the
            image may have cut gets none.
        overwrite: replace results of other stacks of the same name, which are left alone otherwise.
        scheduler: for many stacks: address of a Dask scheduler, such as tcp://node1:8786; this machine alone if empty.
        workers: processes on this machine, for many stacks; 0 for this process alone.
    """
    from ..results import predict_files

    how: dict[str, Any] = {"size": size, "heights": heights, "channel": channel, "direction": direction}
    how |= {"depth": depth, "formula": formula, "refine": refine, "hydrogens": hydrogens, "overwrite": overwrite}
    how |= {"scheduler": scheduler, "workers": workers, "progress": True}
    failures = 0
    for name, found in predict_files(scans, out, model, threshold, **how):
        if isinstance(found, AfmolError):
            failures += 1
            print(sentence(found), file=sys.stderr)
        else:
            warnings = "".join(f" WARNING: {warning}" for warning in found.warnings)
            names = [smiles for smiles in found.smiles if smiles]
            unseen = f", {n} unseen hydrogens added" if (n := int(found.unseen.sum())) else ""
            whole = f", SMILES {'.'.join(names)}" if names else ""
            explained = "" if found.explained is None else f", a simulation of it correlates by {found.explained:.3f}"
            print(
                f"{name}: {_described(found)}{explained}{unseen}{whole} -> {out / name}.json .xyz .sdf .png{warnings}"
            )
    if failures:
        sys.exit(2)


def simulate(
    molecule: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MOLECULE")],
    /,
    out: Folder,
    tip: Literal["co", "co-charge", "co-quadrupole", "co-neutral", "xe"] = "co",
    force: Literal["lennard-jones", "exponential", "exponential-1.0"] = "lennard-jones",
    size: Annotated[tuple[float, float] | None, tyro.conf.arg(metavar="LX LY")] = None,
    pixel: float = 0.125,
    slices: int = 10,
    step: float = 0.1,
    distance: float | None = None,
    heights: Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="Z [Z ...]")] = None,
    amplitude: float = 1.0,
    noise: float = 0.0,
    seed: int = 0,
) -> None:
    """Simulate the stack of a molecule: writes OUT.npz and, beside it, OUT_stack.png.

    Example: afmol simulate "c1ccccc1O" -o phenol.npz

    A molecule from SMILES is laid with its largest plane on the surface; one from a file is imaged from above (+z) as
    it stands. Partial charges are the file's, or MMFF94's where it has none.

    Args:
        molecule: .xyz, .sdf or .mol file, or a SMILES string.
        out: file to write: .npz, .h5 or .gsf.
        tip: what the tip ends in, a CO molecule or a xenon atom. The CO has +0.05 e, as measured images say; or
            (co-quadrupole) the quadrupole of the original data set; or no charge.
        force: the molecule's repulsion: Lennard-Jones, or exponentials fitted to electron densities (1.0: farther out).
        size: lengths of the image in x and y, in Angstrom; the molecule and 3 A around it by default.
        pixel: pixel size in Angstrom.
        slices: number of heights.
        step: distance between them in Angstrom.
        distance: closest approach of the probe above the topmost carbon, in Angstrom; by default 2.97, with
            exponentials 2.62.
        heights: this distance for each slice, descending, in place of --slices, --step and --distance.
        amplitude: oscillation of the tip, peak to peak, in Angstrom.
        noise: standard deviation of white noise as a share of each slice's range.
        seed: of orientation and noise.
    """
    from ..files import check_scan_path, make_folder
    from ..imaging import ImagingConfig, heights_above, is_file, named_molecule, simulate_molecule, write_stack

    check_scan_path(out)
    config = ImagingConfig(tip, force, size, pixel, slices, step, distance, heights, amplitude, noise, seed)
    lay = not is_file(molecule)
    make_folder(out.parent)
    atoms, scan, uncharged = simulate_molecule(named_molecule(molecule), config, lay=lay, progress=True)
    if uncharged:
        print(f"{molecule} has no charges, so electrostatic forces are left out: {uncharged}", file=sys.stderr)
    path, picture = write_stack(scan, out)
    shape = " x ".join(map(str, scan.data.shape))
    low, high = heights_above(atoms, scan, tip)
    above = f"{low:.2f} to {high:.2f} A above the topmost nucleus"
    print(f"{atoms.name or molecule}: {shape}, {scan.size[0]:.1f} x {scan.size[1]:.1f} A, {above} -> {path}, {picture}")


def fit(
    molecule: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MOLECULE")],
    stack: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STACK")],
    /,
    out: Folder,
    force: Literal["lennard-jones", "exponential", "exponential-1.0"] = "lennard-jones",
    tip: Literal["co", "co-charge", "co-quadrupole", "co-neutral", "xe"] = "co-charge",
    charges: Literal["mmff94", "file"] = "mmff94",
    size: Annotated[tuple[float, float] | None, tyro.conf.arg(metavar="LX LY")] = None,
    heights: Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="Z [Z ...]")] = None,
    step: float = 0.1,
    amplitude: float = 1.0,
    starts: int = 5,
    flattening: float = 0.0,
    overwrite: bool = False,
) -> None:
    """Fit a molecule of known structure to a measured stack: where it lies, height, stiffness and charge of the tip.

    Example: afmol fit ptcda.xyz ptcda_co.npz -o fitted --force exponential

    Writes NAME_fit.json (all that was fitted, and the correlation of each slice), NAME_fit.xyz (the molecule as it
    lies) and NAME_fit.png (measured and simulated slices). The structure stays as it is; its direction, face, place and
    tilt are found.

    Args:
        molecule: .xyz, .sdf or .mol file, or a SMILES string.
        stack: .npz or .h5 file, folder of .sxm or .gsf images.
        out: folder for the results; made if it does not exist.
        force: the molecule's repulsion: Lennard-Jones, or exponentials fitted to electron densities.
        tip: what the tip ends in. The value of a single charge (co-charge, xe) is fitted; with a quadrupole, a factor
            on the molecule's charges.
        charges: of the molecule: MMFF94's, or the file's.
        size: lengths of the image in x and y, in Angstrom; needed where the file does not say, and goes before what it
            says.
        heights: tip height of each slice, in Angstrom, larger is farther; of a folder in the order of the files' names
            (2 before 10). They go before what the files say.
        step: distance of the slices in Angstrom, where neither says.
        amplitude: oscillation of the tip, peak to peak, in Angstrom.
        starts: directions from which the molecule is fitted, the most promising of 48.
        flattening: by how much halogens are flatter along their bond than across it; 1: as their radii say.
        overwrite: replace the fit of another molecule, or to another stack of the same name, which is left alone
            otherwise.
    """
    from ..files import make_folder, read_scan
    from ..fitting import FitConfig
    from ..fitting import fit as run
    from ..imaging import named_molecule
    from ..results import check_fit, write_fit

    scan = read_scan(stack, size=size, heights=heights)
    config = FitConfig(force, tip, charges, step, amplitude, starts, flattening=flattening)
    make_folder(out)  # before the work, not after it
    whole = os.path.abspath(stack)
    about = {"stack": whole, "molecule": os.path.abspath(molecule) if os.path.exists(molecule) else molecule}
    name = Path(whole).stem
    if not overwrite:
        check_fit(out, name, about)
    result, lies, image = run(named_molecule(molecule), scan, config, progress=True)
    paths = write_fit(result, lies, scan, image, out, name, about)
    charge = (
        f"charge {result.tip_charge:+.3f} e"
        if result.tip_charge is not None
        else f"charges x {result.charge_scale:.2f}"
    )
    print(
        f"{name}: correlation {result.correlation:.3f}; closest {result.above_topmost:.2f} A above the topmost nucleus,"
    )
    print(f"{result.stiffness:.2f} N/m, {charge} -> {', '.join(map(str, paths))}")


def serve(
    stacks: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[STACK ...]", help_behavior_hint="(optional)"),
    ] = (),
    /,
    port: int = 0,
    host: str = "127.0.0.1",
    browser: bool = True,
) -> None:
    """Show a stack in the browser: find its molecule, mend it by hand, and see it simulated beside the measurement.

    Example: afmol serve stack.npz

    Prints the page's address, which holds a secret: whoever has it can use the page. Stacks can be dropped onto the
    page too. Nothing leaves this machine, and nothing is written but what you download. Ctrl-C ends it.

    Args:
        stacks: stacks that the page offers; without any, those of this folder.
        port: of the address; 0: a free one.
        host: address to listen at. Another than 127.0.0.1 lets other machines in, unencrypted.
        browser: open the page in the browser.
    """
    from ..serve import serve as run
    from ..serve.server import LOOPBACK

    if host not in LOOPBACK:
        print(f"afmol: {host} can be reached by other machines, and the connection is not encrypted.", file=sys.stderr)
    run(stacks, port, host, browser)


def soap(
    molecules: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="MOLECULE [MOLECULE ...]", help_behavior_hint=REQUIRED),
    ],
    /,
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FILE.npz")] = None,
    max_l: int = 2,
    n_radial: int = 3,
    cutoff: float = 4.0,
    sigma: float = 1.0,
    alpha: float = 0.5,
) -> None:
    """Describe the surroundings of each atom by SOAP vectors, and say how alike molecules are.

    Example: afmol soap "c1ccccc1" "c1ccncc1" -o vectors.npz

    The five classes of elements (H; C, Si; N, P; O, S; halogens) are told apart. With two molecules or more it prints
    the similarity of each two, 1 for equal ones: the average over all pairs of their atoms, and REMatch, in which atoms
    look for their best partners. With -o it writes vectors (atoms, entries, in DScribe's order), positions, numbers and
    the molecule of each atom.

    Args:
        molecules: .xyz, .sdf or .mol files, or SMILES strings.
        out: file for the vectors.
        max_l: highest degree of the spherical harmonics, 0 to 9.
        n_radial: radial functions for each degree, 1 to 12.
        cutoff: where the last radial function has decayed, in Angstrom.
        sigma: width of the Gaussian at each atom, in Angstrom.
        alpha: of REMatch: small values count the best partners alone, large ones all pairs.
    """
    import numpy as np

    from ..files import write_arrays
    from ..imaging import named_molecule
    from ..soap import SoapConfig, average, dscribe_vector, rematch

    if not molecules:
        raise ConfigError("Name at least one molecule; see afmol soap --help.")
    if out is not None and out.suffix != ".npz":
        raise ConfigError(f"The vectors are written as .npz, not as {out.name}.")
    config = SoapConfig(max_l=max_l, n_radial=n_radial, cutoff=cutoff, sigma=sigma)
    atoms = [named_molecule(source) for source in molecules]
    vectors = dscribe_vector(atoms, config=config)
    which = np.repeat(np.arange(len(atoms)), [len(a) for a in atoms])
    for source, a in zip(molecules, atoms, strict=True):
        print(f"{source}: {_described(a)}, {vectors.shape[1]} entries an atom")
    if len(atoms) > 1:
        kernels = average(vectors, which), rematch(vectors, which, alpha)
        print("similarity: average, REMatch")
        for i, j in zip(*np.triu_indices(len(atoms), 1), strict=True):
            print(f"  {kernels[0][i, j]:.4f}  {kernels[1][i, j]:.4f}  {molecules[i]}, {molecules[j]}")
    if out is not None:
        arrays = {name: np.concatenate([getattr(a, name) for a in atoms]) for name in ("positions", "numbers")}
        write_arrays({"vectors": vectors, "molecule": which} | arrays, out)
        print(f"-> {out}")


def evaluate(
    out: Folder,
    data: Path | None = None,
    model: str = "measured",
    molecules: int = 500,
    shapes: tuple[Literal["flat", "all"], ...] = ("flat", "all"),
    conditions: tuple[Literal["nominal", "charged", "random", "measured"], ...] = ("nominal", "random"),
    noise: float = 0.05,
    seed: int = 0,
    device: str = "cpu",
    depth: float | None = None,
    told: Literal["nothing", "elements", "formula"] = "nothing",
    refine: bool = False,
) -> None:
    """Measure a model on simulated stacks of molecules: tables, confusion pictures, evaluation.json.

    Example: afmol evaluate --model base --data some.npz -o results

    some.npz is a set of molecules: afmol molecules makes one.

    The weights of a SOAP predictor are measured on graphs: random points, or molecules of the data (soap_evaluation).

    Args:
        out: folder for the results.
        data: packed molecule set (.npz) that was not trained on; of one that is split, its test part is taken.
        model: name of a shipped model or path of a weight file.
        molecules: how many of each kind.
        shapes: flat ones (thinner than 1.6 A), or all.
        conditions: nominal force parameters and CO tip; the same with a charge at the probe in place of the
            quadrupole; random ones; or random ones as measured stacks show them.
        noise: standard deviation of white noise a pixel of 0.125 A, as a share of a slice's range.
        seed: of molecules, orientations and noise.
        device: what the network runs on, such as cuda; stacks are simulated on the CPU.
        depth: atoms are asked for down to this far below the topmost one, in Angstrom; the model's usual depth if it
            is not given.
        told: what the model is told of each molecule, as --formula of predict does: its elements, or all of it.
        refine: test what is read by simulation, as --refine of predict does; half a minute a molecule, and more
            for large ones.
    """
    from ..checkpoint import load_model
    from ..evaluation import EvaluationConfig, write_evaluation
    from ..evaluation import evaluate as run
    from ..files import make_folder
    from ..model import SoapPredictor
    from ..soap_evaluation import SoapEvaluationConfig, evaluate_predictor, spectrum_table, write_soap_evaluation

    config = EvaluationConfig(molecules, shapes, conditions, noise, seed, device, depth, told, refine)
    make_folder(out)  # before the work, not after it
    if isinstance(load_model(model)[0], SoapPredictor):
        if config != EvaluationConfig(molecules, seed=seed):
            text = "A SOAP predictor is measured on graphs, not on images; give it no more than"
            raise ConfigError(f"{text} --data, --molecules and --seed.")
        figures = evaluate_predictor(model, data, SoapEvaluationConfig(molecules, seed=seed))
        write_soap_evaluation(figures, out)
        print(spectrum_table(figures))
        return
    if data is None:
        raise ConfigError("Name a packed set of molecules to simulate: --data some.npz.")
    evaluation = run(data, model, config)
    write_evaluation(evaluation, out)
    print(evaluation)


def calibrate(
    weights: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    /,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE.safetensors")],
    data: Path,
    molecules: int = 150,
    shapes: tuple[Literal["flat", "all"], ...] = ("flat", "all"),
    conditions: tuple[Literal["nominal", "charged", "random", "measured"], ...] = ("nominal", "measured"),
    noise: float = 0.05,
    seed: int = 1,
) -> None:
    """Make a model's probabilities what they say: writes FILE.safetensors, a model like any other.

    Example: afmol calibrate measured --data some.npz -o mine.safetensors

    Stretches and moves what the network says of atoms, classes and bonds (ten numbers) until it fits what comes true
    in one half of the samples; the table is of the other half, before and after.

    Args:
        weights: name of a shipped one-pass model or path of a weight file.
        out: file to write.
        data: packed molecule set (.npz) that was not trained on; of one that is split, its validation part is taken.
        molecules: how many of each kind.
        shapes: flat ones (thinner than 1.6 A), or all.
        conditions: nominal force parameters and CO tip; the same with a charge at the probe in place of the
            quadrupole; random ones; or random ones as measured stacks show them.
        noise: standard deviation of white noise a pixel of 0.125 A, as a share of a slice's range.
        seed: of molecules, orientations and noise.
    """
    from ..calibration import calibrate as run
    from ..checkpoint import save_model
    from ..evaluation import EvaluationConfig
    from ..files import make_folder
    from ..metrics import summary

    if out.suffix != ".safetensors":
        raise ConfigError(f"The weights are written as .safetensors, not as {out.name}.")
    make_folder(out.parent)
    found = run(data, weights, EvaluationConfig(molecules, shapes, conditions, noise, seed))
    save_model(found.model, out, found.name)
    (a, b), s, classes, (c, d) = found.numbers
    added = " ".join(f"{t:+.2f}" for t in classes)
    print(f"atoms: {a:.3f} x {b:+.3f}; elements: {s:.3f} x, classes {added}; bonds: {c:.3f} x {d:+.3f}")
    before, after = summary(found.before), summary(found.after)
    for name in ("atom_calibration_error", "class_calibration_error", "bond_calibration_error", *FIGURES):
        values = ("-" if value is None else f"{value:.4f}" for value in (before[name], after[name]))
        print(f"{name:24s} {' -> '.join(values)}")
    print(f"-> {out}")


def demo(out: Folder = Path("out")) -> None:
    """Simulate a molecule that the network has never seen, predict it, and compare.

    Example: afmol demo -o out

    Args:
        out: folder for the stack, the prediction and the pictures.
    """
    from ..demo import demo as run

    print(run(out))


def info() -> None:
    """Versions, devices and shipped models.

    Example: afmol info
    """
    import numba
    import torch

    from ..checkpoint import load_model, shipped_models
    from ..model import deepest

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"afmol {__version__}, torch {torch.__version__}, numba {numba.__version__}")
    print(f"{torch.get_num_threads()} threads, {gpu}")
    for name in shipped_models():
        network, _ = load_model(name)
        size = sum(p.numel() for p in network.parameters())
        c = network.config
        most = f" (at most {deepest(network):g} A)" if deepest(network) > c.depth else ""
        print(
            f"model {name}: {size / 1e6:.1f} M parameters, {c.slices} slices, {c.pixel} A a pixel, depth "
            f"{c.depth} A{most}"
        )


def _described(molecule: "Molecule") -> str:
    if len(molecule) == 0:
        return "no atom found"
    symbols = molecule.symbols
    counts = ", ".join(f"{s} {symbols.count(s)}" for s in sorted(set(symbols), key=lambda s: (s != "C", s != "H", s)))
    return f"{len(molecule)} atoms ({counts}), {int(molecule.likely.sum())} bonds"
