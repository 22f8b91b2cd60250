"""Many stacks in one call, some of them bad: results, sentences, and memory over time.

    python benchmarks/batch.py --stacks 1000 --bad 50

A call of `afmol predict` on small stacks of made-up images. Expected: a result for each good one, a sentence for each
bad one, exit code 2, and as much memory at the end as after the first hundred stacks.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

MEGABYTE = 2**20


def write(folder: Path, stacks: int, bad: int) -> list[Path]:
    """Stacks of 10 A a side, bad ones in between: cut short, of one slice, with NaN, or not there."""
    rng = np.random.default_rng(0)
    x = (np.arange(40) + 0.5) / 4
    wrong = set(rng.choice(stacks, bad, replace=False).tolist())
    paths = []
    for k in range(stacks):
        path = folder / f"stack_{k:04d}.npz"
        a, b = rng.uniform(3, 7, 2)
        spot = np.exp(-((x[:, None] - a) ** 2 + (x - b) ** 2) / 2)
        data = spot[..., None] * np.arange(1, 6) + rng.normal(0, 0.01, (40, 40, 5))
        if k in wrong and k % 4 == 1:
            data = data[..., :1]
        if k in wrong and k % 4 == 2:
            data[3, 3] = np.nan
        if k not in wrong or k % 4 != 3:
            np.savez(path, data=data.astype(np.float32), lengthX=10.0, lengthY=10.0)
        if k in wrong and k % 4 == 0:
            path.write_bytes(path.read_bytes()[:-2000])
        paths.append(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description="Many stacks in one call, some of them bad.")
    parser.add_argument("--stacks", type=int, default=1000)
    parser.add_argument("--bad", type=int, default=50)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name), Path(name) / "out"
        paths = write(folder, chosen.stacks, chosen.bad)
        code = "from afmol.cli import main; main()"
        clock = time.monotonic()
        with (folder / "told").open("w") as told, (folder / "wrong").open("w") as wrong:
            run = subprocess.Popen(
                [sys.executable, "-c", code, "predict", *paths, "-o", out], stdout=told, stderr=wrong, cwd=folder
            )
            process, seen = psutil.Process(run.pid), []
            while run.poll() is None:
                done = len([*out.glob("*.png")]) if out.is_dir() else 0
                try:
                    memory = process.memory_info().rss / MEGABYTE
                except psutil.Error:
                    break
                if done >= 100 * (len(seen) + 1):
                    seen.append(memory)
                    print(f"{done:5d} results, {memory:6.0f} MB, {time.monotonic() - clock:6.0f} s", flush=True)
                time.sleep(0.2)
        results = len([*out.glob("*.json")])
        sentences = (folder / "wrong").read_text().splitlines()
        odd = [line for line in sentences if not line.startswith("afmol: ") or len(line) > 300]
    print(f"exit code {run.wait()}: {results} results, {len(sentences)} sentences, {len(odd)} of them odd {odd[:3]}")
    good = results == chosen.stacks - chosen.bad and len(sentences) == chosen.bad and not odd
    sys.exit(not good)


if __name__ == "__main__":
    main()
