"""The fuzzer: a short run of it over all readers, and that it sees what it looks for."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fuzz
from afmol.errors import ScanError
from afmol.structures import Scan

COUNT = 1000
"""Of which some 50 are made by hand; `make fuzz` tries more."""


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> dict[str, fuzz.Target]:
    return fuzz.targets(tmp_path_factory.mktemp("bases"))


def test_a_short_run_finds_nothing(tmp_path):
    """As a user's process: without the type checks of a test run, which would pass for damage."""
    command = [sys.executable, fuzz.__file__, "--count", str(COUNT), "--workers", "1", "--out", str(tmp_path / "found")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"inputs 0 to {COUNT - 1}: 0 findings" in done.stdout


def test_every_base_is_read(known, tmp_path):
    """A base that its reader refuses would leave the reader untried."""
    for name, target in known.items():
        for files in target.bases:
            paths = [tmp_path / file for file in files]
            for path in paths:
                path.write_bytes(files[path.name])
            fuzz.sound(target.read(tmp_path, paths))
            assert fuzz.tried(target, files, tmp_path) is None, name


def test_an_input_is_a_function_of_seed_and_index(known, tmp_path):
    again = fuzz.targets(tmp_path)
    first = len(fuzz.corpus())
    inputs = [fuzz.made_input(known, 3, k) for k in range(first, first + 300)]
    assert inputs[150:] == [fuzz.made_input(again, 3, k) for k in range(first + 150, first + 300)]
    assert inputs != [fuzz.made_input(known, 4, k) for k in range(first, first + 300)]
    assert {name for name, _ in inputs} > {"npz", "xyz", "toml", "shard", "tar"}
    unchanged = sum(files in known[name].bases for name, files in inputs)
    assert unchanged < 30


def crashes(folder: Path, files: list[Path]) -> Scan:
    raise KeyError("planted")


def chatters(folder: Path, files: list[Path]) -> Scan:
    raise ScanError(" ")


def accepts(folder: Path, files: list[Path]) -> Scan:
    scan = Scan(np.ones((2, 2, 2)), (1.0, 1.0))
    scan.data[0, 0, 0] = np.nan
    return scan


def waits(folder: Path, files: list[Path]) -> None:
    time.sleep(60)


def grows(folder: Path, files: list[Path]) -> None:
    np.ones(30 * 2**20)


def dies(folder: Path, files: list[Path]) -> None:
    os._exit(9)


@pytest.mark.parametrize(
    ("reader", "words"),
    [
        (crashes, "planted"),
        (chatters, "not a sentence"),
        (accepts, "not finite"),
        (waits, "no answer within 0.5 s"),
        (grows, "MB"),
        (dies, r"the process died \(9\)"),
    ],
)
def test_what_is_planted_is_found(reader, words, tmp_path, monkeypatch):
    planted = {"planted": fuzz.Target(reader, ({"a.bin": b"abc"},))}
    monkeypatch.setattr(fuzz, "targets", lambda folder: planted)
    monkeypatch.setattr(fuzz, "corpus", lambda: [])
    monkeypatch.setattr(fuzz, "SECONDS", 0.5 if reader is waits else 20.0)  # where other things run, all takes long
    monkeypatch.setattr(fuzz, "MEGABYTES", 200)
    assert fuzz.fuzz(7, 5, 1, 1, tmp_path / "found") == 1
    (place,) = (tmp_path / "found").iterdir()
    assert place.name == "7_5_planted"
    note = (place / "finding.txt").read_text()
    assert "--seed 7 --start 5" in note
    assert re.search(words, note)
    assert (place / "a.bin").read_bytes() == fuzz.made_input(planted, 7, 5)[1]["a.bin"]


def test_after_a_finding_the_next_inputs_are_tried(tmp_path, monkeypatch):
    """A process that dies takes one input with it, not the rest."""

    def reader(folder: Path, files: list[Path]) -> None:
        if files[0].read_bytes()[:1] == b"d":
            dies(folder, files)

    planted = {"planted": fuzz.Target(reader, ({"a.bin": b"dddddddd"},))}
    monkeypatch.setattr(fuzz, "targets", lambda folder: planted)
    monkeypatch.setattr(fuzz, "corpus", lambda: [])
    deadly = [k for k in range(20) if fuzz.made_input(planted, 0, k)[1]["a.bin"][:1] == b"d"]
    assert 2 < len(deadly) < 20
    assert fuzz.fuzz(0, 0, 20, 2, tmp_path / "found") == len(deadly)
