"""Reading and writing: round trips, orientation and order against files made here by their layouts, bad input."""

import io
import os
import subprocess
import sys
from inspect import unwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from afmol.elements import bonds_by_distance
from afmol.errors import ConfigError, MoleculeError, ScanError
from afmol.files import in_order, read_molecule, read_scan, write_molecule, write_scan
from afmol.structures import Molecule, Scan
from strategies import both, gsf, molecules, one_sentence, row, same, sxm

HBN = Path(__file__).resolve().parents[1].parent / "shared" / "afm" / "sxm" / "hbn_stack"
# One folder serves all examples of a property: each example overwrites its own file.
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def scans(draw) -> Scan:
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(2, 4)))
    data = draw(npst.arrays(np.float32, shape, elements=st.floats(-1e6, 1e6, width=32)))
    length = st.floats(0.1, 200, allow_nan=False)
    steps = draw(st.none() | st.lists(st.floats(0.02, 3), min_size=shape[2], max_size=shape[2]))
    return Scan(data, (draw(length), draw(length)), None if steps is None else 7 - np.cumsum(steps))


def approach() -> Scan:
    """Every value says where it stands: 100 x + 10 y + slice."""
    x, y, z = np.meshgrid(np.arange(4), np.arange(3), np.arange(3), indexing="ij")
    return Scan((100 * x + 10 * y + z).astype(np.float32), (8.0, 6.0), np.array([1.0, 0.5, 0.2]))


def sxm_folder(folder: Path, scan: Scan, up: bool = True, **options) -> Path:
    """A stack, one file a slice, in an order of names that is not the order of heights."""
    folder.mkdir(exist_ok=True)
    for k in range(scan.data.shape[2]):
        image = scan.data[:, :, k]
        views = {"Current": both(0 * image), "OC_M1_Freq._Shift": {"forward": image, "backward": image + 2}}
        content = sxm(views, z=1e-10 * scan.heights[k] - 5e-9, up=up, **options)
        (folder / f"slice{(k * 7) % 11}.sxm").write_bytes(content)
    return folder


def two(folder: Path, image: np.ndarray) -> Path:
    """A stack of a plain image and, nearer, one a larger by 1."""
    for k in range(2):
        (folder / f"{k}.sxm").write_bytes(sxm({"df": both(image + k)}, z=-1e-10 * k))
    return folder


def saved(path: Path, **arrays: object) -> Path:
    np.savez(path, **{k: np.asarray(v) for k, v in arrays.items()})
    return path


def refused(path, words: str, name: str, **options) -> None:
    with pytest.raises(ScanError, match=words) as caught:
        unwrap(read_scan)(path, **options)  # past the type checks of a test run, as a user's call goes
    one_sentence(caught, name)


# Stacks: round trips and orientation


@quick
@given(scan=scans())
@pytest.mark.parametrize("suffix", [".npz", ".h5", ".hdf5", ".gsf"])
def test_stack_round_trip(suffix, scan, tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / f"scan{suffix}"
    write_scan(scan, path)
    again = read_scan(path)
    assert np.array_equal(again.data, scan.data)
    assert again.data.dtype == np.float32
    assert again.size == (pytest.approx(scan.size, rel=1e-14) if suffix == ".gsf" else scan.size)
    assert again.source == path.name
    assert np.array_equal(again.heights, scan.heights)
    assert [f.name for f in path.parent.iterdir()] == [path.name]


def test_gsf_rows_run_from_the_top(tmp_path):
    shown = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    for k, title in enumerate(["df, tip height = 1.0 A", "tip height = 1.2 A"]):
        info = {"XReal": 3e-10, "YReal": 2e-10, "XYUnits": "m", "Title": title}
        (tmp_path / f"{k}.gsf").write_bytes(gsf(shown + 10 * k, **info))
    scan = read_scan(tmp_path)
    assert scan.data[0, 0].tolist() == [14.0, 4.0]  # lower left, the higher slice first
    assert scan.data[2, 1].tolist() == [13.0, 3.0]  # upper right
    assert scan.size == pytest.approx((3, 2))
    assert scan.heights == pytest.approx([1.2, 1.0])


def test_gsf_heights_are_asked_for_and_follow_the_names(tmp_path):
    # "step height" is a feature of the sample, so no tip height.
    for name, value in (("s1.gsf", 1.0), ("s2.gsf", 2.0), ("s10.gsf", 10.0)):
        info = {"XReal": 3e-10, "YReal": 2e-10, "XYUnits": "m", "Title": "step height = 2 A"}
        (tmp_path / name).write_bytes(gsf(np.full((2, 3), value), **info))
    refused(tmp_path, "--heights", "s1.gsf")
    scan = read_scan(tmp_path, heights=[0.3, 0.9, 0.1])
    assert scan.data[0, 0].tolist() == [2.0, 1.0, 10.0]
    assert scan.heights.tolist() == [0.9, 0.3, 0.1]
    refused(tmp_path, "3 slices, but 2 heights", tmp_path.name, heights=[1.0, 0.0])
    assert in_order(sorted(map(str, tmp_path.iterdir()))) == [tmp_path / f"s{k}.gsf" for k in (1, 2, 10)]


def test_slices_of_two_stacks_are_no_stack(tmp_path):
    """One written by afmol without heights, one with: both number their slices from 0."""
    data = np.random.default_rng(0).random((8, 8, 3), np.float32)
    write_scan(Scan(data, (4.0, 4.0)), tmp_path / "a.gsf")
    write_scan(Scan(data, (4.0, 4.0), np.array([3.0, 2.0, 1.0])), tmp_path / "b.gsf")
    assert read_scan(tmp_path / "a.gsf").heights is None
    for k in range(3):
        (tmp_path / "b.gsf" / f"{k:03d}.gsf").rename(tmp_path / "a.gsf" / f"b{k}.gsf")
    refused(tmp_path / "a.gsf", "--heights", "000.gsf")


def test_a_name_that_is_no_text_is_written_all_the_same(tmp_path):
    """Names of files need not be UTF-8, and a molecule has the name of its stack."""
    molecule = Molecule(np.zeros((1, 3)), np.array([6]), np.zeros((0, 2), int), name="a\udcff b")
    for suffix in (".xyz", ".sdf", ".mol"):
        write_molecule(molecule, tmp_path / f"m{suffix}")
        assert "a? b" in (tmp_path / f"m{suffix}").read_text()


def test_layout_of_npz_and_h5_is_the_documented_one(tmp_path):
    for suffix in (".npz", ".h5"):
        write_scan(approach(), tmp_path / f"a{suffix}")
    with np.load(tmp_path / "a.npz") as npz, h5py.File(tmp_path / "a.h5") as h5:
        assert sorted(npz.files) == sorted(h5) == ["data", "heights", "lengthX", "lengthY"]
        assert npz["data"].shape == h5["data"].shape == (4, 3, 3)
        assert float(npz["lengthX"]) == 8.0


def test_h5_lengths_may_be_attributes(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = approach().data.astype(">f8")
        file.attrs["lengthX"], file.attrs["lengthY"] = 8, 6.0
    scan = read_scan(tmp_path / "a.h5")
    assert np.array_equal(scan.data, approach().data)
    assert scan.size == (8.0, 6.0)


def test_size_and_heights_given_override_the_file(tmp_path):
    write_scan(approach(), tmp_path / "a.npz")
    scan = read_scan(str(tmp_path / "a.npz"), size=(1.0, 2.0), heights=[3.0, 2.0, 1.0])
    assert scan.size == (1.0, 2.0)
    assert scan.heights.tolist() == [3, 2, 1]


# Nanonis


@pytest.mark.parametrize("kind", ["FLOAT            MSBFIRST", "FLOAT            LSBFIRST"])
@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize(("direction", "shift"), [("forward", 0), ("backward", 2), ("average", 1)])
def test_sxm_orientation_order_and_averaging(up, direction, shift, kind, tmp_path):
    truth = approach()
    scan = read_scan(sxm_folder(tmp_path / "stack", truth, up, kind=kind), direction=direction)
    assert np.array_equal(scan.data, truth.data + shift)
    assert scan.size == pytest.approx((8, 6))
    assert scan.heights == pytest.approx(truth.heights - 50, abs=2e-4)
    assert scan.source == "stack"


def test_sxm_files_in_any_order_and_mixed_scan_directions(tmp_path):
    truth = approach()
    up, down = sxm_folder(tmp_path / "up", truth), sxm_folder(tmp_path / "down", truth, up=False)
    scan = read_scan([up / "slice3.sxm", down / "slice0.sxm", up / "slice7.sxm"], direction="forward")
    assert np.array_equal(scan.data, truth.data)
    (up / "slice3.sxm").rename(up / "slice3.SXM")
    refused(up, r"rename it to slice3\.sxm", "slice3.SXM")


def test_repeated_heights_are_kept_in_the_order_of_names(tmp_path):
    for k, z in ((2, -1e-10), (9, -2e-10), (10, -1e-10), (11, 0.0)):
        (tmp_path / f"s{k}.sxm").write_bytes(sxm({"df": both(np.full((4, 3), k))}, z=z))
    for path in (tmp_path, [tmp_path / f"s{k}.sxm" for k in (10, 9, 11, 2)]):
        scan = read_scan(path)
        assert scan.data[0, 0].tolist() == [11.0, 2.0, 10.0, 9.0]
        assert scan.heights.tolist() == [0.0, -1.0, -1.0, -2.0]


def test_sxm_written_here_is_one_to_nanonispy2(tmp_path):
    """The files of these tests are what the library takes for Nanonis files; its rows are as scanned."""
    import nanonispy2

    folder = sxm_folder(tmp_path / "stack", approach(), up=False)
    theirs = nanonispy2.read.Scan(str(folder / "slice0.sxm"))
    assert theirs.header["comment"] == "Cu(111)\n\n20 \u00b5A: a note"
    rows = theirs.signals["OC_M1_Freq._Shift"]["backward"]
    assert np.array_equal(rows[::-1, ::-1].T, approach().data[:, :, 0] + 2)
    ours = read_scan(folder, direction="backward", channel="OC M1 Freq. Shift")
    assert np.array_equal(ours.data, approach().data + 2)


def test_sxm_comment_in_another_encoding(tmp_path):
    for path in two(tmp_path, np.zeros((4, 3))).iterdir():
        path.write_bytes(path.read_bytes().replace("\u00b5".encode(), "\u00b5".encode("latin-1")))
    assert read_scan(tmp_path).data[0, 0].tolist() == [0.0, 1.0]


def test_sxm_height_is_the_recorded_z_channel(tmp_path):
    image = np.ones((4, 3))
    for k, z in enumerate([-1.26895e-7, -1.26883e-7]):  # 0.12 A apart, which the header's six digits would round
        (tmp_path / f"{k}.sxm").write_bytes(sxm({"Z": both(z * image), "Frequency_Shift": both(k * image)}, z=-1.27e-7))
    scan = read_scan(tmp_path)
    assert scan.data[0, 0].tolist() == [1.0, 0.0]
    assert scan.heights == pytest.approx([-1268.83, -1268.95], abs=1e-3)


@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("channels", [1, 2])
def test_sxm_of_one_direction_is_refused(way, channels, tmp_path):
    """nanonispy2 takes both directions for granted: no such file may come out as an image of something else."""
    views = {f"channel {i}": {way: np.full((4, 4), i)} for i in range(channels - 1)} | {"df": {way: np.ones((4, 4))}}
    for k in range(2):
        (tmp_path / f"{k}.sxm").write_bytes(sxm(views, z=-1e-10 * k))
    refused(tmp_path, "one direction only", "0.sxm")


@pytest.mark.parametrize("names", [("Current", "Bias"), ("OC_M1_Freq._Shift", "OC_M2_Freq._Shift")])
def test_sxm_channel_is_named_when_it_is_not_clear(names, tmp_path):
    for k in range(2):
        views = {name: both(np.full((4, 3), i)) for i, name in enumerate(names)}
        (tmp_path / f"{k}.sxm").write_bytes(sxm(views, z=-1e-10 * k))
    refused(tmp_path, f"{names[0]}, {names[1]}", "0.sxm")
    assert (read_scan(tmp_path, channel=names[1]).data == 1).all()
    refused(tmp_path, "'nope'", "0.sxm", channel="nope")


IMAGE = {"df": both(np.ones((4, 3)))}
NAN = {"df": both(np.full((4, 3), np.nan))}
WIDE = {"df": both(np.ones((5, 3)))}
BAD_PAIRS = {
    "pixels": (sxm(WIDE, 0), "different numbers of pixels"),
    "sizes": (sxm(IMAGE, 0, size=(9e-10, 6e-10)), "different sizes"),
    "places": (sxm(IMAGE, 0, offset=(2e-8, -2e-8)), "different places"),
    "no height": (sxm(IMAGE, None), "--heights"),
    "unfinished": (sxm(NAN, 0), "NaN"),
    "feedback": (sxm(IMAGE, 0, feedback="ON"), "Z controller on"),
    "cut off": (sxm(IMAGE, 0)[:-3], "cut off"),
    "too long": (sxm(IMAGE, 0) + bytes(4), "does not fit its data"),
    "no header": (sxm(IMAGE, 0)[:200], "no Nanonis scan"),
    "no images": (sxm(IMAGE, 0)[: -4 * 24 - 2], "no Nanonis scan"),
    "no direction": (sxm(IMAGE, 0).replace(b":SCAN_DIR:\nup", b":SCAN_DIR:\nleft"), "left"),
    "no pixels": (sxm(IMAGE, 0).replace(b"SCAN_PIXELS", b"SCAN_PIXELZ"), "SCAN_PIXELS"),
    "no numbers": (sxm(IMAGE, 0).replace(b":SCAN_RANGE:\n", b":SCAN_RANGE:\nwide "), "damaged"),
    "data type": (sxm(IMAGE, 0).replace(b"MSBFIRST", b"SOMEHOW "), "SOMEHOW"),
    "empty": (b"", "is empty"),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_sxm_that_make_no_stack(case, tmp_path):
    (tmp_path / "a.sxm").write_bytes(sxm(IMAGE, 1e-10))
    (tmp_path / "b.sxm").write_bytes(BAD_PAIRS[case][0])
    refused(tmp_path, BAD_PAIRS[case][1], "b.sxm")


def test_a_single_image_is_no_stack(tmp_path):
    (tmp_path / "a.sxm").write_bytes(sxm(IMAGE))
    refused(tmp_path, "other heights", tmp_path.name)
    refused(tmp_path / "a.sxm", "other heights", "a.sxm")


def test_measured_hbn_sweeps(shared):
    """31 images: one at the start, then an approach in 15 steps of 10 pm, then 14 steps back."""
    files = sorted(HBN.glob("*.sxm"))
    for sweep, n in ((slice(1, 17), 16), (slice(16, 31), 15)):
        scan = read_scan(files[sweep])
        assert scan.data.shape == (48, 48, n)
        assert np.diff(scan.heights) == pytest.approx(np.full(n - 1, -0.1), abs=1e-4)
        assert scan.size == pytest.approx((10, 10), abs=1e-3)
        # Physics says which end is close: the current and, past its minimum, the frequency shift rise towards the
        # surface.
        current = read_scan(files[sweep], channel="Current").data.mean(axis=(0, 1))
        assert np.abs(current[-3:]).mean() > 3 * np.abs(current[:3]).mean()
        assert (np.diff(scan.data.mean(axis=(0, 1))) > 0).all()


def test_measured_hbn_directions(shared):
    """Forward with backward, and a scan down with the next one up, show the same atoms only if turned rightly."""

    def alike(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])

    files = sorted(HBN.glob("*.sxm"))
    ways = [read_scan(files[1:17], direction=way).data for way in ("forward", "backward")]
    assert alike(ways[0][..., -1], ways[1][..., -1]) > 0.85
    assert alike(ways[0][..., -1], ways[1][::-1, :, -1]) < 0.3
    first_two = read_scan(files[:2], heights=[1.0, 0.0]).data
    assert alike(first_two[..., 0], first_two[..., 1]) > 0.6
    assert alike(first_two[:, ::-1, 0], first_two[..., 1]) < 0.3


def test_measured_hbn_folder_is_one_stack(shared):
    """31 slices at 16 heights, 15 of them twice: file k of the way in and file 32 - k of the way out, in that order."""
    files = sorted(HBN.glob("*.sxm"))
    scan = read_scan(HBN)
    assert scan.source == "hbn_stack"
    assert scan.data.shape == (48, 48, 31)
    assert np.diff(scan.heights) == pytest.approx(np.tile([0, -0.1], 15), abs=2e-4)
    places = [0, 1, *(place for k in range(2, 16) for place in (k, 32 - k)), 16]
    for slices in (slice(0, 4), slice(27, 31)):
        pairs = [files[place] for place in places[slices]]
        direct = read_scan(pairs, heights=np.arange(len(pairs), 0, -1.0))
        assert np.array_equal(scan.data[..., slices], direct.data)


# Bad stacks


def test_places_without_a_stack(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for path, words in [
        (tmp_path / "missing.npz", "does not exist"),
        (tmp_path / "missing", "does not exist"),
        (Path("x" * 300 + ".npz"), "does not exist"),
        (tmp_path, "holds no scan"),
        (tmp_path / "notes.txt", r"\.npz, \.h5, \.hdf5, \.sxm, \.gsf"),
    ]:
        refused(path, words, path.name)
    refused([], "No file", "")
    (tmp_path / "a.sxm").write_bytes(sxm(IMAGE))
    (tmp_path / "a.gsf").write_bytes(gsf(np.ones((3, 4))))
    refused(tmp_path, r"mixes .gsf and .sxm", tmp_path.name)
    stacks = tmp_path / "stacks"
    stacks.mkdir()
    saved(stacks / "a.npz", data=approach().data)
    refused(stacks, "each a whole stack", "stacks")


def test_size_is_asked_for_never_guessed(tmp_path):
    path = saved(tmp_path / "a.npz", data=approach().data, lengthX=8.0)
    (tmp_path / "gsf").mkdir()
    for k in range(2):
        (tmp_path / "gsf" / f"{k}.gsf").write_bytes(gsf(np.ones((2, 3)), Title=f"tip height = {k} A"))
    for stack in (path, tmp_path / "gsf"):
        refused(stack, "--size LX LY", stack.name)
        assert read_scan(stack, size=(8.0, 6.0)).size == (8.0, 6.0)
    for size in [(8,), (8, 0), (8, np.nan), ("a", 1)]:
        refused(path, "size", "a.npz", size=size)


BAD_ARRAYS = {
    "wrong keys": ({"image": np.ones((2, 2, 2))}, "found: image"),
    "two dimensions": ({"data": np.ones((2, 2))}, "three dimensions"),
    "no slices": ({"data": np.ones((2, 2, 0))}, "three dimensions"),
    "text": ({"data": np.full((2, 2, 2), "a")}, "real numbers"),
    "complex": ({"data": np.full((2, 2, 2), 1j)}, "real numbers"),
    "nan": ({"data": np.full((2, 2, 2), np.nan)}, "NaN"),
    "too large": ({"data": np.full((2, 2, 2), 1e300)}, "beyond"),
    "length": ({"data": np.ones((2, 2, 2)), "lengthX": np.ones(2)}, "one length"),
    "negative length": ({"data": np.ones((2, 2, 2)), "lengthX": -1.0, "lengthY": 2.0}, "positive"),
    "number of heights": ({"data": np.ones((2, 2, 2)), "heights": [3.0, 2.0, 1.0]}, "3 heights"),
    "ascending heights": ({"data": np.ones((2, 2, 2)), "heights": [1.0, 2.0]}, "ascend"),
    "heights of text": ({"data": np.ones((2, 2, 2)), "heights": ["a", "b"]}, "one height a slice"),
}


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(case, suffix, tmp_path):
    arrays, words = BAD_ARRAYS[case]
    path = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        saved(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for key, value in arrays.items():
                value = np.asarray(value)
                file[key] = value.astype("S1") if value.dtype.kind == "U" else value
    refused(path, words, path.name, size=None if "lengthX" in arrays else (1.0, 1.0))


def test_pickled_objects_are_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    refused(saved(tmp_path / "a.npz", data=np.array([Trap()], dtype=object)), "never loaded", "a.npz")
    assert not (tmp_path / "sprung").exists()


def test_channel_and_direction_are_for_sxm(tmp_path):
    write_scan(approach(), tmp_path / "a.npz")
    for choice in ({"channel": "df"}, {"direction": "forward"}):
        refused(tmp_path / "a.npz", r"in \.sxm files only", "a.npz", **choice)
    refused(tmp_path / "a.npz", "not 'sideways'", "", direction="sideways")


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("intact")
    for suffix in (".npz", ".h5", ".gsf"):
        write_scan(approach(), folder / f"a{suffix}")
    found = {suffix: (folder / f"a{suffix}").read_bytes() for suffix in (".npz", ".h5")}
    return {**found, ".gsf": (folder / "a.gsf" / "000.gsf").read_bytes(), ".sxm": sxm(IMAGE)}


@settings(quick, max_examples=40)
@given(data=st.data())
@pytest.mark.parametrize("suffix", [".npz", ".h5", ".gsf", ".sxm"])
def test_damage_ends_in_a_sentence(suffix, data, intact, tmp_path):
    """What is cut off is refused; what has a changed byte is refused or still a scan; no other exception escapes."""
    raw = intact[suffix]
    place = data.draw(st.integers(0, len(raw) - 1))
    cut = data.draw(st.booleans())
    changed = raw[:place] if cut else raw[:place] + bytes([raw[place] ^ 0x55]) + raw[place + 1 :]
    (tmp_path / f"a{suffix}").write_bytes(changed)
    files = tmp_path / f"a{suffix}"
    if suffix in (".gsf", ".sxm"):
        (tmp_path / f"b{suffix}").write_bytes(raw)
        files = [files, tmp_path / f"b{suffix}"]
    found = ""
    try:
        read_scan(files, heights=[1.0, 0.0] if isinstance(files, list) else None)
    except ScanError as error:
        found = str(error)
    assert found or not cut
    assert not found or f"a{suffix}" in found
    assert "\n" not in found


# Molecules


@quick
@given(molecule=molecules())
@pytest.mark.parametrize(
    ("suffix", "accuracy", "of_charges"), [(".xyz", 6e-9, 6e-9), (".sdf", 5.1e-5, 1e-6), (".mol", 5.1e-5, None)]
)
def test_molecule_round_trip(suffix, accuracy, of_charges, molecule, tmp_path):
    """Any bonds between any elements: valences are not our business at the border."""
    write_molecule(molecule, tmp_path / f"m{suffix}")
    again = read_molecule(tmp_path / f"m{suffix}")
    bonds = bonds_by_distance(again.positions, again.numbers) if suffix == ".xyz" else molecule.bonds
    charges = molecule.charges if of_charges else None
    same(again, Molecule(molecule.positions, molecule.numbers, bonds, charges, name="m"), accuracy, of_charges or 0)
    if of_charges and molecule.confidence is not None:
        np.testing.assert_allclose(again.confidence, molecule.confidence, atol=of_charges)


def test_large_and_empty_molecules_are_written(tmp_path):
    write_molecule(row(1200, charges=None, name="large"), tmp_path / "large.sdf")
    same(read_molecule(tmp_path / "large.sdf"), row(1200, charges=None, name="large"), 1e-4)
    for suffix in (".xyz", ".sdf", ".mol"):
        write_molecule(row(0), tmp_path / f"empty{suffix}")
        with pytest.raises(MoleculeError, match="no atoms"):
            read_molecule(tmp_path / f"empty{suffix}")


def test_plain_readers_open_what_we_write(tmp_path):
    """ASE's plain xyz reader and RDKit without sanitizing are the viewers' stand-ins."""
    from ase.io import read
    from rdkit import Chem

    molecule = Molecule(
        np.array([[0, 0, 0], [1.2, 0, 0.5]]),
        np.array([6, 8]),
        np.array([[0, 1]]),
        class_probabilities=np.eye(5)[[1, 3]],
        confidence=np.array([0.9, 0.8]),
        name='CO "tip"\n$$$$',
    )
    for suffix in (".xyz", ".sdf", ".mol"):
        write_molecule(molecule, tmp_path / f"m{suffix}")
    atoms = read(io.StringIO((tmp_path / "m.xyz").read_text()), format="xyz")
    assert atoms.get_chemical_symbols() == ["C", "O"]
    assert np.allclose(atoms.positions, molecule.positions)
    extended = read(io.StringIO((tmp_path / "m.xyz").read_text()), format="extxyz")
    assert extended.arrays["class"].tolist() == [1, 3]
    assert extended.arrays["confidence"].tolist() == [0.9, 0.8]
    assert len(list(Chem.SDMolSupplier(str(tmp_path / "m.sdf"), sanitize=False, removeHs=False))) == 1
    mol = Chem.MolFromMolFile(str(tmp_path / "m.mol"), sanitize=False, removeHs=False)
    assert mol.GetConformer().Is3D()
    assert mol.GetNumBonds() == 1


@pytest.mark.parametrize(
    ("comment", "column", "charges"),
    [
        ("", (0.4, -0.8, 0.4), True),
        ("", (0.4, -0.8, 0.44), True),
        ("element x y z[A] q[e]", (0.3, -0.8, 0.3), False),  # a comment is no rule, unless the xyz is extended
        ("", (1.2, 1.5, 1.3), False),  # radii
        ("", (1, 2, 1), False),  # labels
        ("", ("a", "b", "c"), False),
        ("", ("nan", "0.1", "-0.1"), False),
    ],
)
def test_fifth_column_of_xyz(comment, column, charges, tmp_path):
    water = "1 0 0 0.6 {}\n8 0 0 0 {}\n1 0.9 0 -0.3 {}\n".format(*column)
    (tmp_path / "w.xyz").write_text(f"3\n{comment}\n" + water.replace(" ", "\t"))
    molecule = read_molecule(tmp_path / "w.xyz")
    assert molecule.numbers.tolist() == [1, 8, 1]
    assert molecule.bonds.tolist() == [[0, 1], [1, 2]]
    assert molecule.charges is None if not charges else molecule.charges == pytest.approx(column)


def test_measured_molecules_of_shared(shared):
    folder = shared / "afm" / "experiment"
    for name, n, bonds in (("bcb", 12, 12), ("ptcda", 38, 44)):
        molecule = read_molecule(folder / f"{name}.xyz")
        assert (len(molecule), len(molecule.bonds)) == (n, bonds)
        assert abs(molecule.charges.sum()) < 1e-4
    with pytest.raises(MoleculeError, match=r"water.xyz: Atomic number 29"):
        read_molecule(folder / "water.xyz")


def test_extended_xyz_of_others(tmp_path):
    text = '2\nLattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3:initial_charges:R:1 name=co energy=-1.5\n'
    (tmp_path / "m.xyz").write_text(text + "C 0 0 0 0.25\nO 0 0 1.1 -0.25\n")
    molecule = read_molecule(tmp_path / "m.xyz")
    assert molecule.charges.tolist() == [0.25, -0.25]
    assert molecule.name == "co"
    assert molecule.bonds.tolist() == [[0, 1]]


def molfile(z: tuple[float, float], label: str, symbol: str = "O") -> str:
    atoms = [f"{x:10.4f}{0:10.4f}{h:10.4f} {s:<3} 0" + "  0" * 11 for x, h, s in ((0, z[0], "C"), (1.2, z[1], symbol))]
    counts = "  2  1  0  0  0  0  0  0  0  0999 V2000"
    return "\n".join(["co", f"  {'test':<18}{label}", "", counts, *atoms, "  2  1  3  0", "M  END"])


def test_first_molecule_of_an_sdf_with_reversed_bonds(tmp_path, capfd):
    text = f"{molfile((0, 0), '3D')}\n$$$$\n{molfile((0, 9), '3D')}\n$$$$\n"
    (tmp_path / "m.sdf").write_text(text.replace("\n", "\r\n"))
    molecule = read_molecule(tmp_path / "m.sdf")
    assert molecule.bonds.tolist() == [[0, 1]]
    assert molecule.positions.tolist() == [[0, 0, 0], [1.2, 0, 0]]  # flat, but said to be 3D
    assert molecule.name == "co"
    assert capfd.readouterr() == ("", "")


BAD_MOLECULES = {
    "missing.xyz": (None, "does not exist"),
    "m.cif": ("data_", r"\.xyz, \.sdf, \.mol"),
    "empty.xyz": ("", "is empty"),
    "text.xyz": ("hello\nthere\n", "number of atoms"),
    "cut.xyz": ("3\n\nC 0 0 0\nC 0 0 1\n", "cut off"),
    "columns.xyz": ("1\n\nC 0 0\n", "three coordinates"),
    "words.xyz": ("1\n\nC a b c\n", "must be numbers"),
    "nan.xyz": ("1\n\nC 0 0 nan\n", "finite"),
    "label.xyz": ("1\n\nQq 0 0 0\n", "'Qq' is not an element"),
    "copper.xyz": ("1\n\nCu 0 0 0\n", "Atomic number 29"),
    "number.xyz": ("1\n\n500 0 0 0\n", "number 500 is not an element"),
    "huge.xyz": (f"1\n\n{400 * '9'} 0 0 0\n", "'99999999999999999999' is not an element"),
    "extended.xyz": ("2\nProperties=species:S:1:pos:R:3\nC 0 0 0\nC 0 0\n", "damaged"),
    "binary.xyz": ("\0\ufffd\0", "number of atoms"),
    "flat.sdf": (molfile((0, 0), "2D"), "no 3D coordinates"),
    "unlabelled.mol": (molfile((0, 0), "  "), "no 3D coordinates"),
    "cut.sdf": (molfile((0, 1), "3D")[:180], "cut off"),
    "end.mol": (molfile((0, 1), "3D")[:-7], "cut off"),
    "text.mol": ("hello", "cut off"),
    "group.sdf": (molfile((0, 1), "3D", "R#"), "Atomic number 0"),
    "gold.sdf": (molfile((0, 1), "3D", "Au"), "Atomic number 79"),
}


@pytest.mark.parametrize("name", BAD_MOLECULES)
def test_bad_molecules(name, tmp_path, capfd):
    text, words = BAD_MOLECULES[name]
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(MoleculeError, match=words) as caught:
        read_molecule(tmp_path / name)
    one_sentence(caught, name)
    assert capfd.readouterr() == ("", "")


# Writing


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "full.gsf").mkdir()
    (tmp_path / "full.gsf" / "keep").write_text("mine")
    for path in ("file/a.npz", "missing/a.h5", "folder.npz", "full.gsf", "a.sxm", "a", "x" * 300 + ".npz"):
        with pytest.raises(ConfigError) as caught:
            write_scan(approach(), tmp_path / path)
        one_sentence(caught, Path(path).name)
    for path in ("file/a.xyz", "missing/a.sdf", "a.pdb"):
        with pytest.raises(ConfigError):
            write_molecule(row(2), tmp_path / path)
    assert (tmp_path / "full.gsf" / "keep").read_text() == "mine"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["file", "folder.npz", "full.gsf"]


def test_a_failed_write_keeps_what_was_there(tmp_path, monkeypatch):
    write_molecule(row(2), tmp_path / "m.xyz")
    before = (tmp_path / "m.xyz").read_bytes()

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # when the draft is written
    with pytest.raises(ConfigError, match="no space left"):
        write_molecule(row(3), tmp_path / "m.xyz")
    assert (tmp_path / "m.xyz").read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["m.xyz"]


def test_import_is_cheap():
    heavy = ("ase", "rdkit", "h5py", "torch", "nanonispy2")
    code = f"import sys, afmol.files; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
