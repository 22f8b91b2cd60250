"""Many stacks in one call of `afmol predict`, some of them bad: as many results and sentences, and memory that is flat.

    python tests/many.py --count 1000            # every twentieth is bad; about 10 minutes

Run by hand. The good ones are simulated (eight molecules, 80 to 110 pixels a side, with noise); the bad ones are of ten
kinds: no file, empty, cut off, text, two slices, values that are not finite, an impossible size, a constant image, a
bomb, and a link out of the file.
"""

import argparse
import io
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import psutil

import afmol
from afmol.files import write_scan
from afmol.simulation.artefacts import white_noise
from afmol.structures import Scan

SMILES = (
    *("c1ccccc1O", "Nc1ccc(Cl)cc1O", "c1ccc2ncccc2c1", "O=C1C=CC(=O)C=C1F"),
    *("c1csc(-c2ccncn2)c1", "N#Cc1cc(Br)ccc1C#C", "Cc1ccccc1", "c1ccc2cc3ccccc3cc2c1"),
)
EACH = 20
"""One in so many is bad."""
FLAT = 100.0
"""Memory may grow by so many MB from the first tenth of the stacks to the last."""


def good(place: Path, k: int) -> Path:
    """Stack k."""
    scan = afmol.simulate(MOLECULES[k % len(MOLECULES)])
    rng = np.random.default_rng(k)
    path = place / f"good_{k:04d}.npz"
    write_scan(Scan(white_noise(scan.data[: 80 + k % 30], 0.03, rng), scan.size), path)
    return path


def bad(place: Path, k: int) -> Path:
    """Bad stack k."""
    path = place / f"bad_{k:04d}.npz"
    data = np.random.default_rng(k).random((30, 30, 4))
    size = {"lengthX": 8.0, "lengthY": 8.0}
    match k % 10:
        case 0:
            pass
        case 1:
            path.touch()
        case 2:
            np.savez(path, data=data, **size)
            path.write_bytes(path.read_bytes()[:-2000])
        case 3:
            path.write_text("a stack\n" * 100)
        case 4:
            np.savez(path, data=data[..., :2], **size)
        case 5:
            data[3, 3] = np.nan
            np.savez(path, data=data, **size)
        case 6:
            np.savez(path, data=data, lengthX=8e9, lengthY=8.0)
        case 7:
            np.savez(path, data=np.ones((30, 30, 4)), **size)
        case 8:
            header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (4000, 4000, 20)}\n"
            content = io.BytesIO()
            with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("data.npy", b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header)
            path.write_bytes(content.getvalue())
        case 9:
            path = path.with_suffix(".h5")
            with h5py.File(path, "w") as file:
                file["data"] = h5py.ExternalLink("good_0000.h5", "/data")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stacks = [bad(folder, k // EACH) if k % EACH == EACH - 1 else good(folder, k) for k in range(count)]
        wanted = {path.stem for path in stacks if path.stem.startswith("good")}
        out, errors = folder / "out", folder / "errors"
        command = [
            sys.executable,
            "-c",
            "from afmol.cli import main; main()",
            "predict",
            *map(str, stacks),
            "-o",
            str(out),
        ]
        memory, start = [], time.monotonic()
        with errors.open("w") as log, (folder / "lines").open("w") as lines:
            run = subprocess.Popen(command, stdout=lines, stderr=log)
            watched = psutil.Process(run.pid)
            while run.poll() is None:
                try:
                    family = [watched, *watched.children(recursive=True)]
                    done = len(list(out.glob("*.json"))) if out.is_dir() else 0
                    memory.append((done, sum(p.memory_info().rss for p in family) / 2**20))
                except psutil.NoSuchProcess:
                    pass
                print(f"{done} of {len(wanted)}, {memory[-1][1]:.0f} MB", end="\r", flush=True)
                time.sleep(2)
        minutes = (time.monotonic() - start) / 60
        results = {path.stem for path in out.glob("*.json")}
        said = errors.read_text().splitlines()
        sentences = [line for line in said if line.startswith("afmol: ") and "our mistake" not in line]
        first = [mb for done, mb in memory if count / 20 <= done < count / 7] or [0.0]
        last = [mb for done, mb in memory if done >= 0.9 * len(wanted)] or [0.0]
        growth = np.median(last) - np.median(first)
        print(f"{count} stacks in {minutes:.1f} minutes, exit code {run.returncode}: {len(results)} results")
        print(f"{len(sentences)} sentences; memory {np.median(first):.0f} MB, at the end {np.median(last):.0f} MB")
        other = [line for line in said if line not in sentences]
        print(*(f"not a sentence: {line}" for line in other[:9]), *dict.fromkeys(_kind(s) for s in sentences), sep="\n")
        right = results == wanted and len(sentences) == len(stacks) - len(wanted) and run.returncode == 2
        return int(not right or bool(other) or growth > FLAT)


def _kind(sentence: str) -> str:
    """A sentence without the name of its file."""
    return sentence.replace("afmol: ", "").split("bad_")[-1][9:140]


MOLECULES = [afmol.molecule_from_smiles(smiles) for smiles in SMILES]

if __name__ == "__main__":
    sys.exit(main())
