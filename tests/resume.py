"""Each configuration of configs/asd, trained for a few steps, killed and started again: the same weights. Run by hand.

    python tests/resume.py [CONFIG.toml ...]

A run goes to its end; a second one is killed (-9) once it has a checkpoint, and started again. Samples are simulated,
of molecules made here.
"""

import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from afmol.data.molecules import pack_molecules
from kill import START
from strategies import flat_ring

ROOT = Path(__file__).parent.parent
STUDIES = {"study", "bonds", "found", "figure6", "samples"}
BRIEF = [
    "--steps",
    "5",
    "--checkpoint-every",
    "2",
    "--validate-every",
    "5",
    "--validation-samples",
    "8",
    "--workers",
    "0",
]
AFTER = {"soap_bonds_alone": "configs/asd/cnn_classes.safetensors"}
"""Weights in place of those that a study would have trained before."""


def resumed(config: Path, folder: Path) -> str:
    """A line about one configuration."""
    command = [*START, "train", str(config), *BRIEF, "--batch-size", "4", "--data.shard-size", "4"]
    command += [*(["--start", AFTER[config.stem]] if config.stem in AFTER else []), "--out"]
    outs = [folder / f"{config.stem}_{kind}" for kind in ("whole", "killed")]
    quiet = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    subprocess.run([*command, str(outs[0])], check=True, **quiet)
    process = subprocess.Popen([*command, str(outs[1])], **quiet)
    while process.poll() is None and not (outs[1] / "checkpoint.safetensors").exists():
        time.sleep(0.02)
    killed = process.poll() is None
    process.kill()
    process.communicate()
    subprocess.run([*command, str(outs[1])], check=True, **quiet)
    weights = [next(p.read_bytes() for p in out.glob("*.safetensors") if p.stem != "checkpoint") for out in outs]
    same = "same" if weights[0] == weights[1] else "OTHER"
    return f"{config.stem}: {'killed' if killed else 'NOT KILLED'}, {same} weights"


def main() -> None:
    named = [Path(name).resolve() for name in sys.argv[1:]]
    configs = named or sorted(p for p in (ROOT / "configs" / "asd").glob("*.toml") if p.stem not in STUDIES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "molecules").mkdir()
        for part in ("train", "val"):
            pack_molecules([flat_ring(n, z) for n in (5, 6) for z in (6, 7)], folder / "molecules" / f"{part}.npz")
        (folder / "configs").symlink_to(ROOT / "configs")
        with ThreadPoolExecutor(2) as pool:
            for line in pool.map(lambda config: resumed(config, folder), configs):
                print(line, flush=True)


if __name__ == "__main__":
    main()
