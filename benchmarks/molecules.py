"""How fast `afmol molecules` is, what it drops, how much memory it takes, and that a killed one ends in the same file.

usage: python benchmarks/molecules.py SOURCE [--every N] [--most N] [--workers N] [--kills N] [--seed N]

SOURCE is a file of SMILES, or a packed set (.npz), of which only the SMILES are taken. The command runs once to the
end; then it is killed (SIGKILL, all its processes) at random moments, started again, and its files compared. It needs a
machine to itself: nothing is corrected for what else runs.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from afmol.data.molecules import load_molecules


def lines(source: Path) -> list[str]:
    """SMILES, one a line."""
    if source.suffix == ".npz":
        return [smiles.decode() + "\n" for smiles in load_molecules(source).smiles]
    return source.read_text().splitlines(keepends=True)


def memory(processes: list[psutil.Process]) -> tuple[float, float]:
    """All processes together, pages that they share counted once, and the largest of them, MB."""
    sizes = []
    for process in processes:
        try:
            sizes.append(getattr(process.memory_full_info(), "pss", 0) or process.memory_info().rss)
        except psutil.Error:
            continue  # it has ended
    return sum(sizes) / 1e6, max(sizes, default=0) / 1e6


def run(command: list[str], seconds: float | None = None) -> tuple[float, tuple[float, float], str]:
    """Run to the end, or kill all processes after some time: seconds, largest memory, what was printed."""
    start = time.perf_counter()
    largest = (0.0, 0.0)
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    family = psutil.Process(process.pid)
    while process.poll() is None:
        everyone = [family, *family.children(recursive=True)]
        if seconds is not None and time.perf_counter() - start > seconds:
            os.killpg(process.pid, signal.SIGKILL)
            psutil.wait_procs(everyone, timeout=10)
            assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in everyone), "one lives on"
            break
        largest = tuple(map(max, largest, memory(everyone)))
        time.sleep(0.5)
    printed, _ = process.communicate()
    return time.perf_counter() - start, largest, printed


def digest(*paths: Path) -> str:
    """SHA-256 of files together."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    for name, usual in (("every", 1), ("most", 10**9), ("workers", 2), ("kills", 3), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        some, out = Path(folder) / "some.smi", Path(folder) / "set.npz"
        entries = lines(options.source)[:: options.every][: options.most]
        some.write_text("".join(entries))
        command = [str(Path(sys.executable).with_name("afmol")), "molecules", str(some), "-o", str(out)]
        command += ["--workers", str(options.workers)]
        files = out, out.with_name("set_dropped.csv")

        seconds, (together, largest), printed = run(command)
        first = digest(*files)
        print(printed)
        rate = len(entries) / seconds
        print(f"{len(entries)} SMILES, {options.workers} processes: {seconds:.0f} s, {rate:.1f} a second")
        print(f"memory: {together:.0f} MB together, {largest:.0f} MB the largest process")
        print(f"file: {out.stat().st_size / 1e6:.1f} MB, sha256 {digest(out)}, with what was dropped {first}")

        if not options.kills:
            return
        for file in files:
            file.unlink()
        draw = random.Random(options.seed)
        parts = out.with_name("set.npz.parts")
        for _ in range(options.kills):
            lived, _, _ = run(command, draw.uniform(0.05, 0.9 / options.kills) * seconds)
            print(f"killed after {lived:.1f} s, {len(list(parts.glob('[0-9a-f]*.npz')))} parts there", flush=True)
            assert not out.exists()
        seconds, _, _ = run(command)
        again = digest(*files)
        print(f"finished in {seconds:.0f} s: {'the same bytes' if again == first else f'DIFFERENT, {again}'}")
        sys.exit(again != first)


if __name__ == "__main__":
    main()
