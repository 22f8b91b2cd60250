"""The command line: each command is one function of the package, wrapped in file names.

Heavy modules are imported inside the commands, so that `afmol --help` answers at once.
"""

import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from . import __version__
from .errors import AfmolError, ConfigError

if TYPE_CHECKING:
    from .structures import Molecule

Folder = Annotated[Path, tyro.conf.arg(aliases=["-o"])]
SINGLE_SLICE = (".sxm", ".gsf")


def predict(
    scans: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SCAN [SCAN ...]")],
    /,
    out: Folder,
    model: str = "base",
    size: Annotated[tuple[float, float] | None, tyro.conf.arg(metavar="LX LY")] = None,
    heights: Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="Z [Z ...]")] = None,
    channel: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    direction: Literal["average", "forward", "backward"] = "average",
    threshold: float = 0.5,
) -> None:
    """Find the molecule in each stack: writes NAME.json, NAME.xyz, NAME.sdf and NAME.png, prints a line a stack.

    Example: afmol predict stack.npz -o results

    A stack is an .npz or .h5 file, or a folder of .sxm or .gsf images taken at different heights. Several .sxm or .gsf
    files named together are one stack.

    Args:
        scans: stacks to read.
        out: folder for the results; made if it does not exist.
        model: name of a shipped model or path of a weight file.
        size: lengths of the image in x and y, in Angstrom, where the file does not say.
        heights: tip height of each slice, in Angstrom, larger is farther, where the file does not say.
        channel: name of the frequency-shift channel of .sxm files, if it is not recognised.
        direction: fast scan direction of .sxm files.
        threshold: atoms with less confidence than this are left out.
    """
    from .checkpoint import load_model
    from .files import read_scan
    from .prediction import predict as run
    from .prediction import write_prediction

    if not scans:
        raise ConfigError("Name at least one stack to read; see afmol predict --help.")
    if not 0 < threshold < 1:
        raise ConfigError("The threshold is a probability between 0 and 1.")
    network, name = load_model(model)
    slices = len(scans) > 1 and all(s.lower().endswith(SINGLE_SLICE) for s in scans)
    failures = 0
    used: set[str] = set()
    for source in [list(scans)] if slices else scans:
        try:
            scan = read_scan(source, size, heights, channel, direction)
            molecule = run(scan, network, threshold)
            stem = _unused(Path(source[0] if isinstance(source, list) else source).resolve().stem, used)
            write_prediction(scan, molecule, out, stem, name, network.config.depth)
            print(f"{stem}: {_described(molecule)} -> {out / stem}.json .xyz .sdf .png")
        except ConfigError:
            raise
        except AfmolError as error:
            failures += 1
            print(_sentence(error), file=sys.stderr)
    if failures:
        sys.exit(2)


def simulate(
    molecule: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MOLECULE")],
    /,
    out: Folder,
    tip: Literal["co", "xe"] = "co",
    size: Annotated[tuple[float, float] | None, tyro.conf.arg(metavar="LX LY")] = None,
    pixel: float = 0.125,
    slices: int = 10,
    step: float = 0.1,
    distance: float = 2.97,
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
        tip: what the tip ends in, a CO molecule or a xenon atom.
        size: lengths of the image in x and y, in Angstrom; the molecule and 3 A around it by default.
        pixel: pixel size in Angstrom.
        slices: number of heights.
        step: distance between them in Angstrom.
        distance: closest approach of the probe above the topmost carbon, in Angstrom.
        heights: this distance for each slice, descending, in place of --slices, --step and --distance.
        amplitude: oscillation of the tip, peak to peak, in Angstrom.
        noise: standard deviation of white noise as a share of each slice's range.
        seed: of orientation and noise.
    """
    import numpy as np

    from .data.chemistry import with_charges
    from .data.samples import lay_down
    from .errors import MoleculeError
    from .files import write_scan
    from .plots import stack_strip
    from .simulation import TIPS, Grid, grid_around, standard_heights
    from .simulation import simulate as run
    from .simulation.artefacts import white_noise

    checks = {"--pixel": pixel, "--step": step, "--amplitude": amplitude, "--slices": slices, "--distance": distance}
    wrong = next((name for name, value in checks.items() if not value > 0), None)
    if wrong or noise < 0:
        raise ConfigError(f"{wrong or '--noise'} must be positive.")
    rng = np.random.default_rng(seed)
    atoms = _molecule(molecule)
    atoms = atoms if _is_file(molecule) else lay_down(atoms, rng, tilt=0.0)
    holder = dataclasses.replace(TIPS[tip], amplitude=amplitude, steps=max(4, round(amplitude / 0.1)))
    grid = grid_around(atoms, holder, pixel=pixel, distance=distance, slices=slices, step=step)
    if heights is not None:
        ground = standard_heights(atoms, holder, 0.0, 1)
        grid = dataclasses.replace(grid, heights=ground + np.array(heights, float))
    if size is not None:
        centre = [o + s / 2 for o, s in zip(grid.origin, grid.size, strict=True)]
        shape = (max(1, round(size[0] / pixel)), max(1, round(size[1] / pixel)))
        grid = Grid((centre[0] - size[0] / 2, centre[1] - size[1] / 2), size, shape, grid.heights)
    if atoms.charges is None:
        try:
            atoms = with_charges(atoms)
        except MoleculeError as error:
            print(f"{molecule} has no charges, so electrostatic forces are left out: {error}", file=sys.stderr)
    scan = run(atoms, holder, grid, progress=True)
    scan = dataclasses.replace(scan, data=white_noise(scan.data, noise, rng)) if noise else scan
    write_scan(scan, out)
    picture = Path(out).with_name(f"{Path(out).stem}_stack.png")
    stack_strip(scan, picture)
    nx, ny, nz = scan.data.shape
    print(
        f"{atoms.name or molecule}: {nx} x {ny} x {nz}, {scan.size[0]:.1f} x {scan.size[1]:.1f} A -> {out}, {picture}"
    )


def soap(
    molecules: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MOLECULE [MOLECULE ...]")],
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

    from .files import write_arrays
    from .soap import SoapConfig, average, dscribe_vector, rematch

    if not molecules:
        raise ConfigError("Name at least one molecule; see afmol soap --help.")
    if out is not None and out.suffix != ".npz":
        raise ConfigError(f"The vectors are written as .npz, not as {out.name}.")
    config = SoapConfig(max_l=max_l, n_radial=n_radial, cutoff=cutoff, sigma=sigma)
    atoms = [_molecule(source) for source in molecules]
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


def molecules(
    sources: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE [SOURCE ...]")],
    /,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE.npz")],
    min_atoms: int = 5,
    max_atoms: int = 100,
    charged: bool = False,
    timeout: float = 10.0,
    validation: float = 0.05,
    test: float = 0.05,
    seed: int = 0,
    scheduler: Annotated[str, tyro.conf.arg(metavar="ADDRESS")] = "",
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
) -> None:
    """Build a set of molecules for training: FILE.npz, and FILE_dropped.csv with what was left out and why.

    Example: afmol molecules some.smi -o some.npz

    A file to try it with: echo "c1ccccc1O phenol" > some.smi

    Sources: .smi, .smiles, .txt (SMILES first in each line), .csv, .tsv (a column named smiles), .sdf, .mol, .xyz, also
    compressed (.gz), and packed sets (.npz). Molecules without a geometry get one. Of near-duplicates (tautomers,
    stereoisomers) the first is kept. Molecules of one scaffold are all for training, all for validation, or all for the
    test. If it is stopped, the same command goes on where it was.

    Args:
        sources: files of molecules.
        out: file to write.
        min_atoms: molecules with fewer atoms are left out; hydrogens count.
        max_atoms: molecules with more atoms are left out, 255 at most.
        charged: take ions as well.
        timeout: most time for one molecule, in seconds.
        validation: share of scaffolds for validation.
        test: share of scaffolds for the test.
        seed: of the geometries.
        scheduler: address of a Dask scheduler, such as tcp://node1:8786; this machine alone if empty.
        workers: processes on this machine; its cores if not given, 0 for this process alone.
    """
    from .data.building import BuildConfig, build_molecules

    config = BuildConfig(min_atoms, max_atoms, charged, timeout, seed, validation, test)
    report = build_molecules(sources, out, config, scheduler=scheduler, workers=workers, progress=True)
    print(f"{report}\n-> {out}")


def train(config: Path, arguments: list[str]) -> None:
    """Train a model from a TOML configuration; any field can be set on the command line.

    Example: afmol train configs/pretrain.toml --steps 100 --out runs/try
    """
    from .checkpoint import config_from_toml
    from .plots import loss_plot
    from .training import TrainConfig
    from .training import train as run

    chosen = tyro.cli(
        TrainConfig,
        prog="afmol train CONFIG",
        description=train.__doc__,
        default=config_from_toml(TrainConfig, config),
        args=arguments,
    )
    weights = run(chosen)
    if os.environ.get("LOCAL_RANK", "0") != "0":  # one of several devices' processes; the first tells
        return
    picture = weights.parent / "losses.png"
    loss_plot(weights.parent / "metrics.jsonl", picture)
    print(f"{weights}, {picture}")


def dataset_make(config: Path, arguments: list[str]) -> None:
    """Simulate samples and store them: DIR/train_00000.h5 and so on.

    Example: afmol dataset make configs/dataset.toml -o samples --samples 2048

    Run it again after a stop: shards that are there and whole are kept. CONFIG is a TOML file; each of its fields can
    be set on the command line.
    """
    from tqdm import tqdm

    from .checkpoint import config_from_toml
    from .data.shards import SetConfig, make

    usual = config_from_toml(SetConfig, config)

    def command(
        out: Folder,
        chosen: Annotated[SetConfig, tyro.conf.arg(name="")] = usual,
        scheduler: str = "",
        workers: int | None = None,
    ) -> None:
        """Simulate samples and store them.

        Args:
            out: folder for the shards; made if it does not exist.
            chosen: what they are made from.
            scheduler: address of a Dask scheduler, such as tcp://node1:8786; this machine alone if empty.
            workers: processes on this machine; its cores if not given, 0 for this process alone.
        """
        shards = -(-chosen.samples // max(1, chosen.data.together))
        counts: Counter[str] = Counter()
        with tqdm(total=shards * chosen.data.together, unit="sample", delay=1, mininterval=1) as bar:
            for _, path, done in make(chosen, out, scheduler, workers):
                counts[done] += 1
                bar.update(chosen.data.together)
                if "damaged" in done:
                    tqdm.write(f"{path}: {done}")
        told = (f"{n} shard{'s' * (n > 1)} {done}" for done, n in sorted(counts.items()))
        print(f"{out}: {', '.join(told)}")

    tyro.cli(command, prog="afmol dataset make CONFIG", description=dataset_make.__doc__, args=arguments)


def dataset_check(folder: tyro.conf.Positional[Path]) -> None:
    """Read every shard of a folder and compare its checksum; names the damaged ones and exits with 2.

    Example: afmol dataset check samples

    Args:
        folder: folder of shards.
    """
    from tqdm import tqdm

    from .data.shards import read_shard, shard_files
    from .errors import ShardError

    files, samples, atoms, bad = shard_files(folder), 0, 0, 0
    for file in tqdm(files, unit="shard", delay=1, mininterval=1):
        try:
            shard, _ = read_shard(file)
        except ShardError as error:
            bad += 1
            tqdm.write(_sentence(error), file=sys.stderr)
        else:
            samples += len(shard.images)
            atoms += int((shard.xyz[..., 4] > 0).sum())
    print(f"{folder}: {len(files) - bad} whole shards, {samples} samples, {atoms} labelled atoms; {bad} damaged")
    if bad:
        sys.exit(2)


def dataset_show(
    source: tyro.conf.Positional[Path],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE.png")],
    samples: int = 12,
    first: int = 0,
) -> None:
    """Draw samples with their labels, from stored shards or as a configuration would make them.

    Example: afmol dataset show samples -o samples.png

    Args:
        source: folder of shards, or the TOML file of a set (nothing is stored then).
        out: picture to write (.png, .pdf, .svg).
        samples: how many.
        first: the first of them.
    """
    from .checkpoint import config_from_toml
    from .data.shards import SetConfig, some_samples
    from .plots import contact_sheet
    from .structures import Scan

    if samples < 1 or first < 0:
        raise ConfigError("--samples must be at least 1, --first at least 0.")
    chosen = source if source.is_dir() else config_from_toml(SetConfig, source)
    found = list(some_samples(chosen, first, samples))
    scans = [(Scan(stack, size, None, f"sample {first + i}"), atoms) for i, (stack, atoms, size) in enumerate(found)]
    numbers = f"{len(found)} samples, {sum(len(atoms) for _, atoms in scans)} labelled atoms, clearest slice of each"
    contact_sheet(scans, out, source.name, numbers)
    print(out)


def dataset_import(
    files: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE [FILE ...]")],
    /,
    out: Folder,
    part: Literal["train", "validation", "test"] = "train",
    window: Annotated[
        tuple[float, float, float, float] | None, tyro.conf.arg(metavar="X_START Y_START X_END Y_END")
    ] = None,
    tip: int = 0,
    surface: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[ELEMENT ...]")] = (),
    pixel: float = 0.25,
    slices: int = 10,
    together: int = 256,
) -> None:
    """Turn simulated samples of other groups into shards to train on.

    Example: afmol dataset import ice_0.tar ice_1.tar -o samples --surface Cu

    Read are .tar shards of ml-spm (images as PNG, a molecule as .xyz with its scan window) and the .hdf5 sets of
    Graph-AFM, which do not say where they were scanned: give --window 2 2 18 18 for the original data set.

    Args:
        files: .tar or .hdf5 files.
        out: folder for the shards, of which it must hold none yet for the part; made if it does not exist.
        part: of an .hdf5 set, which of its groups; and what the shards are for.
        window: of an .hdf5 set, centres of its first and its last pixel, in Angstrom.
        tip: which tip's images, where there are several; counted from 0.
        surface: elements of the surface below, whose atoms are left out.
        pixel: pixel size of the stored images, in Angstrom.
        slices: of the stored stacks.
        together: samples of a shard.
    """
    from itertools import chain

    from tqdm import tqdm

    from .data.foreign import read_hdf5_samples, read_tar
    from .data.shards import GROUPS, shard_length, store
    from .files import atomic_number

    if not files:
        raise ConfigError("Name at least one file; see afmol dataset import --help.")
    if not 0.01 <= pixel <= 1 or min(slices - 2, together) < 1 or tip < 0:
        raise ConfigError("--pixel must be 0.01 to 1 A, --slices at least 3, --together at least 1, --tip at least 0.")
    metals = [atomic_number(symbol) for symbol in surface]
    sets = []
    for file in files:
        if file.suffix == ".tar":
            sets.append(read_tar(file, tip, metals))
        elif file.suffix in (".h5", ".hdf5"):
            if window is None:
                raise ConfigError(
                    f"{file} does not say where it was scanned; give --window, 2 2 18 18 for the original."
                )
            corners = (*window[:2], 0.0), (*window[2:], 0.0)
            sets.append(read_hdf5_samples(file, GROUPS[part], corners, tip, metals))
        else:
            raise ConfigError(f"{file} is neither a .tar nor an .hdf5 file of samples.")
    samples = chain.from_iterable(sets)
    shown = (sample for sample in tqdm(samples, unit="sample", delay=1, mininterval=1))
    written = list(store(shown, out, part, pixel, slices, together))
    print(f"{out}: {sum(map(shard_length, written))} samples in {len(written)} shards")


def evaluate(
    data: Path,
    out: Folder,
    model: str = "base",
    molecules: int = 500,
    shapes: tuple[Literal["flat", "all"], ...] = ("flat", "all"),
    conditions: tuple[Literal["nominal", "random"], ...] = ("nominal", "random"),
    noise: float = 0.05,
    seed: int = 0,
) -> None:
    """Measure a model on simulated stacks of molecules: tables, confusion pictures, evaluation.json.

    Example: afmol evaluate --model base --data molecules/test.npz -o results

    Args:
        data: packed molecule set (.npz) that was not trained on; of one that is split, its test part is taken.
        out: folder for the results.
        model: name of a shipped model or path of a weight file.
        molecules: how many of each kind.
        shapes: flat ones (thinner than 1.6 A), or all.
        conditions: nominal force parameters and CO tip, or random ones.
        noise: standard deviation of white noise a pixel of 0.125 A, as a share of a slice's range.
        seed: of molecules, orientations and noise.
    """
    from .evaluation import EvaluationConfig
    from .evaluation import evaluate as run

    print(run(data, out, model, EvaluationConfig(molecules, shapes, conditions, noise, seed=seed)))


def demo(out: Folder = Path("out")) -> None:
    """Simulate a molecule that the network has never seen, predict it, and compare.

    Example: afmol demo -o out

    Args:
        out: folder for the stack, the prediction and the pictures.
    """
    from .demo import demo as run

    print(run(out))


def info() -> None:
    """Versions, devices and shipped models.

    Example: afmol info
    """
    import numba
    import torch

    from .checkpoint import load_model, shipped_models

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"afmol {__version__}, torch {torch.__version__}, numba {numba.__version__}")
    print(f"{torch.get_num_threads()} threads, {gpu}")
    for name in shipped_models():
        network, _ = load_model(name)
        size = sum(p.numel() for p in network.parameters())
        c = network.config
        print(f"model {name}: {size / 1e6:.1f} M parameters, {c.slices} slices, {c.pixel} A a pixel, depth {c.depth} A")


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "predict": predict,
    "simulate": simulate,
    "soap": soap,
    "molecules": molecules,
    "evaluate": evaluate,
    "info": info,
}
DATASET: dict[str, Callable[..., None]] = {"check": dataset_check, "show": dataset_show, "import": dataset_import}


def main(arguments: list[str] | None = None) -> None:
    """Entry point. User mistakes: one sentence on stderr and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["train"]:
            _with_config(train, "afmol train", arguments[1:])
        elif arguments[:2] == ["dataset", "make"]:
            _with_config(dataset_make, "afmol dataset make", arguments[2:])
        elif arguments[:1] == ["dataset"]:
            tyro.extras.subcommand_cli_from_dict(
                {"make": _help_of(dataset_make)} | DATASET,
                prog="afmol dataset",
                description="Stored samples: simulated images with labels, in shards.",
                args=arguments[1:] or ["--help"],
            )
        elif arguments[:1] == ["--version"]:
            print(__version__)
        else:
            tyro.extras.subcommand_cli_from_dict(
                COMMANDS | {"train": _help_of(train), "dataset": _dataset},
                prog="afmol",
                description="Molecules from stacks of atomic force microscopy images.",
                args=arguments,
            )
    except AfmolError as error:
        print(_sentence(error), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        goes_on = arguments[:1] in (["train"], ["molecules"]) or arguments[:2] == ["dataset", "make"]
        print(f"\nafmol: stopped{'; the same command goes on where it was' if goes_on else ''}.", file=sys.stderr)
        sys.exit(130)


def _with_config(command: Callable[[Path, list[str]], None], name: str, arguments: list[str]) -> None:
    """CONFIG decides the defaults of all the other arguments, so it is read first."""
    if not arguments or arguments[0].startswith("-"):
        print(f"usage: {name} CONFIG [--field value ...]\n\n{command.__doc__}")
        print(f"    Fields: {name} CONFIG --help")
        sys.exit(0 if arguments[:1] in (["-h"], ["--help"]) else 2)
    command(Path(arguments[0]), arguments[1:])


def _help_of(command: Callable[[Path, list[str]], None]) -> Callable[[tyro.conf.Positional[Path]], None]:
    """For the list of commands: one with a configuration, which is never called from there."""

    def listed(config: tyro.conf.Positional[Path]) -> None:
        raise AssertionError

    listed.__doc__ = command.__doc__
    return listed


def _dataset(command: tyro.conf.Positional[Literal["make", "check", "show", "import"]]) -> None:
    """Stored samples: make, check, show, import.

    Example: afmol dataset make configs/dataset.toml -o samples
    """
    raise AssertionError


def _unused(stem: str, used: set[str]) -> str:
    """A name for the results that no other scan of this call has: NAME, NAME_2, ..."""
    name, n = stem, 1
    while name in used:
        n += 1
        name = f"{stem}_{n}"
    used.add(name)
    return name


def _is_file(molecule: str) -> bool:
    """Whether a molecule on the command line is a file, not SMILES."""
    return Path(molecule).suffix.lower() in (".xyz", ".sdf", ".mol")


def _molecule(molecule: str) -> "Molecule":
    """A molecule from a file or from SMILES."""
    from .data.chemistry import molecule_from_smiles
    from .files import read_molecule

    return read_molecule(molecule) if _is_file(molecule) else molecule_from_smiles(molecule)


def _described(molecule: "Molecule") -> str:
    if len(molecule) == 0:
        return "no atom found"
    symbols = molecule.symbols
    counts = ", ".join(f"{s} {symbols.count(s)}" for s in sorted(set(symbols), key=lambda s: (s != "C", s != "H", s)))
    probability = molecule.bond_probabilities
    bonds = len(molecule.bonds) if probability is None else int((probability > 0.5).sum())
    return f"{len(molecule)} atoms ({counts}), {bonds} bonds"


def _sentence(error: AfmolError) -> str:
    return f"afmol: {error}"
