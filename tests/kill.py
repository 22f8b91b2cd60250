"""Kill -9 at any moment, start again, and compare: nothing lost, the same bytes at the end. Run by hand.

    python tests/kill.py --count 100            # each kind so often: about 15 s a kill
    python tests/kill.py --count 5 --kinds train dataset-workers --seed 3

Each kind is a command of tiny size that is run once to its end and then killed, it alone or with all its processes, at
a random moment, and started again, until so many kills are done (the folder is emptied whenever it comes to its end).
At each end the files are those of the first run, byte for byte; after each kill of the command alone its workers are
gone; no draft is left, and no lock.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from afmol.data.molecules import pack_molecules
from afmol.elements import bonds_by_distance
from afmol.structures import Molecule

START = [sys.executable, "-c", "from afmol.cli import main; main()"]
TRAIN = """molecules = 'few.npz'
validation = 'few.npz'
validation_samples = 8
name = 'tiny'
steps = 120
batch_size = 4
warm_up = 5
checkpoint_every = 7
validate_every = 40
accelerator = 'cpu'
precision = '32-true'
average = 0.9
[data]
shard_size = 4
windows = [[32, 32]]
[model]
channels = [8, 12, 16]
blocks = 1
width = 8
rounds = 1
"""
DATASET = "molecules = 'few.npz'\nsamples = 240\n[data]\nshard_size = 12\nwindows = [[32, 32]]\n"
KINDS = {
    "train": ["train", "train.toml", "--out", "out", "--workers", "0"],
    "train-workers": ["train", "train.toml", "--out", "out", "--workers", "2"],
    "dataset": ["dataset", "make", "dataset.toml", "-o", "out", "--workers", "0"],
    "dataset-workers": ["dataset", "make", "dataset.toml", "-o", "out", "--workers", "2"],
    "molecules": ["molecules", "many.smi", "-o", "out/set.npz", "--workers", "0"],
    "molecules-workers": ["molecules", "many.smi", "-o", "out/set.npz", "--workers", "2"],
}
PARTLY = ("metrics.jsonl", "losses.png")
"""Files of a training run that hold speeds."""


def inputs(folder: Path) -> None:
    """The files that the commands read."""
    angle = 2 * np.pi * np.arange(6) / 6
    circle = np.column_stack([np.cos(angle), np.sin(angle), 0 * angle])
    molecules = []
    for number, outer, length in ((6, 1, 1.08), (6, 8, 1.25), (7, 9, 1.35)):
        positions, numbers = np.concatenate([1.39 * circle, (1.39 + length) * circle]), np.repeat([number, outer], 6)
        charges = np.repeat([-0.1, 0.1], 6)
        molecules.append(Molecule(positions, numbers, bonds_by_distance(positions, numbers), charges))
    pack_molecules(molecules, folder / "few.npz")
    (folder / "train.toml").write_text(TRAIN)
    (folder / "dataset.toml").write_text(DATASET)
    chains = ["C" * n + end for n in range(2, 32) for end in ("O", "N", "Cl", "C=O", "c1ccccc1", "F", "c1ccncc1", "S")]
    (folder / "many.smi").write_text("\n".join(chains))


def started(kind: str, folder: Path) -> subprocess.Popen:
    (folder / "out").mkdir(exist_ok=True)
    log = (folder / "log").open("ab")
    return subprocess.Popen(START + KINDS[kind], cwd=folder, stdout=log, stderr=log, start_new_session=True)


def found(folder: Path) -> dict[str, bytes]:
    """What a command left, but for what holds times."""
    files = (path for path in sorted((folder / "out").rglob("*")) if path.is_file() and path.name not in PARTLY)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def emptied(folder: Path) -> None:
    for path in sorted((folder / "out").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def killed(run: subprocess.Popen, alone: bool) -> list[psutil.Process]:
    """Kill a command, alone or with all its processes; what of it still lives half a second later."""
    try:
        family = psutil.Process(run.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    if alone:
        run.kill()
    else:
        os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    _, alive = psutil.wait_procs(family, timeout=0.5)
    return [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE and "tracker" not in _line(p)]


def _line(process: psutil.Process) -> str:
    """What a process was started as; multiprocessing's resource tracker cleans up after its parent, and ends itself."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return "tracker"


def tried(kind: str, count: int, rng: random.Random) -> int:
    """Kill a command so often, and say what was wrong: the number of faults."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs(folder)
        clock = time.monotonic()
        if started(kind, folder).wait():
            sys.exit(f"{kind}: {(folder / 'log').read_text()}")
        takes, whole = time.monotonic() - clock, found(folder)
        emptied(folder)
        kills = ends = faults = 0
        while kills < count or found(folder):
            run = started(kind, folder)
            # The time of the whole is in the start for the most part: later moments are the interesting ones.
            moment = rng.uniform(0.2, 1.1) * takes if kills < count else None
            try:
                code = run.wait(moment)
            except subprocess.TimeoutExpired:
                kills += 1
                alone = rng.random() < 0.5
                if left := killed(run, alone):
                    faults += 1
                    print(f"{kind}: {len(left)} processes live on: {[_line(p)[:90] for p in left]}")
                continue
            ends += 1
            now = found(folder)
            if code or now != whole:
                faults += 1
                differ = sorted(k for k in now.keys() | whole.keys() if now.get(k) != whole.get(k))
                print(
                    f"{kind}: exit code {code}, others than in one go: {differ}\n{(folder / 'log').read_text()[-600:]}"
                )
            emptied(folder)
    print(f"{kind}: {kills} kills, {ends} ends compared, {faults} faults; one go takes {takes:.1f} s", flush=True)
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill -9 at any moment, start again, and compare.")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    faults = sum(tried(kind, chosen.count, random.Random(f"{chosen.seed} {kind}")) for kind in chosen.kinds)
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
