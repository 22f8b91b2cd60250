"""Sets of molecules: every format, every reason, no leak between parts, and the same bytes whatever happened."""

import csv
import gzip
import io
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from distributed import LocalCluster
from hypothesis import given
from hypothesis import strategies as st

from afmol.cli import main
from afmol.data import building
from afmol.data.building import BuildConfig, Report, build_molecules
from afmol.data.chemistry import (
    graph_from_smiles,
    molecule_from_graph,
    molecule_from_smiles,
    scaffold_place,
    skeleton,
)
from afmol.data.entries import read_entries
from afmol.data.molecules import MoleculeSet, load_molecules, molecule_set, pack_molecules
from afmol.data.workers import make_file
from afmol.errors import ConfigError, MoleculeError
from afmol.files import write_molecule
from afmol.files.molecules import mol, xyz

SMILES = (
    *("c1ccccc1", "CCO", "c1ccc2ccccc2c1", "CC(=O)C", "c1ccncc1", "Brc1ccccc1", "C1CCCCC1", "C1CCCC1C", "CC#N"),
    *("c1ccoc1", "CC(=O)c1ccccc1", "OCC(O)CO", "c1ccsc1", "CSC", "FC(F)F", "Cc1ccccc1O"),
)
DROPPED = {"C1CC": "invalid SMILES", "OC=C": "near-duplicate", "O": "too few atoms"}
"""OC=C has the skeleton of CC=O, its tautomer."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(building, "CHUNK", 4)


def smi(path: Path, *smiles: str) -> Path:
    path.write_text("".join(f"{s} name {i}\n" for i, s in enumerate(smiles, 1)))
    return path


def build(sources: list[Path], out: Path, **options) -> tuple[Report, MoleculeSet]:
    """In this process, everything in the part for training unless said otherwise."""
    config = BuildConfig(**({"min_atoms": 4, "validation": 0.0, "test": 0.0} | options))
    report = build_molecules(sources, out, config, workers=0)
    return report, load_molecules(out)


def table(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(out.with_name(f"{out.stem}_dropped.csv").read_text())))


# Sources


def conformer(smiles: str):
    """In RDKit, with bond orders and hydrogens."""
    mol = graph_from_smiles(smiles)
    molecule_from_graph(mol)
    return mol


def written(folder: Path, suffix: str, smiles: str) -> Path:
    """A file of the format with this molecule and a second one, methylfuran."""
    from rdkit import Chem

    path, two = folder / f"in{suffix}", (smiles, "Cc1ccco1")
    if suffix == ".npz":
        pack_molecules([molecule_from_smiles(s) for s in two], path)
    elif suffix == ".smi.gz":
        path.write_bytes(gzip.compress("\n".join(two).encode()))
    else:
        text = {
            ".smi": lambda: f"# two\n\n{two[0]} first of two\r\n{two[1]}\n",
            ".csv": lambda: f"ID,Smiles\n1,{two[0]}\n\n2,{two[1]}\n",
            ".tsv": lambda: f"ID\tSmiles\n1\t{two[0]}\n\n2\t{two[1]}\n",
            ".sdf": lambda: "".join(Chem.MolToMolBlock(conformer(s)) + "\n> <x>\n1\n\n$$$$\n" for s in two),
            ".mol": lambda: Chem.MolToMolBlock(conformer(smiles)),
            ".xyz": lambda: "".join(xyz(molecule_from_smiles(s)).decode() + "\n" for s in two),
        }
        path.write_text(text[suffix]())
    return path


@pytest.mark.parametrize("suffix", [".smi", ".smi.gz", ".csv", ".tsv", ".sdf", ".mol", ".xyz", ".npz"])
@pytest.mark.parametrize("smiles", ["Cc1ccc([N+](=O)[O-])cc1Br", "CC(=O)O[C@H]1CCS1"])
def test_every_format_gives_the_same_molecule(suffix, smiles, tmp_path):
    report, found = build([written(tmp_path, suffix, smiles)], tmp_path / "out.npz")
    assert report.kept == report.entries == (1 if suffix == ".mol" else 2)
    assert found[0].name == smiles
    expected = molecule_set([molecule_from_smiles(smiles)])
    assert found[0].symbols == expected[0].symbols
    assert {*map(tuple, found[0].bonds)} == {*map(tuple, expected[0].bonds)}
    np.testing.assert_allclose(found[0].charges, expected[0].charges, atol=2e-4)
    np.testing.assert_allclose(found[0].positions, expected[0].positions, atol=2e-3)  # a molfile has four digits


def test_a_drawing_is_only_a_graph_and_keeps_its_stereo_centre(tmp_path):
    from rdkit import Chem
    from rdkit.Chem import AllChem

    mol = Chem.MolFromSmiles("C[C@H](O)c1ccccc1")
    AllChem.Compute2DCoords(mol)
    (tmp_path / "flat.sdf").write_text(Chem.MolToMolBlock(mol) + "$$$$\n")
    _, found = build([tmp_path / "flat.sdf"], tmp_path / "out.npz")
    assert found[0].name == Chem.CanonSmiles("C[C@H](O)c1ccccc1")
    assert Counter(found[0].symbols) == {"C": 8, "O": 1, "H": 10}
    assert np.ptp(found[0].positions, axis=0).min() > 1
    carbon, oxygen, methyl, ring = found[0].positions[[1, 2, 0, 3]]
    back = molecule_from_smiles("C[C@H](O)c1ccccc1").positions[[1, 2, 0, 3]]
    mine = np.linalg.det([oxygen - carbon, methyl - carbon, ring - carbon])
    assert np.sign(mine) == np.sign(np.linalg.det(back[1:] - back[0]))


def test_a_geometry_is_kept_and_centred_not_built_again(tmp_path):
    bent = molecule_from_smiles("CCO")
    write_molecule(replace(bent, positions=bent.positions * 1.05 + 3.0), tmp_path / "in.xyz")
    _, found = build([tmp_path / "in.xyz"], tmp_path / "out.npz")
    np.testing.assert_allclose(found[0].positions, (bent.positions - bent.positions.mean(0)) * 1.05, atol=1e-3)


def test_several_sources_are_read_in_their_order(tmp_path):
    first, second = smi(tmp_path / "a.smi", "CCCO", "c1ccccc1"), smi(tmp_path / "b.smi", "c1ccsc1", "OCCC")
    report, found = build([first, second], tmp_path / "out.npz")
    assert [found[i].name for i in range(len(found))] == ["CCCO", "c1ccccc1", "c1ccsc1"]
    assert report.dropped == {"near-duplicate": 1}
    assert table(tmp_path / "out.npz") == [
        {"source": str(second), "number": "2", "name": "name 2", "reason": "near-duplicate", "detail": "of a.smi:1"}
    ]
    with np.load(tmp_path / "out.npz") as stored:
        assert stored["source"].tolist() == [b"a.smi:1", b"a.smi:2", b"b.smi:1"]


# What is dropped


SCENES = {
    "invalid SMILES": "C1CC",
    "wrong valence or aromaticity": "c1cccc1",
    "element not known": "C[Se]C",
    "several fragments": "CCO.Cl",
    "too many atoms": "C" * 40,
    "too few atoms": "O",
    "charged": "CC(=O)[O-]",
    "no geometry found": "C1=C2C3=C1C23",
    "no force field or charges": "FS(F)(F)(F)(F)F",
    "near-duplicate": "OCC",
}


def test_every_dropped_entry_has_its_place_name_and_reason(tmp_path):
    source = smi(tmp_path / "in.smi", "CCO", *SCENES.values())
    report, found = build([source], tmp_path / "out.npz")
    assert [found[i].name for i in range(len(found))] == ["CCO"]
    rows = table(tmp_path / "out.npz")
    assert [row["reason"] for row in rows] == list(SCENES)
    assert [(row["number"], row["name"]) for row in rows] == [(str(n), f"name {n}") for n in range(2, 12)]
    assert all(row["detail"] and "\n" not in row["detail"] for row in rows)
    assert report.dropped == dict.fromkeys(SCENES, 1)
    assert (report.entries, report.kept) == (11, 1)
    text = str(report)
    assert "charged" in text
    assert "9.09 %" in text


def test_the_time_limit_is_a_reason(tmp_path):
    source = smi(tmp_path / "in.smi", "CCO")
    with pytest.raises(MoleculeError, match=r"None of the 1 entries .*out_dropped\.csv"):
        build([source], tmp_path / "out.npz", timeout=1e-9)
    assert table(tmp_path / "out.npz")[0]["reason"] == "time limit"


def bare() -> str:
    """A molfile in 3D without its hydrogens."""
    from rdkit import Chem

    return Chem.MolToMolBlock(Chem.RemoveHs(conformer("CCCO"))) + "$$$$\n"


def collapsed() -> str:
    """A molfile of a molecule five times too small."""
    ethanol = molecule_from_smiles("CCO")
    return mol(replace(ethanol, positions=0.2 * ethanol.positions)).decode() + "$$$$\n"


@pytest.mark.parametrize(
    ("reason", "suffix", "record"),
    [
        ("no bond orders found", ".xyz", "4\nmethyl\nC 0 0 0\nH 1.08 0 0\nH -.54 .935 0\nH -.54 -.935 0\n"),
        ("too many atoms", ".xyz", "101\nhelium\n" + "He 0 0 0\n" * 101),
        ("element not known", ".xyz", "4\n\n" + "He 0 0 0\n" * 4),
        ("not readable", ".xyz", "4\n\nC 0 0 x\nH 1 0 0\nH 0 1 0\nH 0 0 1\n"),
        ("hydrogens missing", ".sdf", bare),
        ("not readable", ".sdf", "nonsense\n\n\n  9  8  0\n    0.0\n$$$$\n"),
        ("atoms on top of each other", ".sdf", collapsed),
    ],
)
def test_bad_records_do_not_stop_the_good_ones(reason, suffix, record, tmp_path):
    path = tmp_path / f"three{suffix}"
    path.write_text((record() if callable(record) else record) + written(tmp_path, suffix, "Cc1ccccc1").read_text())
    report, found = build([path], tmp_path / "out.npz")
    assert len(found) == 2
    assert report.dropped == {reason: 1}


def test_ions_are_taken_if_asked_for(tmp_path):
    source = smi(tmp_path / "in.smi", "CC(=O)[O-]", "CC(=O)O")
    _, found = build([source], tmp_path / "out.npz", charged=True)
    assert [round(found[i].charges.sum()) for i in range(2)] == [-1, 0]
    again, _ = build([tmp_path / "out.npz"], tmp_path / "neutral.npz")
    assert (again.kept, again.dropped) == (1, {"charged": 1})


# Parts for training, validation, test


def test_no_scaffold_is_in_two_parts(tmp_path):
    rings = ["c1ccccc1", "c1ccncc1", "c1ccoc1", "c1ccsc1", "C1CCC1", "C1CCCCCC1", "c1ccc2ccccc2c1", "C1CC1", "C1CCNC1"]
    decorated = [end + ring for ring in rings for end in ("C", "CC", "CO")]
    report, found = build([smi(tmp_path / "in.smi", *decorated)], tmp_path / "out.npz", validation=0.3, test=0.3)
    parts = {skeleton(found[i])[1]: set() for i in range(len(found))}
    for i, part in enumerate(found.split):
        parts[skeleton(found[i])[1]].add(int(part))
    assert len(parts) == len(rings)
    assert all(len(part) == 1 for part in parts.values())
    assert {next(iter(part)) for part in parts.values()} == {0, 1, 2}
    assert sum(report.split.values()) == len(found) == 27
    for part, count in report.split.items():
        assert len(load_molecules(tmp_path / "out.npz", part)) == count
    for scaffold, (part,) in parts.items():
        assert part == (2 if scaffold_place(scaffold) < 0.3 else 1 if scaffold_place(scaffold) < 0.6 else 0)


# Stopped and started again


def dropped_and_kept(folder: Path) -> Path:
    return smi(folder / "in.smi", "CC=O", *SMILES, *DROPPED)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """What comes out if nothing happens, in one part."""
    folder = tmp_path_factory.mktemp("whole")
    report, _ = build([dropped_and_kept(folder)], folder / "out.npz")
    assert Counter(report.dropped) == Counter(DROPPED.values())
    assert sorted(path.name for path in folder.iterdir()) == ["in.smi", "out.npz", "out_dropped.csv"]
    return (folder / "out.npz").read_bytes()


@pytest.mark.parametrize("chunk", [1, 7])
def test_the_size_of_the_parts_changes_nothing(chunk, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "CHUNK", chunk)
    build([dropped_and_kept(tmp_path)], tmp_path / "out.npz")
    assert (tmp_path / "out.npz").read_bytes() == whole


def test_a_cluster_changes_nothing(whole, tmp_path, monkeypatch):
    source = dropped_and_kept(tmp_path)
    monkeypatch.chdir("/")
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        monkeypatch.chdir(tmp_path)  # the workers stand elsewhere: a relative path must reach them as well
        config = BuildConfig(min_atoms=4, validation=0.0, test=0.0)
        build_molecules([source.name], "out.npz", config, scheduler=cluster.scheduler_address)
    assert (tmp_path / "out.npz").read_bytes() == whole


def test_killed_at_any_moment_and_started_again(whole, tmp_path):
    source, out = dropped_and_kept(tmp_path), tmp_path / "out.npz"
    parts = tmp_path / "out.npz.parts"
    code = (
        "import sys, time\nfrom afmol.data import building, workers\nbuilding.CHUNK = 4\n"
        "write = workers.write_file\n"
        "workers.write_file = lambda *args: (write(*args), time.sleep(0.1))\n"  # so that there is a moment
        "config = building.BuildConfig(min_atoms=4, validation=0.0, test=0.0)\n"
        "building.build_molecules(sys.argv[1:2], sys.argv[2], config, workers=0)\n"
    )
    for moment in (1, 4):
        run = subprocess.Popen([sys.executable, "-c", code, source, out], start_new_session=True)
        while run.poll() is None and len(list(parts.glob("*.npz"))) < moment:
            time.sleep(0.005)
        os.killpg(run.pid, signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
        assert not out.exists()
        assert 0 < len(list(parts.glob("*.npz"))) < 5
    (parts / f".{'0' * 64}.npz.77.tmp").write_bytes(b"a draft that a killed process leaves")
    before = {path: path.stat().st_mtime_ns for path in parts.glob("[0-9a-f]*.npz")}
    made = made_parts(source, out)
    assert len(before) + len(made) == 5
    assert not set(made) & set(before)
    assert out.read_bytes() == whole
    assert not parts.exists()


def made_parts(source: Path, out: Path) -> list[Path]:
    """Build, and say which parts were made, and not kept."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "make_file", lambda task: (found.append(make_file(task)), found[-1])[1])
        build([source], out)
    return [path for path, done in found if done != "kept"]


def stopped_before_the_end(source: Path, out: Path, **options) -> list[Path]:
    """Make all parts, and no more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "_assemble", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build([source], out, **options)
    return sorted(out.with_name(f"{out.name}.parts").glob("*.npz"))


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "another's"])
def test_a_part_that_is_damaged_or_not_ours_is_made_again(damage, whole, tmp_path):
    source, out = dropped_and_kept(tmp_path), tmp_path / "out.npz"
    parts = stopped_before_the_end(source, out)
    assert len(parts) == 5
    contents = {"empty": b"", "cut": parts[1].read_bytes()[:-100], "another's": parts[2].read_bytes()}
    parts[1].unlink() if damage == "missing" else parts[1].write_bytes(contents[damage])
    assert made_parts(source, out) == [parts[1]]
    assert out.read_bytes() == whole


@pytest.fixture(scope="module")
def part(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("part")
    return stopped_before_the_end(smi(folder / "in.smi", "CCO", "C1CC", "c1ccncc1", "O"), folder / "out.npz")[0]


@given(share=st.floats(0, 1, exclude_max=True))
def test_any_flipped_bit_of_a_part_is_found_or_harmless(share, part):
    content = bytearray(part.read_bytes())
    place = int(8 * len(content) * share)
    content[place // 8] ^= 1 << place % 8
    flipped = part.with_name("flipped.npz")
    flipped.write_bytes(content)
    found, true = (building._read_part(path, part.stem) for path in (flipped, part))
    if found is not None:
        assert found[1] == true[1]
        assert found[0].arrays.keys() == true[0].arrays.keys()
        assert all(np.array_equal(array, true[0].arrays[name]) for name, array in found[0].arrays.items())


def test_parts_of_other_settings_or_input_are_not_taken(whole, tmp_path, monkeypatch):
    source, out = dropped_and_kept(tmp_path), tmp_path / "out.npz"
    stopped_before_the_end(source, out, seed=1)
    text = source.read_text()
    source.write_text(text.replace("CCO ", "CCCO "))
    stopped_before_the_end(source, out)
    source.write_text(text)
    monkeypatch.setattr(building, "__version__", "0.0.0")
    stopped_before_the_end(source, out)
    monkeypatch.undo()
    monkeypatch.setattr(building, "CHUNK", 4)
    assert len(made_parts(source, out)) == 1  # the chunk that was changed; the others are as they were
    assert out.read_bytes() == whole
    # what was made for the other settings is hours of work to somebody: it stays
    assert len([*out.with_name("out.npz.parts").glob("*.npz")]) > 4


def test_two_commands_do_not_write_one_set(whole, tmp_path):
    source, out = dropped_and_kept(tmp_path), tmp_path / "out.npz"
    with (
        building._parts_folder(out),
        pytest.raises(ConfigError, match=r"Another command is writing .*out\.npz just now"),
    ):
        build([source], out)
    build([source], out)
    assert out.read_bytes() == whole
    assert not out.with_name("out.npz.parts").exists()


def test_nothing_of_the_user_is_lost(whole, tmp_path):
    """Neither a source that has the name of a result, nor a set that a run without results would replace."""
    source, out = dropped_and_kept(tmp_path), tmp_path / "out.npz"
    build([source], out)
    table = (tmp_path / "out_dropped.csv").read_bytes()
    with pytest.raises(ConfigError, match=r"out_dropped\.csv is a source as well"):
        build([tmp_path / "out_dropped.csv"], out)
    (tmp_path / "bad.smi").write_text("X\n")
    with pytest.raises(MoleculeError, match=r"None of the 1 entries can be used; 1 times .* is left as it was"):
        build([tmp_path / "bad.smi"], out)
    assert (out.read_bytes(), (tmp_path / "out_dropped.csv").read_bytes()) == (whole, table)


def test_files_of_others_in_the_folder_of_the_parts_stay(tmp_path):
    folder = tmp_path / "out.npz.parts"
    folder.mkdir()
    (folder / "thesis.npz").write_text("mine")
    build([smi(tmp_path / "in.smi", "CCO")], tmp_path / "out.npz")
    assert [path.name for path in folder.iterdir()] == ["thesis.npz"]


# The command


def test_mistakes_are_told_before_the_work_starts(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(building, "results", lambda *args: pytest.fail("work has started"))
    monkeypatch.chdir(tmp_path)
    smi(Path("in.smi"), "CCO")
    Path("empty.smi").write_text("# nothing\n\n")
    Path("blank.csv").write_text("")
    Path("table.csv").write_text("name,formula\nwater,H2O\n")
    Path("cut.smi.gz").write_bytes(gzip.compress(b"CCO\n" * 999)[:-20])
    Path("folder.npz").mkdir()
    pack_molecules([molecule_from_smiles("CCO")], "set.npz")
    for arguments, words in (
        ("-o out.npz", "at least one file"),
        ("none.smi -o out.npz", "none.smi does not exist"),
        ("empty.smi -o out.npz", "empty.smi holds no molecules"),
        ("blank.csv -o out.npz", "blank.csv holds no molecules"),
        ("table.csv -o out.npz", "table.csv: it has no column named smiles"),
        ("cut.smi.gz -o out.npz", "cut.smi.gz cannot be read"),
        ("in.pdb -o out.npz", "unknown suffix"),
        ("folder.npz -o out.npz", "is not a plain file"),
        ("in.smi -o nowhere/out.npz", "cannot be written (no such file or directory)"),
        ("in.smi -o in.smi/out.npz", "cannot be written"),
        ("in.smi -o folder.npz", "is a folder"),
        ("in.smi -o out.sdf", "written as .npz"),
        ("in.smi -o out.npz --max-atoms 300", "255"),
        ("in.smi -o out.npz --timeout 0", "time limit"),
        ("in.smi -o out.npz --test 0.6 --validation 0.5", "some for training"),
        (f"{tmp_path}/set.npz -o set.npz", "set.npz is a source as well"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["molecules", *arguments.split()])
        text = capsys.readouterr().err
        assert (stop.value.code, text.count("\n"), words in text) == (2, 1, True), text
    assert not Path("out.npz").exists()


def test_the_command_prints_the_table(whole, tmp_path, capsys):
    source, out = dropped_and_kept(tmp_path), tmp_path / "out.npz"
    options = ["--min-atoms", "4", "--test", "0", "--validation", "0", "--workers", "0"]
    main(["molecules", str(source), "-o", str(out), *options])
    printed = capsys.readouterr().out
    assert out.read_bytes() == whole
    for words in ("entries", "kept", "flatter than 1.6 A", "with Br", "near-duplicate", f"-> {out}"):
        assert words in printed


def test_ctrl_c_is_one_sentence_whoever_hears_it(tmp_path):
    """As a terminal sends it: to the command and all its processes."""
    source, out = smi(tmp_path / "in.smi", *["CCO"] * 4000), tmp_path / "out.npz"
    start = [sys.executable, "-c", "from afmol.cli import main; main()", "molecules", source, "-o", out]
    process = subprocess.Popen([*start, "--workers", "1"], start_new_session=True, stderr=subprocess.PIPE, text=True)
    parts = out.with_name("out.npz.parts")
    while process.poll() is None and not list(parts.glob("*.npz")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.splitlines()[-1] == "afmol: stopped; the same command goes on where it was."
    assert "Traceback" not in told
    assert list(parts.glob("*.npz"))


def test_settings_that_cannot_be():
    for wrong in (
        {"min_atoms": 0},
        {"min_atoms": 9, "max_atoms": 8},
        {"timeout": np.nan},
        {"test": -0.1},
        {"test": 1.0},
    ):
        with pytest.raises(ConfigError):
            BuildConfig(**wrong)


# Files that are not as they should be: what is whole in them is read


def entries_of(path: Path, text: str) -> list[str]:
    path.write_text(text)
    return [entry.content for entry in read_entries(path)]


def test_an_empty_line_and_a_stray_quote_take_nothing_with_them(tmp_path):
    assert entries_of(tmp_path / "a.csv", "\n\nname,smiles\nbenzene,c1ccccc1\n") == ["c1ccccc1"]
    assert entries_of(tmp_path / "a.tsv", 'name\tsmiles\n"5\tCCN\nb\tCCO\nc\tCCC\n') == ["CCN", "CCO", "CCC"]


def test_records_without_their_last_line(tmp_path):
    records = [mol(molecule_from_smiles(s)).decode() for s in ("CCO", "CCN", "CCC")]
    assert entries_of(tmp_path / "a.sdf", "".join(records)) == records
    assert entries_of(tmp_path / "b.sdf", "$$$$\n".join(records)) == records


def test_a_frame_that_lacks_a_row_takes_no_other_with_it(tmp_path):
    good = "2\n7\nC 0 0 0\nO 1.1 0 0\n"
    for bad in ("3\nshort\nC 0 0 0\nO 1.1 0 0\n", "none\nO 0 0 0\nC 1 0 0\n", "9" * 30 + "\nhuge\nC 0 0 0\n"):
        assert entries_of(tmp_path / "a.xyz", good + bad + good + good[:-9]) == [good, bad, good, good[:-9]]
