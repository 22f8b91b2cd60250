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
from hypothesis import given, settings
from hypothesis import strategies as st

from afmol.cli import main
from afmol.data import building
from afmol.data.building import BuildConfig, Report, balance, build_molecules, scaffold_place, skeleton
from afmol.data.chemistry import from_rdkit, graph_from_smiles, molecule_from_graph, molecule_from_smiles, to_rdkit
from afmol.data.entries import read_entries
from afmol.data.molecules import MoleculeSet, load_molecules, pack_molecules, packed
from afmol.errors import ConfigError, MoleculeError
from afmol.files import write_molecule
from afmol.files.molecules import mol
from afmol.structures import Molecule

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

    path = folder / f"in{suffix}"
    both = smiles, "Cc1ccco1"
    if suffix in (".csv", ".tsv"):
        d = "," if suffix == ".csv" else "\t"
        path.write_text("".join(d.join(row) + "\n" for row in (("ID", "Smiles"), ("1", both[0]), (), ("2", both[1]))))
    elif suffix == ".smi.gz":
        path.write_bytes(gzip.compress("\n".join(both).encode()))
    elif suffix == ".sdf":
        path.write_text("".join(Chem.MolToMolBlock(conformer(s)) + "\n> <x>\n1\n\n$$$$\n" for s in both))
    elif suffix == ".mol":
        path.write_text(Chem.MolToMolBlock(conformer(smiles)))
    elif suffix == ".xyz":
        for s in both:
            write_molecule(molecule_from_smiles(s), folder / "one.xyz")
            with path.open("a") as file:
                file.write((folder / "one.xyz").read_text() + "\n")
    elif suffix == ".npz":
        pack_molecules([molecule_from_smiles(s) for s in both], path)
    else:
        path.write_text(f"# two\n\n{both[0]} first of two\r\n{both[1]}\n")
    return path


@pytest.mark.parametrize("suffix", [".smi", ".txt", ".smi.gz", ".csv", ".tsv", ".sdf", ".mol", ".xyz", ".npz"])
@pytest.mark.parametrize("smiles", ["Cc1ccc([N+](=O)[O-])cc1Br", "CC(=O)O[C@H]1CCS1"])
def test_every_format_gives_the_same_molecule(suffix, smiles, tmp_path):
    report, found = build([written(tmp_path, suffix, smiles)], tmp_path / "out.npz")
    assert report.kept == report.entries == (1 if suffix == ".mol" else 2)
    assert found[0].name == smiles
    expected = packed([molecule_from_smiles(smiles)])
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
    stretched = Molecule(bent.positions * 1.05 + 3.0, bent.numbers, bent.bonds, bent.charges, name="CCO")
    write_molecule(stretched, tmp_path / "in.xyz")
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


@pytest.mark.parametrize(
    ("reason", "suffix", "record"),
    [
        ("no bond orders found", ".xyz", "4\nmethyl\nC 0 0 0\nH 1.08 0 0\nH -.54 .935 0\nH -.54 -.935 0\n"),
        ("too many atoms", ".xyz", "101\nhelium\n" + "He 0 0 0\n" * 101),
        ("element not known", ".xyz", "4\n\n" + "He 0 0 0\n" * 4),
        ("not readable", ".xyz", "4\n\nC 0 0 x\nH 1 0 0\nH 0 1 0\nH 0 0 1\n"),
        ("hydrogens missing", ".sdf", bare),
        ("not readable", ".sdf", "nonsense\n\n\n  9  8  0\n    0.0\n$$$$\n"),
    ],
)
def test_bad_records_do_not_stop_the_good_ones(reason, suffix, record, tmp_path):
    path = tmp_path / f"three{suffix}"
    path.write_text((record() if callable(record) else record) + written(tmp_path, suffix, "Cc1ccccc1").read_text())
    report, found = build([path], tmp_path / "out.npz")
    assert len(found) == 2
    assert report.dropped == {reason: 1}


def test_the_end_of_a_file_that_is_cut_off_is_dropped(tmp_path):
    path = written(tmp_path, ".xyz", "Cc1ccccc1")
    path.write_text(path.read_text()[:-200])
    report, found = build([path], tmp_path / "out.npz")
    assert len(found) == 1
    assert report.dropped == {"not readable": 1}


def test_ions_are_taken_if_asked_for(tmp_path):
    source = smi(tmp_path / "in.smi", "CC(=O)[O-]", "CC(=O)O")
    _, found = build([source], tmp_path / "out.npz", charged=True)
    assert [round(found[i].charges.sum()) for i in range(2)] == [-1, 0]
    again, _ = build([tmp_path / "out.npz"], tmp_path / "neutral.npz")
    assert (again.kept, again.dropped) == (1, {"charged": 1})


# Near-duplicates and scaffolds


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("Oc1ccccn1", "O=c1cccc[nH]1", True),  # tautomers
        ("CC(=O)CC(C)=O", "CC(O)=CC(C)=O", True),
        ("C[C@H](O)F", "C[C@@H](O)F", True),  # mirror images
        ("F/C=C/F", "F/C=C\\F", True),
        ("c1ccccc1O", "OC1=CC=CC=C1", True),  # the same
        ("[2H]C", "C", True),
        ("C[N+](=O)[O-]", "CON=O", False),
        ("c1ccccc1", "C1CCCCC1", False),  # same atoms but the hydrogens
        ("Cc1ccccc1C", "Cc1cccc(C)c1", False),
        ("CCO", "CCS", False),
    ],
)
def test_what_is_a_near_duplicate(one, other, alike):
    a, b = (skeleton(molecule_from_smiles(smiles))[0] for smiles in (one, other))
    assert (a == b) == alike


def rings_and_links(molecule: Molecule) -> Counter:
    """Elements of the Murcko scaffold by its definition: take away ends until there is none."""
    bonds = [{int(i), int(j)} for i, j in molecule.bonds]
    while ends := {a for a, n in Counter(a for bond in bonds for a in bond).items() if n == 1}:
        bonds = [bond for bond in bonds if not bond & ends]
    return Counter(molecule.symbols[a] for a in set().union(*bonds))


@pytest.mark.parametrize(
    "smiles", ["CC(=O)c1ccccc1", "O=C(Nc1ccccn1)C1CC1", "O=C1c2ccccc2C(=O)c2ccccc12", "C1CC2CCC1(C2)CCOc1ccoc1", "CCO"]
)
def test_the_scaffold_is_rings_and_what_joins_them(smiles):
    from rdkit import Chem

    molecule = molecule_from_smiles(smiles)
    graph, scaffold = skeleton(molecule)
    expected = rings_and_links(molecule) or Counter({s: n for s, n in Counter(molecule.symbols).items() if s != "H"})
    assert Counter(atom.GetSymbol() for atom in Chem.MolFromSmiles(scaffold).GetAtoms()) == expected
    assert graph.split() == [Chem.CanonSmiles(graph.split()[0]), f"H{molecule.symbols.count('H')}"]


@settings(max_examples=20)
@given(st.sampled_from(["O=C(Nc1ccccn1)C1CC1", "CC12CCC(CC1)C2(C)C", "c1ccc2c(c1)[nH]c1ccccc12"]), st.randoms())
def test_the_order_of_the_atoms_changes_nothing(smiles, random):
    from rdkit import Chem

    molecule = molecule_from_smiles(smiles)
    order = random.sample(range(len(molecule)), len(molecule))
    assert skeleton(from_rdkit(Chem.RenumberAtoms(to_rdkit(molecule), order))) == skeleton(molecule)


def test_the_split_is_the_same_everywhere():
    # printf C1CCCCC1 | sha256sum: a21c4f64...; naphthalene's 716e53b4...
    assert int(scaffold_place("C1CCCCC1") * 2**32) == 0xA21C4F64
    assert int(scaffold_place("C1CCC2CCCCC2C1") * 2**32) == 0x716E53B4
    assert skeleton(molecule_from_smiles("Cc1ccccc1"))[1] == "C1CCCCC1"
    assert skeleton(molecule_from_smiles("Oc1cccc2ccccc12"))[1] == "C1CCC2CCCCC2C1"
    places = np.array([scaffold_place("C" * n) for n in range(4000)])
    np.testing.assert_allclose(np.histogram(places, 10, (0, 1))[0] / 4000, 0.1, atol=0.02)  # 4 standard deviations


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


def test_rare_elements_are_drawn_more_often():
    fluorine, iodine, plain = (molecule_from_smiles(s) for s in ("CF", "FCI", "CC"))
    weight = balance(packed([plain] * 900 + [fluorine] * 90 + [iodine] * 10))
    assert weight.mean() == pytest.approx(1, abs=1e-6)
    # shares 0.1 and 0.01 become sqrt(0.1) and 0.1 of what is drawn, but for the sum
    assert weight[950] / weight[0] == pytest.approx(np.sqrt(10), rel=1e-4)
    assert weight[-1] / weight[0] == pytest.approx(10, rel=1e-4)
    rarer = balance(packed([plain] * 999 + [iodine]))
    assert rarer[-1] / rarer[0] == pytest.approx(10, rel=1e-4)  # not the 32 of 1 in 1000


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


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(workers, whole, tmp_path):
    config = BuildConfig(min_atoms=4, validation=0.0, test=0.0)
    build_molecules([dropped_and_kept(tmp_path)], tmp_path / "out.npz", config, workers=workers)
    assert (tmp_path / "out.npz").read_bytes() == whole


def test_a_cluster_changes_nothing(whole, tmp_path, monkeypatch):
    source = dropped_and_kept(tmp_path)
    monkeypatch.chdir("/")
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        monkeypatch.chdir(tmp_path)  # the workers stand elsewhere: a relative path must reach them as well
        config = BuildConfig(min_atoms=4, validation=0.0, test=0.0)
        build_molecules([source.name], "out.npz", config, scheduler=cluster.scheduler_address)
    assert (tmp_path / "out.npz").read_bytes() == whole


def test_killed_at_any_moment_and_started_again(whole, tmp_path):
    source, out = dropped_and_kept(tmp_path), tmp_path / "out.npz"
    parts = tmp_path / "out.npz.parts"
    code = (
        "import sys, time\nfrom afmol.data import building\nbuilding.CHUNK = 4\n"
        "write = building.write_arrays\n"
        "building.write_arrays = lambda *args: (write(*args), time.sleep(0.1))\n"  # so that there is a moment
        "config = building.BuildConfig(min_atoms=4, validation=0.0, test=0.0)\n"
        "building.build_molecules(sys.argv[1:2], sys.argv[2], config, workers=0)\n"
    )
    for moment in (1, 2, 4):
        run = subprocess.Popen([sys.executable, "-c", code, source, out], start_new_session=True)
        while run.poll() is None and len(list(parts.glob("*.npz"))) < moment:
            time.sleep(0.005)
        os.killpg(run.pid, signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
        assert not out.exists()
        assert 0 < len(list(parts.glob("*.npz"))) < 5
    (parts / f".{'0' * 64}.npz.77.tmp").write_bytes(b"a draft that a killed process leaves")
    before = {path: path.stat().st_mtime_ns for path in parts.glob("[0-9a-f]*.npz")}
    made = [task.path for task in tasks_of(source, out)]
    assert len(before) + len(made) == 5
    assert not set(made) & set(before)
    assert out.read_bytes() == whole
    assert not parts.exists()


def tasks_of(source: Path, out: Path) -> list[building.Task]:
    """Build, and say which parts were made."""
    made, make = [], building._make_part
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "_make_part", lambda task: (made.append(task), make(task))[1])
        build([source], out)
    return made


def stopped_before_the_end(source: Path, out: Path, **options) -> list[Path]:
    """Make all parts, and no more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "_assemble", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build([source], out, **options)
    return sorted(out.with_name(f"{out.name}.parts").glob("*.npz"))


def truncated(part: Path, other: Path) -> None:
    part.write_bytes(part.read_bytes()[:-100])


def flipped(part: Path, other: Path) -> None:
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 8
    part.write_bytes(content)


def emptied(part: Path, other: Path) -> None:
    part.write_bytes(b"")


def renamed(part: Path, other: Path) -> None:
    part.write_bytes(other.read_bytes())


def rewritten(part: Path, other: Path) -> None:
    with np.load(part) as stored:
        arrays = {**stored}
    arrays["positions_milliangstrom"] += 1
    np.savez_compressed(part, **arrays)


@pytest.mark.parametrize("damage", [truncated, flipped, emptied, renamed, rewritten, lambda part, _: part.unlink()])
def test_a_part_that_is_damaged_or_not_ours_is_made_again(damage, whole, tmp_path):
    source, out = dropped_and_kept(tmp_path), tmp_path / "out.npz"
    parts = stopped_before_the_end(source, out)
    assert len(parts) == 5
    damage(parts[1], parts[2])
    assert [task.path for task in tasks_of(source, out)] == [parts[1]]
    assert out.read_bytes() == whole


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
    assert len(tasks_of(source, out)) == 1  # the chunk that was changed; the others are as they were
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


def refused(capsys, arguments: list, *words: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in ("molecules", *arguments)])
    text = capsys.readouterr().err
    assert stop.value.code == 2
    assert text.count("\n") == 1, text
    assert all(word in text for word in words), text


def test_mistakes_are_told_before_the_work_starts(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(building, "results", lambda *args: pytest.fail("work has started"))
    monkeypatch.chdir(tmp_path)
    good = smi(tmp_path / "in.smi", "CCO")
    out = ["-o", tmp_path / "out.npz"]
    (tmp_path / "empty.smi").write_text("# nothing\n\n")
    (tmp_path / "blank.csv").write_text("")
    (tmp_path / "table.csv").write_text("name,formula\nwater,H2O\n")
    (tmp_path / "cut.smi.gz").write_bytes(gzip.compress(b"CCO\n" * 999)[:-20])
    (tmp_path / "folder.npz").mkdir()
    refused(capsys, out, "at least one file")
    refused(capsys, [tmp_path / "none.smi", *out], "none.smi does not exist")
    refused(capsys, [tmp_path / "empty.smi", *out], "empty.smi holds no molecules")
    refused(capsys, [tmp_path / "blank.csv", *out], "blank.csv holds no molecules")
    refused(capsys, [tmp_path / "table.csv", *out], "table.csv: it has no column named smiles")
    refused(capsys, [tmp_path / "cut.smi.gz", *out], "cut.smi.gz cannot be read")
    refused(capsys, [tmp_path / "in.pdb", *out], "unknown suffix")
    refused(capsys, [tmp_path / "folder.npz", *out], "is not a plain file")
    refused(capsys, [good, "-o", tmp_path / "nowhere" / "out.npz"], "cannot be written (no such file or directory)")
    refused(capsys, [good, "-o", tmp_path / "in.smi" / "out.npz"], "cannot be written")
    refused(capsys, [good, "-o", tmp_path / "folder.npz"], "is a folder")
    refused(capsys, [good, "-o", tmp_path / "out.sdf"], "written as .npz")
    refused(capsys, [good, *out, "--max-atoms", 300], "255")
    refused(capsys, [good, *out, "--timeout", 0], "time limit")
    refused(capsys, [good, *out, "--test", 0.6, "--validation", 0.5], "some for training")
    pack_molecules([molecule_from_smiles("CCO")], tmp_path / "set.npz")
    refused(capsys, [tmp_path / "set.npz", "-o", "set.npz"], "set.npz is a source as well")
    assert not (tmp_path / "out.npz").exists()


def test_the_command_prints_the_table_and_goes_on_after_a_stop(whole, tmp_path, capsys, monkeypatch):
    source, out = dropped_and_kept(tmp_path), tmp_path / "out.npz"
    command = [source, "-o", out, "--min-atoms", 4, "--test", 0, "--validation", 0, "--workers", 0]

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(building, "_assemble", stop)
        patch.setattr(building, "tqdm", lambda **_: io.StringIO())
        patch.setattr(building, "results", lambda *args: stop())
        with pytest.raises(SystemExit) as stopped:
            main([str(a) for a in ("molecules", *command)])
        assert stopped.value.code == 130
        assert capsys.readouterr().err.strip() == "afmol: stopped; the same command goes on where it was."
    main([str(a) for a in ("molecules", *command)])
    printed = capsys.readouterr().out
    assert out.read_bytes() == whole
    for words in ("entries", "kept", "flatter than 1.6 A", "with Br", "near-duplicate", f"-> {out}"):
        assert words in printed


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


def test_a_table_that_begins_with_an_empty_line(tmp_path):
    assert entries_of(tmp_path / "a.csv", "\n\nname,smiles\nbenzene,c1ccccc1\n") == ["c1ccccc1"]


def test_a_stray_quote_takes_nothing_with_it(tmp_path):
    assert entries_of(tmp_path / "a.tsv", 'name\tsmiles\n"5\tCCN\nb\tCCO\nc\tCCC\n') == ["CCN", "CCO", "CCC"]


def test_records_without_their_last_line(tmp_path):
    records = [mol(molecule_from_smiles(s)) for s in ("CCO", "CCN", "CCC")]
    assert entries_of(tmp_path / "a.sdf", "".join(records)) == records
    assert entries_of(tmp_path / "b.sdf", "$$$$\n".join(records)) == records


def test_a_frame_that_lacks_a_row_takes_no_other_with_it(tmp_path):
    good = "2\n7\nC 0 0 0\nO 1.1 0 0\n"
    for bad in ("3\nshort\nC 0 0 0\nO 1.1 0 0\n", "none\nO 0 0 0\nC 1 0 0\n", "9" * 30 + "\nhuge\nC 0 0 0\n"):
        assert entries_of(tmp_path / "a.xyz", good + bad + good + good) == [good, bad, good, good]


def test_atoms_on_top_of_each_other(tmp_path):
    ethanol = molecule_from_smiles("CCO")
    small = replace(ethanol, positions=0.2 * ethanol.positions)
    (tmp_path / "a.sdf").write_text(mol(small) + "$$$$\n" + mol(ethanol) + "$$$$\n")
    report, _ = build([tmp_path / "a.sdf"], tmp_path / "out.npz")
    assert report.dropped == {"atoms on top of each other": 1}
