"""Mutated files through every reader: each must be read or refused in one sentence, soon, in little memory.

    python tests/fuzz.py --count 100000            # of seed 0, from the first
    python tests/fuzz.py --count 100000 --start 100000    # goes on there
    python tests/fuzz.py --start 4711 --count 1 --workers 0    # one input once more, with its traceback

Input k is a function of (seed, k) alone: the hand-made ones of `corpus` first, then mutated versions of small files
that afmol's own writers make. A finding is an exception that is no AfmolError, a message that is no sentence, a result
that is none, a crash, SECONDS without an answer, or more than MEGABYTES; its files are kept in --out, with a note.
"""

import argparse
import contextlib
import gzip
import io
import json
import math
import multiprocessing
import os
import random
import re
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from afmol.checkpoint import load_model, load_training, save_model, save_training
from afmol.config import config_from_toml
from afmol.data.chemistry import graph_from_molfile, graph_from_smiles
from afmol.data.entries import read_entries
from afmol.data.foreign import read_hdf5_samples, read_tar
from afmol.data.molecules import load_molecules, pack_molecules
from afmol.data.shards import SetConfig, Shard, read_shard, shard_bytes, shard_length
from afmol.errors import LONGEST, AfmolError
from afmol.files import read_molecule, read_scan, write_molecule, write_scan
from afmol.files.molecules import mol, parse_xyz, to_rdkit
from afmol.files.molecules import sdf as molfile
from afmol.model import OnePass, OnePassConfig
from afmol.plots.training import read_metrics
from afmol.resampling import usable
from afmol.structures import Molecule, Sample, Scan, check_atoms
from afmol.study import StudyConfig
from afmol.training import PointsTrainConfig, TrainConfig
from strategies import both, chain, flat_ring, gsf, lamp, members, sxm, write, xyz

SECONDS = 20.0
"""For one input."""
MEGABYTES = 2000
"""That a process may hold beyond what it had when it started."""
KEPT = 3
"""Findings of one kind whose files are kept."""

Files = dict[str, bytes]


@dataclass(frozen=True)
class Target:
    """A reader and files for it."""

    read: Callable[[Path, list[Path]], Any]
    """Of a folder and its files; whatever it returns is looked at by `sound`."""
    bases: tuple[Files, ...]
    share: float = 1.0
    """How often it is drawn; slow readers are drawn less."""


# Readers


def scan_file(folder: Path, files: list[Path]) -> Any:
    scan = read_scan(files[0], size=(9.0, 8.0) if len(files[0].name) % 2 else None)
    usable(scan)
    return scan


def scan_slices(folder: Path, files: list[Path]) -> Any:
    return read_scan(files)


def molecule_file(folder: Path, files: list[Path]) -> Any:
    return read_molecule(files[0])


def packed_set(folder: Path, files: list[Path]) -> Any:
    found = load_molecules(files[0])
    return [found[k] for k in range(min(len(found), 5))]


def shard_file(folder: Path, files: list[Path]) -> Any:
    length = shard_length(files[0])
    shard, _ = read_shard(files[0])
    assert length == len(shard.images)
    return [*shard.samples()]


def entries_file(folder: Path, files: list[Path]) -> Any:
    """As `afmol molecules` reads them, but for conformers, which take long."""
    for k, entry in enumerate(read_entries(files[0])):
        if k < 3 and isinstance(entry.content, str):
            kind = next(s for s in (".xyz", ".sdf", ".mol", "") if s in files[0].name)
            parse = {".xyz": lambda text: parse_xyz(text, ""), "": graph_from_smiles}.get(kind, graph_from_molfile)
            try:
                parse(entry.content)
            except AfmolError as error:
                sentence(error)
            except (RuntimeError, ValueError):  # RDKit's, which building.py takes for a dropped entry
                if kind == ".xyz":
                    raise


def tar_file(folder: Path, files: list[Path]) -> Any:
    return [*read_tar(files[0])]


def hdf5_set(folder: Path, files: list[Path]) -> Any:
    return [*read_hdf5_samples(files[0], "train", ((0.0, 0.0, 6.0), (4.0, 4.0, 8.0)))]


def weight_file(folder: Path, files: list[Path]) -> Any:
    network, _ = load_model(files[0])
    assert all(p.isfinite().all() for p in network.parameters())


TINY = OnePassConfig(slices=3, channels=(4, 6, 8), blocks=1, width=4, rounds=1)


class Training(NamedTuple):
    """A model in training, as a checkpoint finds it."""

    model: Any
    optimizer: torch.optim.Optimizer

    @classmethod
    def new(cls) -> "Training":
        torch.manual_seed(0)
        made = OnePass(TINY)
        optimizer = torch.optim.AdamW(made.parameters(), lr=1e-3)
        torch.stack([p.square().sum() for p in made.parameters()]).sum().backward()
        optimizer.step()
        return cls(made, optimizer)


def checkpoint_file(folder: Path, files: list[Path]) -> Any:
    training = Training.new()
    step = load_training(files[0], training.model, training.optimizer, None, {"seed": 1})
    assert step >= 0
    training.optimizer.step()  # what was put back is of use


def toml_file(folder: Path, files: list[Path]) -> Any:
    kinds = {"train": TrainConfig, "set": SetConfig, "study": StudyConfig, "points": PointsTrainConfig}
    return config_from_toml(kinds[files[0].stem], files[0])


def metrics_file(folder: Path, files: list[Path]) -> Any:
    return read_metrics(files[0])


# What they are given


def targets(folder: Path) -> dict[str, Target]:
    """All readers, with files that afmol's own writers make in a folder."""
    rng = np.random.default_rng(0)
    scan = Scan(rng.normal(size=(9, 8, 4)).astype(np.float32), (9.0, 8.0), np.array([0.3, 0.2, 0.1, 0.0]), "made")
    molecules = [flat_ring(), lamp(), chain()]

    def written(name: str, how: Callable[[Path], object]) -> Files:
        how(folder / name)
        return {name: (folder / name).read_bytes()}

    slices = [scan.data[..., k] for k in range(2)]
    text = (
        'name,smiles,id\n# none\na,CCO,1\nb,"c1ccccc1",2\nc,O=C(O)c1ccccc1N,3\n',
        "CCO ethanol\nc1ccncc1 pyridine\n\n# a comment\nC1CC1[N+](=O)[O-]\n",
    )
    frames = xyz(molecules[0], "one", symbols=True) + xyz(molecules[1], "two")
    blocks = b"".join(map(molfile, molecules))
    sample = Sample(Scan(scan.data, scan.size), flat_ring())
    shard = shard_bytes(Shard.of([sample, Sample(sample.scan, chain())], "train"), {"shard": 0})
    stack = rng.random((6, 5, 3))
    window = "Scan window: [[0 0 6] [4 4 8]]"
    tar = write(folder / "a.tar", *(members(n, [stack], xyz(m, window)) for n, m in enumerate(molecules)))

    def graph_afm(path: Path) -> None:
        import h5py

        with h5py.File(path, "w") as file:
            file["train/X"] = rng.random((2, 1, 9, 8, 4)).astype("f4")
            rows = np.zeros((2, 20, 5), "f4")
            for row, m in zip(rows, molecules, strict=False):
                row[: len(m)] = np.column_stack([m.positions, m.charges, m.numbers])
            file["train/xyz"] = rows

    training = Training.new()
    weights = written("w.safetensors", lambda p: save_model(training.model, p, "tiny"))
    checkpoint = written("c.safetensors", lambda p: save_training(p, *training, None, 3, {"seed": 1}))
    weights, checkpoint = ({k: _sorted_tensors(v) for k, v in files.items()} for files in (weights, checkpoint))
    metrics = [
        {"step": k, "loss": 1.5 - k / 9, "validation": {"f1": 0.5}, "samples_per_second": 30.0} for k in range(5)
    ]
    toml = {
        "train": 'molecules = "m.npz"\nsteps = 7\nlearning_rate = 1e-3\n[data]\nwindows = [[32, 32], [32, 48]]\n'
        'noise = 0.5\n[model]\nkind = "one-pass"\nchannels = [8, 16, 8]\nwidest_step = 0.2\n',
        "set": 'molecules = "m.npz"\nsamples = 12\npart = "test"\n[data]\nshard_size = 4\nslices = 6\n',
        "study": 'molecules = "a.npz"\nvalidation = "b.npz"\ntest = "c.npz"\nseeds = [0, 1]\n'
        '[[variants]]\nname = "a"\nconfig = "a.toml"\n[[variants]]\nname = "b"\nconfig = "b.toml"\nafter = "a"\n',
        "points": 'steps = 9\n[model]\nkind = "soap-predictor"\nwidths = [8, 4]\n[model.soap]\nmax_l = 2\n',
    }
    first, second = molecules[0], molecules[2]
    field = {"XReal": 3e-10, "YReal": 2e-10, "XYUnits": "m"}
    extended = 'Lattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3:q:R:1 name=co'
    return {
        "npz": Target(scan_file, tuple(written(n, lambda p: write_scan(scan, p)) for n in ("a.npz", "ab.npz"))),
        "h5": Target(scan_file, tuple(written(n, lambda p: write_scan(scan, p)) for n in ("a.h5", "a.hdf5"))),
        "gsf": Target(
            scan_slices,
            ({f"{k}.gsf": gsf(s, **field, Title=f"tip height = {k} A") for k, s in enumerate(slices)},),
        ),
        "sxm": Target(
            scan_slices,
            ({f"{k}.sxm": sxm({"Z": both(0 * s), "df": both(s)}, z=-1e-10 * k) for k, s in enumerate(slices)},),
        ),
        "xyz": Target(
            molecule_file,
            (
                written("a.xyz", lambda p: write_molecule(first, p)),
                {"b.xyz": xyz(second, "plain")},
                {"c.xyz": f"2\n{extended}\nC 0 0 0 1\nO 0 0 1.1 -1\n".encode()},
            ),
            2.0,
        ),
        "molfile": Target(
            molecule_file,
            (
                written("a.sdf", lambda p: write_molecule(first, p)),
                {"b.mol": mol(second)},
                {"c.mol": _v3000(first)},
            ),
            2.0,
        ),
        "set": Target(packed_set, (written("set.npz", lambda p: pack_molecules(molecules, p)),)),
        "shard": Target(shard_file, ({"train_00000.h5": shard},)),
        "entries": Target(
            entries_file,
            (
                {"a.csv": text[0].encode()},
                {"a.tsv": text[0].replace(",", "\t").encode()},
                {"a.smi": text[1].encode()},
                {"a.smi.gz": gzip.compress(text[1].encode() * 9, mtime=0)},
                {"a.xyz": frames},
                {"a.xyz.gz": gzip.compress(frames, mtime=0)},
                {"a.sdf": blocks},
            ),
            2.0,
        ),
        "tar": Target(tar_file, ({"a.tar": tar.read_bytes()},)),
        "graph-afm": Target(hdf5_set, (written("a.hdf5", graph_afm),)),
        "weights": Target(
            weight_file,
            (weights,),
            0.2,
        ),
        "checkpoint": Target(
            checkpoint_file,
            (checkpoint,),
            0.05,
        ),
        "toml": Target(toml_file, tuple({f"{name}.toml": value.encode()} for name, value in toml.items()), 2.0),
        "metrics": Target(metrics_file, ({"metrics.jsonl": "".join(json.dumps(m) + "\n" for m in metrics).encode()},)),
    }  # fmt: skip


def _v3000(molecule: Molecule) -> bytes:
    from rdkit import Chem

    return Chem.MolToV3KMolBlock(to_rdkit(molecule), includeStereo=False, kekulize=False).encode()


@lru_cache(maxsize=1)
def corpus() -> list[tuple[str, Files]]:
    """Inputs that were a traceback, a wrong result or a bomb once, or might be."""
    return [*_corpus()]


def _corpus() -> Iterator[tuple[str, Files]]:

    def npy(text: str, version: int = 1) -> bytes:
        length = struct.pack("<H" if version == 1 else "<I", len(text))
        return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode()

    for deep in ("a = " + "[" * 5000, "steps = " + "9" * 5000, "steps = 0x" + "f" * 4000, "a." * 4000 + "a = 1"):
        yield "toml", {"train.toml": f'molecules = "m"\n{deep}\n'.encode()}
    yield "toml", {"train.toml": b'molecules = "m"\nmodel = {kind = [[[[[]]]]]}\n'}
    yield "toml", {"study.toml": b'molecules = "m"\nvalidation = "m"\ntest = "m"\nvariants = []\n'}
    headers = (
        "{'descr': '''",
        "{" * 400,
        "(" * 9000,
        "{'descr': '<f8', 'fortran_order': False, 'shape': (9, 10000000000000, 9)}",
    )
    for text in (
        *headers,
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 2, 3)}",
        "{'descr': 'O', 'fortran_order': 0, 'shape': (2,)}",
    ):
        yield "npz", {"a.npz": pack_npz({"data.npy": npy(text)})}
        yield "set", {"set.npz": pack_npz({"n_atoms.npy": npy(text)})}
    yield "npz", {"a.npz": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}")}
    yield "npz", {"a.npz": pack_npz({"data.npy": npy(" " * 70_000, 2)})}
    for comment in (
        "Properties=species:S:1:pos:R:3:charge:R:999999999",
        "Properties=species:S:1:pos:R:3:charge:R:-9",
        "Properties=species:S:0:pos:R:3",
        "Properties=pos:R:3",
        "Properties=" + "[" * 5000,
        'Properties="species:S:1:pos:R:3" charges="[1, 2"',
        "Properties=species:S:1:pos:R:3:charge:S:1",
        "Properties=species:S:1:pos:R:3:charge:R:2",
    ):
        yield "xyz", {"a.xyz": f"2\n{comment}\nC 0 0 0 nan 1\nO 0 0 1.1 2 1\n".encode()}
    for rows in (
        "C 0 0 0\nC 0 0 0",
        "C 0 0 0\nC 1e4 0 0",
        "C 0 0 1e308\nC 0 0 -1e308",
        "C 0 0 inf\nO 0 0 1",
        "C 1_0 0 0\nO 0 0 1",
    ):
        yield "xyz", {"a.xyz": f"2\n\n{rows}\n".encode()}
    yield "xyz", {"a.xyz": "\u0663\n\nC 0 0 0\nC 0 0 2\nC 0 0 4\n".encode()}
    yield "xyz", {"a.xyz": b"999999999\n\nC 0 0 0\n"}
    for line in (
        b"9" * 5000,
        b"[" * 5000,
        b'{"step": 1e999}',
        b'{"step": true}',
        b'{"step": 1' + b"0" * 4000 + b"}",
        b"[]",
    ):
        yield "metrics", {"metrics.jsonl": line + b"\n"}
    for size in (b"99999999999999999999", b"-4", b"1e3", b"9" * 5000):
        yield (
            "gsf",
            {f"{k}.gsf": b"Gwyddion Simple Field 1.0\nXRes = " + size + b"\nYRes = 1\n\0\0\0\0" for k in range(2)},
        )
    for piece in (b"\0" * 2**22, b"C\n" * 2**21, b"x" * 2**23):
        yield "entries", {"a.smi.gz": gzip.compress(piece, mtime=0)}
    for text in (b"{" + b'"a":[' * 5000, b'{"__metadata__": {"format": "afmol-weights"}}', b"{}"):
        yield "weights", {"w.safetensors": struct.pack("<Q", len(text)) + text}
    for count in ("99999999 1", "1 99999999", "-\nM  V30 99999999 1"):
        block = f"\n\n\n  0  0  0     0  0            999 V3000\nM  V30 BEGIN CTAB\nM  V30 COUNTS {count} 0 0 0\n"
        yield "molfile", {"a.mol": f"{block}M  V30 BEGIN ATOM\nM  V30 1 C 0 0 0 0\n".encode()}
    yield "h5", {"a.h5": endless_h5(b"HEAP")}
    yield "h5", {"a.h5": endless_h5(b"GCOL")}


def endless_h5(signature: bytes) -> bytes:
    """A stack in HDF5 of which HDF5 2.0 reads a heap for ever: names of what is in the file, or texts of any length."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["data"] = np.random.default_rng(0).random((4, 5, 3)).astype("f4")
        file.attrs["lengthX"] = "text"
    content = bytearray(buffer.getvalue())
    at = content.index(signature)
    if signature == b"HEAP":  # a free place whose next one is itself
        _, place, data = struct.unpack_from("<3Q", content, at + 8)
        struct.pack_into("<Q", content, data + place, place)
    else:
        content[at + 24] = 255  # length of the first text
    return bytes(content)


# Mutations

NUMBERS = [
    b"-1",
    b"0",
    b"1",
    b"7",
    b"1e999",
    b"-1e308",
    b"1e-320",
    b"nan",
    b"inf",
    b"255",
    b"256",
    b"65536",
    b"2147483648",
]
NUMBERS += [
    b"99999999",
    b"9223372036854775808",
    b"0.0",
    b"-0.5",
    b"1e33",
    b"3.0",
    b"9" * 30,
    b"1_0",
    b"0x10",
    b"[]",
    b"null",
]
INTEGERS = [0, 1, 2, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]
_DIGITS = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def mutated(content: bytes, rng: random.Random, other: bytes) -> bytes:
    """A content with one to four things changed, or cut off; `other` is what may be spliced in."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        content = _changed(bytearray(content), rng, other)
    return content


def _changed(content: bytearray, rng: random.Random, other: bytes) -> bytes:
    n = len(content)
    if n == 0:
        return other[: rng.randrange(len(other) + 1)]
    # Headers stand at the start, and most of what matters does.
    at = rng.randrange(n) if rng.random() < 0.5 else rng.randrange(min(n, 512))
    match rng.randrange(9):
        case 0:
            content[at] ^= 1 << rng.randrange(8)
        case 1:
            content[at] = rng.choice((0, 10, 32, 34, 45, 46, 48, 57, 58, 91, 123, 127, 255))
        case 2:
            del content[at:]
        case 3:
            content[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16)))
        case 4:
            del content[at : at + rng.choice((1, 2, 4, 8, 64))]
        case 5:
            length = rng.choice((1, 4, 16, 128))
            content[at:at] = content[at : at + length] * rng.choice((1, 2, 50))
        case 6:
            found = [*_DIGITS.finditer(content)] if n < 20_000 else [*_DIGITS.finditer(content, 0, 2000)]
            if found:
                start, end = rng.choice(found).span()
                content[start:end] = rng.choice(NUMBERS)
        case 7:
            width = rng.choice((1, 2, 4, 8))
            value = rng.choice(INTEGERS) % 256**width
            content[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))
        case 8:
            start = rng.randrange(len(other) + 1)
            piece = other[start : start + rng.choice((4, 32, 256, 10**6))]
            content[at : at + (len(piece) if rng.random() < 0.5 else 0)] = piece
    return bytes(content)


def unpack_npz(content: bytes) -> Files:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def pack_npz(parts: Files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in parts.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def _unpack_tensors(content: bytes) -> Files:
    (length,) = struct.unpack("<Q", content[:8])
    return {"header": content[8 : 8 + length], "data": content[8 + length :]}


def _sorted_tensors(content: bytes) -> bytes:
    """With the metadata in one order, which the library leaves open."""
    parts = _unpack_tensors(content)
    header = json.dumps(json.loads(parts["header"]), sort_keys=True).encode()
    return _pack_tensors(parts | {"header": header})


def _pack_tensors(parts: Files) -> bytes:
    return struct.pack("<Q", len(parts["header"])) + parts["header"] + parts["data"]


def _unpack_shard(content: bytes) -> Files:
    return {"content": content[512:]}


def _pack_shard(parts: Files) -> bytes:
    """With a checksum that is right."""
    digest = sha256(parts["content"]).hexdigest()
    return f"afmol-shard/2 sha256 {digest}\n".encode().ljust(512, b"\0") + parts["content"]


INSIDE: dict[str, tuple[Callable[[bytes], Files], Callable[[Files], bytes]]] = {
    ".npz": (unpack_npz, pack_npz),
    ".safetensors": (_unpack_tensors, _pack_tensors),
    "train_00000.h5": (_unpack_shard, _pack_shard),
    ".gz": (lambda content: {"text": gzip.decompress(content)}, lambda parts: gzip.compress(parts["text"], 1, mtime=0)),
}
"""By how a name ends: what a checksum or a compression keeps mutations from, taken out and put back."""


def made_input(known: dict[str, Target], seed: int, index: int) -> tuple[str, Files]:
    """The reader and the files of one input."""
    if index < len(corpus()):
        return corpus()[index]
    rng = random.Random(f"{seed}:{index}")
    name = rng.choices([*known], [target.share for target in known.values()])[0]
    files = dict(rng.choice(known[name].bases))
    victim = rng.choice([*files])
    other = rng.choice([*rng.choice(rng.choice([*known.values()]).bases).values()])
    pair = next((pair for end, pair in INSIDE.items() if victim.endswith(end)), None)
    if pair and rng.random() < 0.7:
        unpack, pack = pair
        parts = unpack(files[victim])
        part = rng.choice([*parts])
        parts[part] = mutated(parts[part], rng, rng.choice([*parts.values()]) if rng.random() < 0.5 else other)
        files[victim] = pack(parts)
    elif len(files) > 1 and rng.random() < 0.05:
        files[victim] = rng.choice([*files.values()])
    else:
        files[victim] = mutated(files[victim], rng, other)
    return name, files


# What a reader may do


class Wrong(Exception):
    """A message that is no sentence, or a result that is none."""


def sentence(error: AfmolError) -> None:
    text = str(error)
    if not text.strip() or len(text) > LONGEST or not text.isprintable():
        raise Wrong(f"not a sentence: {text!r}")


def sound(result: Any) -> None:
    """What was accepted can be right."""
    match result:
        case Scan():
            if not (np.isfinite(result.data).all() and all(0 < side < math.inf for side in result.size)):
                raise Wrong(f"a scan of {result.size} A or of values that are not finite")
        case Sample():
            sound(result.scan)
            if result.molecule.charges is not None and not np.isfinite(result.molecule.charges).all():
                raise Wrong("charges that are not finite")
        case Molecule():
            check_atoms(result.positions, result.charges)
        case list():
            for one in result:
                if isinstance(one, Sample):
                    sound(one)


def tried(target: Target, files: Files, folder: Path) -> str | None:
    """What is wrong with what a reader did; None: nothing."""
    paths = []
    for name, content in files.items():
        (folder / name).write_bytes(content)
        paths.append(folder / name)
    try:
        sound(target.read(folder, paths))
    except AfmolError as error:
        try:
            sentence(error)
        except Wrong as wrong:
            return str(wrong)
    except BaseException:
        return traceback.format_exc()
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
    return None


# Processes


class State(NamedTuple):
    """What a worker shares with the process that watches it."""

    index: Any
    """Of the input that it has in hand."""
    since: Any
    """When it took that."""


def work(seed: int, first: int, end: int, scratch: str, state: State, found: Any) -> None:
    """Inputs first to end - 1, one after another."""
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp(dir=scratch))
    known = targets(folder)
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = virtual + 3 * MEGABYTES * 2**20  # the machine is not to suffer; what is below is measured
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the process that this one was forked from
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for index in range(first, end):
        state.index.value, state.since.value = index, time.monotonic()
        name, files = made_input(known, seed, index)
        wrong = tried(known[name], files, folder)
        if wrong:
            found.put((index, wrong))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if memory - before > MEGABYTES * 2**10:
            found.put((index, f"{(memory - before) / 2**10:.0f} MB"))
            before = memory
    state.index.value = end
    found.close()
    found.join_thread()


def kind_of(wrong: str) -> str:
    """What findings are told apart by: the exception and the last line of afmol's that it came from."""
    lines = wrong.strip().splitlines()
    own = [line.strip() for line in lines if "/afmol/" in line]
    return f"{lines[-1].split(':')[0]} {own[-1] if own else ''}"[:200]


def fuzz(seed: int, start: int, count: int, workers: int, out: Path, every: float = 10.0) -> int:
    """Try inputs start to start + count - 1; the number of findings, which are printed and kept."""
    scratch = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    context = multiprocessing.get_context("fork")
    known = targets(Path(tempfile.mkdtemp(dir=scratch)))
    ranges = [(start + count * k // workers, start + count * (k + 1) // workers) for k in range(workers)]
    kinds: dict[str, int] = {}
    began, told = time.monotonic(), time.monotonic()

    def launched(first: int, end: int) -> tuple[Any, State, Any, int]:
        state, found = State(context.Value("q", first), context.Value("d", time.monotonic())), context.Queue()
        process = context.Process(target=work, args=(seed, first, end, scratch, state, found), daemon=True)
        process.start()
        return process, state, found, end

    def keep(index: int, wrong: str) -> None:
        kind = kind_of(wrong)
        kinds[kind] = kinds.get(kind, 0) + 1
        if kinds[kind] > KEPT:
            return
        name, files = made_input(known, seed, index)
        place = out / f"{seed}_{index}_{name}"
        place.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (place / file).write_bytes(content)
        (place / "finding.txt").write_text(f"python tests/fuzz.py --seed {seed} --start {index} --count 1\n\n{wrong}\n")
        print(f"seed {seed}, input {index}, {name}: {wrong.strip().splitlines()[-1][:160]} -> {place}", flush=True)

    try:
        running = [launched(*r) for r in ranges if r[1] > r[0]]
        done = 0
        while running:
            time.sleep(0.05)
            for item in [*running]:
                process, state, found, end = item
                alive, index = process.is_alive(), state.index.value  # before what it told, which is then complete
                while not found.empty():
                    keep(*found.get())
                late = time.monotonic() - state.since.value > SECONDS
                if alive and not late:
                    continue
                running.remove(item)
                if alive:
                    process.kill()
                process.join()
                if index < end:
                    keep(index, f"no answer within {SECONDS:g} s" if late else f"the process died ({process.exitcode})")
                    running.append(launched(index + 1, end))
                else:
                    done += 1
            if time.monotonic() - told > every:
                told = time.monotonic()
                tried_now = count - sum(end - state.index.value for _, state, _, end in running)
                rate = tried_now / (told - began)
                print(f"{tried_now} of {count} from {start}, {rate:.0f}/s, {sum(kinds.values())} findings", flush=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    seconds, findings = time.monotonic() - began, sum(kinds.values())
    print(
        f"seed {seed}, inputs {start} to {start + count - 1}: {findings} findings, {count / seconds:.0f}/s", flush=True
    )
    for kind, times in sorted(kinds.items(), key=lambda pair: -pair[1]):
        print(f"  {times} x {kind}")
    return findings


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes; 0: this one, unwatched")
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"), help="folder for findings")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if chosen.workers:
        return int(fuzz(chosen.seed, chosen.start, chosen.count, chosen.workers, chosen.out) > 0)
    with tempfile.TemporaryDirectory() as folder:
        known = targets(Path(folder))
        bad = 0
        for index in range(chosen.start, chosen.start + chosen.count):
            name, files = made_input(known, chosen.seed, index)
            wrong = tried(known[name], files, Path(folder))
            bad += wrong is not None
            print(f"input {index}, {name}: {wrong or 'as it should be'}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
