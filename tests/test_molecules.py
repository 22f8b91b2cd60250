"""Packed sets: what goes in comes out, what is damaged is told."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afmol.calibration import calibrate
from afmol.data.chemistry import molecule_from_smiles
from afmol.data.molecules import PARTS, balance, load_molecules, molecule_set, pack_molecules, write_molecules
from afmol.data.shards import SetConfig, make
from afmol.errors import ConfigError, MoleculeError
from afmol.evaluation import evaluate
from afmol.soap_evaluation import evaluate_predictor
from afmol.training import CheckTrainConfig, PointsTrainConfig, TrainConfig, train, train_check, train_on_points
from strategies import molecules, one_sentence, row, same

PREDICTOR = Path(__file__).parents[1] / "configs" / "soap" / "molecules.safetensors"
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
sets = st.lists(molecules(charged=True, names=names), min_size=1, max_size=6)


def rotation(seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]


@settings(max_examples=20)
@given(sets)
def test_packing_keeps_every_molecule(tmp_path_factory, several):
    """Up to 0.001 A and 0.0001 e, once; what was read is written as it was."""
    path = tmp_path_factory.mktemp("set") / "set.npz"
    pack_molecules(several, path)
    loaded = load_molecules(path)
    assert len(loaded) == len(several)
    for a, b in zip(loaded, several, strict=True):
        same(a, b, 0.5001e-3, 0.5001e-4)
    again = molecule_set(list(loaded))
    assert all(np.array_equal(array, loaded.arrays[name]) for name, array in again.arrays.items())
    same(loaded[-1], loaded[len(loaded) - 1])
    with pytest.raises(IndexError):
        loaded[len(several)]


@settings(max_examples=20)
@given(sets)
def test_flatness_agrees_with_a_singular_value_decomposition_of_each(several):
    packed = molecule_set(several)
    for flatness, molecule in zip(packed.flatness, packed, strict=True):
        centred = molecule.positions - molecule.positions.mean(0)
        _, spread, axes = np.linalg.svd(centred)
        spread = np.pad(spread, (0, 3 - len(spread)))
        if spread[1] - spread[2] > 0.1:  # else the flattest direction is not one direction
            assert flatness == pytest.approx(np.ptp(centred @ axes[2]), abs=2e-3)


def test_flatness_does_not_depend_on_the_orientation():
    benzene, neopentane = molecule_from_smiles("c1ccccc1"), molecule_from_smiles("CCCC(C)(C)C")
    turned = [replace(m, positions=m.positions @ rotation(s).T) for m in (benzene, neopentane) for s in (1, 2)]
    flat, thick, *rest, atom, line = molecule_set([benzene, neopentane, *turned, row(1), row(5)]).flatness
    assert flat < 0.02
    assert thick > 3
    np.testing.assert_allclose(rest, [flat, flat, thick, thick], atol=5e-3)
    assert atom == 0
    assert line == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("molecule", "reason"),
    [
        (row(charges=None), "charges"),
        (row(charges=np.array([0, 4.0, 0])), "charges"),
        (row(positions=np.full((3, 3), 33.0)), "centre"),
        (row(256), "256 atoms"),
        (row(0), "0 atoms"),
    ],
)
def test_what_does_not_fit_is_not_packed(tmp_path, molecule, reason):
    path = tmp_path / "set.npz"
    with pytest.raises(MoleculeError, match=rf"Molecule 1 \('x'\).*{reason}"):
        pack_molecules([row(), molecule], path)
    assert not path.exists()


def test_files_that_cannot_be_written(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.*cannot be written \(no such file"):
        pack_molecules([row()], tmp_path / "nowhere" / "set.npz")
    with pytest.raises(MoleculeError, match=r"no molecule"):
        pack_molecules([], tmp_path / "set.npz")


@pytest.fixture(scope="module")
def packed_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "set.npz"
    pack_molecules([molecule_from_smiles(s) for s in ("c1ccccc1", "CCO", "C")], path)
    return path


def refused(path: Path, reason: str) -> None:
    with pytest.raises(MoleculeError, match=reason) as caught:
        load_molecules(path)
    one_sentence(caught, path)


@given(st.data())
def test_damaged_files_are_told_or_harmless(packed_file, tmp_path_factory, data):
    content = bytearray(packed_file.read_bytes())
    path = tmp_path_factory.mktemp("damaged") / "set.npz"
    if data.draw(st.booleans(), "cut"):
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1), "length")])
        refused(path, "damaged")
    else:
        content[data.draw(st.integers(0, len(content) - 1), "byte")] ^= data.draw(st.integers(1, 255), "flip")
        path.write_bytes(content)
        try:
            loaded = load_molecules(path)
        except MoleculeError:
            return
        assert len(loaded) == 3


def test_foreign_files_are_told(tmp_path):
    refused(tmp_path / "none.npz", "does not exist")
    refused(tmp_path, "cannot be read")
    (tmp_path / "text.npz").write_text("C 0 0 0\n")
    refused(tmp_path / "text.npz", "cannot be read as a set of molecules")
    np.save(tmp_path / "array.npy", np.zeros(3))
    refused(tmp_path / "array.npy", "single array")
    np.savez(tmp_path / "stack.npz", data=np.zeros((4, 4, 3)), lengthX=1.0)
    refused(tmp_path / "stack.npz", "no array 'n_atoms'")


def test_arrays_and_bond_orders_of_other_writers_are_left_alone(packed_file, tmp_path):
    with np.load(packed_file) as stored:
        bonds = stored["bonds"][:, [1, 0, 2]] + np.array([0, 0, 3], np.uint8)
        np.savez(tmp_path / "set.npz", **({**stored} | {"bonds": bonds, "inchikey": np.array([b"a", b"b", b"c"])}))
    for a, b in zip(load_molecules(tmp_path / "set.npz"), load_molecules(packed_file), strict=True):
        same(a, b)


def test_a_set_loads_without_rdkit_and_ase(packed_file):
    code = (
        "import sys; sys.modules.update(rdkit=None, ase=None)\n"
        "from afmol.data.molecules import load_molecules\n"
        "print(len(load_molecules(sys.argv[1])[0]))"
    )
    run = subprocess.run([sys.executable, "-c", code, packed_file], capture_output=True, text=True, check=True)
    assert run.stdout == "12\n"


def test_the_shared_training_set_has_the_flat_molecules_that_its_readme_counts(shared):
    stored = load_molecules(shared / "molecules" / "train.npz")
    start = time.perf_counter()
    assert (stored.flatness < 1.6).sum() == 22_904
    assert time.perf_counter() - start < 5


# Split and weighted sets


@pytest.fixture
def split_file(tmp_path) -> Path:
    """Rows of 3, 4, 5 and 6 atoms; for training, validation, training, validation."""
    rows = molecule_set([row(n, name=str(n)) for n in (3, 4, 5, 6)])
    parts = {"split": np.array([0, 1, 0, 1], np.uint8), "weight": np.array([1.0, 2.0, 0.5, 4.0], np.float32)}
    write_molecules(replace(rows, **parts), tmp_path / "split.npz")
    return tmp_path / "split.npz"


def test_a_part_holds_its_molecules_and_no_other(split_file):
    whole = load_molecules(split_file)
    assert [whole[i].name for i in range(4)] == ["3", "4", "5", "6"]
    for part, which in (("train", [0, 2]), ("validation", [1, 3])):
        loaded = load_molecules(split_file, part)
        assert len(loaded) == 2
        for i, j in enumerate(which):
            same(loaded[i], whole[j])
        np.testing.assert_array_equal(loaded.weight, whole.weight[which])
    with pytest.raises(MoleculeError, match=r"split\.npz holds no molecule of the part 'test'"):
        load_molecules(split_file, "test")


def test_a_set_that_is_not_split_is_taken_whole(packed_file):
    assert load_molecules(packed_file).split is None
    assert len(load_molecules(packed_file, "test")) == 3


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("n_atoms", lambda a: a + 1, "add up"),
        ("n_atoms", lambda a: a.astype(float), "'n_atoms' is float64"),
        ("n_bonds", lambda a: a[:-1], "each molecule needs"),
        ("numbers", lambda a: a * 0 + 3, "element"),
        ("bonds", lambda a: a * 0, "two different atoms"),
        ("bonds", lambda a: a + 100, "two different atoms"),
        ("positions_milliangstrom", lambda a: a[:, :2], "'positions_milliangstrom' is int16"),
        ("smiles", lambda a: a.astype(object), "never loaded"),
        ("charges_e4", lambda a: a[1:], "add up"),
        ("split", lambda a: a[1:], "one entry a molecule"),
        ("split", lambda a: a + np.uint8(2), "split must be 0 to 2"),
        ("split", lambda a: a.astype(float), "'split' is float64"),
        ("weight", lambda a: a * [1, 1, 0, 1], "weights must be positive"),
        ("weight", lambda a: a * [1, 1, np.nan, 1], "weights must be positive"),
        ("weight", lambda a: a[1:], "one entry a molecule"),
    ],
)
def test_sets_that_do_not_fit_together_are_told(split_file, key, value, reason):
    with np.load(split_file) as stored:
        np.savez(split_file, **({**stored} | {key: value(stored[key])}))
    refused(split_file, reason)


def test_rare_elements_are_drawn_more_often():
    fluorine, iodine, plain = (molecule_from_smiles(s) for s in ("CF", "FCI", "CC"))
    weight = balance(molecule_set([plain] * 900 + [fluorine] * 90 + [iodine] * 10))
    assert weight.mean() == pytest.approx(1, abs=1e-6)
    # shares 0.1 and 0.01 become sqrt(0.1) and 0.1 of what is drawn, but for the sum
    assert weight[950] / weight[0] == pytest.approx(np.sqrt(10), rel=1e-4)
    assert weight[-1] / weight[0] == pytest.approx(10, rel=1e-4)
    rarer = balance(molecule_set([plain] * 999 + [iodine]))
    assert rarer[-1] / rarer[0] == pytest.approx(10, rel=1e-4)  # not the 32 of 1 in 1000


@pytest.mark.parametrize(
    ("part", "use"),
    [
        ("train", lambda data, out: train(TrainConfig(molecules=data, out=out))),
        ("train", lambda data, out: train_check(CheckTrainConfig(molecules=data, out=out))),
        ("train", lambda data, out: train_on_points(PointsTrainConfig(molecules=data, out=out))),
        ("validation", lambda data, out: train(TrainConfig(molecules=f"{out}.npz", validation=data, out=out))),
        ("validation", lambda data, out: calibrate(data, "base")),
        ("test", lambda data, out: evaluate(data, "base")),
        ("test", lambda data, out: evaluate_predictor(PREDICTOR, data)),
        ("test", lambda data, out: list(make(SetConfig(data, 4, part="test"), out, workers=0))),
    ],
)
def test_each_takes_its_part_of_a_set_or_nothing(part, use, tmp_path):
    """A set whose molecules are all of another part is refused."""
    rows = molecule_set([row(3), row(4)])
    write_molecules(rows, tmp_path / "out.npz")  # not split
    for wrong in {*range(3)} - {PARTS.index(part)}:
        write_molecules(replace(rows, split=np.full(2, wrong, np.uint8)), tmp_path / "set.npz")
        with pytest.raises(MoleculeError, match=f"part '{part}'"):
            use(str(tmp_path / "set.npz"), str(tmp_path / "out"))
