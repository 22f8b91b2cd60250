"""Pictures: what is drawn stands where it belongs, errors are sentences, and nothing global changes."""

import json
import math
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Circle, Rectangle

from afmol import plots
from afmol.elements import BY_SYMBOL, bonds_by_distance
from afmol.errors import ConfigError
from afmol.structures import Molecule, Scan

SIZE = (12.0, 8.0)


def molecule(symbols: str = "CON", **kwargs) -> Molecule:
    """A bent chain in the image."""
    n = len(symbols)
    positions = np.array([[3.0 + 1.3 * i, 4.0 + 0.4 * (i % 2), -0.5 * i] for i in range(n)]).reshape(n, 3)
    numbers = np.array([BY_SYMBOL[s].number for s in symbols], int)
    return Molecule(positions, numbers, bonds_by_distance(positions, numbers), **kwargs)


def scan(nx: int = 48, ny: int = 32, nz: int = 4, heights: bool = False, source: str = "test.npz") -> Scan:
    data = np.random.default_rng(0).normal(size=(nx, ny, nz))
    return Scan(data, SIZE, np.arange(nz, 0, -1) * 0.1 if heights else None, source)


def axes_for(size: tuple[float, float] = SIZE):
    """Axes that fill a picture of 50 dots an A, so that a place in A is a place in pixels."""
    figure = Figure((size[0] / 2, size[1] / 2), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    return figure, axes


def rendered(figure: Figure) -> np.ndarray:
    """Colours (x, y, 3) in 0 ... 1, x to the right and y up."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[::-1, :, :3].transpose(1, 0, 2) / 255


def at(picture: np.ndarray, x: float, y: float) -> np.ndarray:
    """Colour at a place in A."""
    return picture[round(x * 50), round(y * 50)]


@settings(max_examples=15)
@given(ix=st.integers(1, 22), iy=st.integers(1, 14))  # the outermost pixels reach on to the edge
def test_a_bright_pixel_and_an_atom_on_it_are_drawn_at_its_place(ix, iy):
    data = np.zeros((24, 16, 3))
    data[ix, iy, 1] = 1.0
    image = Scan(data, SIZE)
    x, y = (ix + 0.5) * 0.5, (iy + 0.5) * 0.5
    figure, axes = axes_for()
    plots.draw_slice(axes, image, 1)
    grey = rendered(figure)[..., 0]
    bright = np.argwhere(grey > 0.9 * grey.max()).mean(0) / 50
    assert np.abs(bright - [x, y]).max() < 0.05
    assert axes.get_xlim() == (0, 12)
    assert axes.get_ylim() == (0, 8)
    assert axes.get_aspect() == 1

    oxygen = Molecule(np.array([[x, y, 0.0]]), np.array([8]), np.zeros((0, 2), int))
    plots.draw_overlay(axes, oxygen)
    centres = {patch.center for patch in axes.patches if isinstance(patch, Circle)}
    assert centres == {(x, y)}
    beside = at(rendered(figure), x, y - 0.22)  # within the circle, beside the letter
    assert np.allclose(beside, to_rgb(BY_SYMBOL["O"].colour), atol=0.02)


def test_each_slice_has_greys_of_its_own():
    data = scan().data.copy()
    data[..., 1] = 1e6 * data[..., 0] + 5e7
    data[..., 2] = 3.0
    greys = []
    for k in range(3):
        _, axes = axes_for()
        plots.draw_slice(axes, Scan(data, SIZE), k)
        greys.append(np.asarray(axes.images[0].get_array()))
    assert np.allclose(greys[0], greys[1], atol=1e-9)
    assert (greys[2] == 0.5).all()
    inside = (greys[0] > 0) & (greys[0] < 1)
    assert inside.mean() == pytest.approx(0.98, abs=0.005)  # 1st to 99th percentile


def test_opacity_and_width_follow_the_probabilities():
    found = molecule("CON", confidence=np.array([1.0, 0.5, 0.0]), bond_probabilities=np.array([0.9, 0.2]))
    assert len(found.bonds) == 2
    _, axes = axes_for()
    plots.draw_slice(axes, scan(), 0)
    plots.draw_overlay(axes, found)
    alphas = {
        patch.center[0]: patch.get_facecolor()[3]
        for patch in axes.patches
        if isinstance(patch, Circle) and patch.get_facecolor()[3]
    }
    ordered = [alphas[x] for x in sorted(alphas)]
    assert ordered[0] == 1
    assert ordered[0] > ordered[1] > ordered[2] > 0
    for lines in (c for c in axes.collections if isinstance(c, LineCollection)):
        sure, unsure = lines.get_linewidths()
        assert sure > unsure
        assert lines.get_colors()[0][3] > lines.get_colors()[1][3]


def test_letters_are_for_elements_other_than_carbon_and_hydrogen():
    _, axes = axes_for()
    plots.draw_slice(axes, scan(), 0)
    plots.draw_overlay(axes, molecule("CHNOSF"))
    assert sorted(text.get_text() for text in axes.texts) == ["F", "N", "O", "S"]


def test_the_topmost_atom_is_in_front():
    for order in ([0.0, -1.0], [-1.0, 0.0]):
        pair = Molecule(np.array([[6.0, 4.0, z] for z in order]), np.array([17, 1]), np.zeros((0, 2), int))
        figure, axes = axes_for()
        plots.draw_slice(axes, scan(), 0)
        plots.draw_overlay(axes, pair)
        top = "Cl" if order[0] == 0 else "H"
        assert np.allclose(at(rendered(figure), 6.0, 3.85), to_rgb(BY_SYMBOL[top].colour), atol=0.02)


def test_bonds_run_from_rim_to_rim_and_vanish_where_circles_overlap():
    xy, radii = np.array([[0.0, 0.0], [3.0, 4.0], [0.1, 0.0]]), np.array([1.0, 2.0, 1.0])
    lines = plots._between_rims(xy, radii, np.array([[0, 1], [0, 2]]))
    assert np.allclose(lines[0], [[0.6, 0.8], [1.8, 2.4]])
    assert np.allclose(lines[1, 0], lines[1, 1])


def test_a_missed_reference_atom_is_an_open_square_and_a_found_one_is_under_its_circle():
    true = molecule("COC")
    found = Molecule(true.positions[:2], true.numbers[:2], np.array([[0, 1]]))
    figure, axes = axes_for()
    plots.draw_slice(axes, scan(), 0)
    plots.draw_overlay(axes, found)
    before = rendered(figure)
    plots.draw_reference(axes, true)
    squares = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    middles = np.array([s.get_xy() + np.array([s.get_width(), s.get_height()]) / 2 for s in squares])
    assert np.allclose(middles, true.positions[:, :2])
    changed = np.abs(rendered(figure) - before).sum(2) > 0
    x, y, side = *true.positions[2, :2], squares[0].get_width()
    assert np.allclose(at(rendered(figure), x + side / 2, y + 0.1), to_rgb(plots.REFERENCE), atol=0.2)
    assert not changed[round(x * 50), round(y * 50)]
    for x, y in found.positions[:, :2]:
        assert not changed[round((x - 0.25) * 50) : round((x + 0.25) * 50), round(y * 50)].any()


@given(
    tilt=st.floats(0, math.pi),
    turn=st.floats(-math.pi, math.pi),
    seed=st.integers(0, 100),
)
def test_a_view_is_a_rotation(tilt, turn, seed):
    points = np.random.default_rng(seed).normal(size=(6, 3))
    seen = plots._view(points, tilt, turn)
    assert np.allclose(seen @ seen.T, points @ points.T)
    assert np.linalg.det(plots._view(np.eye(3), tilt, turn)) == pytest.approx(1)


def test_the_view_from_above_is_the_microscopes_and_tilting_lifts_what_is_higher():
    points = np.array([[1.0, 2.0, 3.0]])
    assert np.allclose(plots._view(points, 0, 0), points)
    assert np.allclose(plots._view(points, math.pi / 2, 0), [[1, 3, -2]])  # from the front: z up, y away


@pytest.mark.parametrize(("height", "front"), [(2.0, "O"), (-2.0, "C")])
def test_the_nearer_ball_hides_the_farther(height, front):
    pair = Molecule(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, height]]), np.array([6, 8]), np.zeros((0, 2), int))
    figure, axes = axes_for((8.0, 8.0))
    plots.draw_molecule(axes, pair, 0.0, 0.0)
    figure.set_facecolor("white")
    middle = rendered(figure)[200, 200]
    assert (middle[0] > 2 * middle[1]) == (front == "O")


def test_farther_balls_are_paler_and_scales_are_equal():
    row = Molecule(np.array([[-3.0, 0, 0], [0, 0, -3.0], [3.0, 0, -6.0]]), np.array([6, 6, 6]), np.zeros((0, 2), int))
    figure, axes = axes_for((12.0, 8.0))
    plots.draw_molecule(axes, row, 0.0, 0.0)
    scales = axes.transData.transform([(1, 1)]) - axes.transData.transform([(0, 0)])
    assert scales[0, 0] == pytest.approx(scales[0, 1])
    picture = rendered(figure)
    places = axes.transData.transform(row.positions[:, :2] + [0.2, -0.2]).astype(int)
    near, middle, far = (picture[x, y].mean() for x, y in places)
    assert near < middle < far < 0.9


def test_unlikely_bonds_are_no_sticks():
    likely, unlikely = (molecule("CO", bond_probabilities=np.array([p])) for p in (0.9, 0.1))
    pictures = []
    for m in (likely, unlikely):
        _, axes = axes_for()
        plots.draw_molecule(axes, m, 0.0, 0.0)
        pictures.append(len(axes.collections[0].get_paths()))
    assert pictures[0] > pictures[1]


def test_best_slice_is_the_closest_with_the_most_detail():
    x, y = np.meshgrid(np.arange(60) * 0.2, np.arange(40) * 0.2, indexing="ij")
    atoms = np.cos(2 * np.pi * x / 2.4) * np.cos(2 * np.pi * y / 2.4)
    cloud = 20 * np.exp(-((x - 6) ** 2 + (y - 4) ** 2) / 8)
    stack = np.stack([cloud, cloud + atoms, cloud + 20 * atoms, 1.05 * (cloud + 20 * atoms), 9 * cloud], axis=-1)
    assert plots.best_slice(Scan(stack, SIZE)) == 3
    assert plots.best_slice(Scan(np.zeros((5, 5, 4)), SIZE)) == 3
    assert plots.best_slice(Scan(np.zeros((1, 1, 1)), SIZE)) == 0


@given(n=st.integers(1, 200), most=st.integers(1, 12))
def test_slices_are_chosen_evenly(n, most):
    chosen = plots._evenly(n, most)
    assert chosen[0] == 0
    assert len(chosen) == min(n, most)
    if most > 1:
        assert chosen[-1] == n - 1
        assert np.ptp(np.diff(chosen)) <= 1 if len(chosen) > 2 else True


@given(st.floats(0.01, 1e5))
def test_scale_bars_are_round_and_fit(most):
    length = plots._round_length(most)
    assert most / 2.5 - 1e-9 < length <= most * (1 + 1e-6)
    assert f"{length:.6e}"[0] in "125"


def test_slices_are_named_by_height_where_known():
    known, unknown = scan(heights=True), scan()
    assert [plots._depth_label(known, k) for k in range(4)] == ["+0.30 Å, far", "+0.20 Å", "+0.10 Å", "close"]
    names = [plots._depth_label(unknown, k) for k in range(4)]
    assert names == ["slice 1, far", "slice 2", "slice 3", "slice 4, close"]


def pixels(path) -> np.ndarray:
    picture = imread(path)[..., :3]
    assert min(picture.shape[:2]) > 100
    assert np.ptp(picture) > 0.5  # not blank
    return picture


def test_predictions_are_written_and_differ(tmp_path):
    kinds = {
        "acid": molecule("CON", confidence=np.full(3, 0.9)),
        "halide": molecule("CFN", confidence=np.full(3, 0.9)),
        "none": molecule(""),
    }
    shown = {}
    for name, found in kinds.items():
        plots.prediction_picture(scan(heights=True), found, tmp_path / f"{name}.png")
        shown[name] = pixels(tmp_path / f"{name}.png")
    plots.prediction_picture(scan(heights=True), kinds["acid"], tmp_path / "again.png")
    assert np.array_equal(shown["acid"], pixels(tmp_path / "again.png"))
    assert shown["acid"].shape == shown["halide"].shape
    assert (shown["acid"] != shown["halide"]).any(axis=2).sum() > 100
    plots.prediction_picture(scan(heights=True), kinds["acid"], tmp_path / "missed.png", molecule("CONC"))
    assert (shown["acid"] != pixels(tmp_path / "missed.png")).any(axis=2).sum() > 100


def words(monkeypatch, draw) -> list[str]:
    """All texts of the picture that `draw` would save."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    draw()
    figure = figures[0]
    return [text.get_text() for part in (figure, *figure.axes) for text in part.texts]


def test_titles_count_atoms_and_likely_bonds(monkeypatch):
    found = molecule("CON", bond_probabilities=np.array([0.9, 0.2]))
    said = words(monkeypatch, lambda: plots.prediction_picture(scan(), found, "x.png", molecule("CONC")))
    assert {"test.npz", "3 atoms, 1 bond", "C 1", "O 1", "N 1"} <= set(said)
    assert any("4 reference atoms" in text for text in said)


def test_an_empty_prediction_says_so(monkeypatch):
    assert "no atom found" in words(monkeypatch, lambda: plots.prediction_picture(scan(), molecule(""), "x.png"))


@pytest.mark.parametrize(
    "odd",
    [
        Scan(np.zeros((3, 3, 1)), (5.0, 5.0)),
        Scan(np.random.default_rng(0).normal(size=(8, 90, 2)), (1.0, 60.0), None, "tall " * 60),
        Scan(np.random.default_rng(0).normal(size=(90, 8, 30)) * 1e30, (300.0, 10.0), None, "分子 $x^$\n\udc80.npz"),
    ],
    ids=["flat", "tall", "wide"],
)
def test_odd_stacks_are_drawn(tmp_path, odd):
    plots.stack_strip(odd, tmp_path / "strip.png")
    plots.prediction_picture(odd, molecule("C"), tmp_path / "prediction.PNG", molecule("CC"))
    pixels(tmp_path / "strip.png")
    assert imread(tmp_path / "prediction.PNG", format="png").size


def test_molecules_and_strips_are_written(tmp_path):
    plots.molecule_picture(molecule("CON"), tmp_path / "a.png")
    plots.molecule_picture(molecule("CNO"), tmp_path / "b.png")
    plots.molecule_picture(molecule(""), tmp_path / "none.png")
    plots.stack_strip(scan(nz=23), tmp_path / "strip.png")
    a, b = pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png")
    assert (a != b).any()
    assert imread(tmp_path / "none.png").size
    pixels(tmp_path / "strip.png")


# Training curves


def logged(tmp_path, *rows, end: str = "\n"):
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + end)
    return path


def test_training_curves(tmp_path, monkeypatch):
    rows = [
        {"step": s, "heat": 1 / s, "z": 0.0 if s == 50 else 0.2, "samples_per_second": 60.0} for s in (50, 100, 150)
    ]
    rows[1] |= {"validation_recall": 0.5, "validation_xy_error": 0.1, "validation_bond_f1": None}
    path = logged(tmp_path, *rows)
    plots.loss_plot(path, tmp_path / "loss.png")
    pixels(tmp_path / "loss.png")
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    plots.loss_plot(path, "x.png")
    left, right, errors = figures[0].axes
    heat = next(line for line in left.lines if line.get_label() == "_")
    assert np.allclose(heat.get_xydata(), [[s, 1 / s] for s in (50, 100, 150)])
    assert left.get_yscale() == "log"
    assert [line.get_label() for line in right.lines] == ["recall"]
    assert [line.get_label() for line in errors.lines] == ["xy error (Å)"]


@pytest.mark.parametrize("row", [{"step": 50, "heat": math.nan}, {"step": 0}, {"step": 1, "validation_recall": 0.5}])
def test_hardly_anything_logged_is_still_a_picture(tmp_path, row):
    plots.loss_plot(logged(tmp_path, row), tmp_path / "loss.png")
    pixels(tmp_path / "loss.png")


def test_metrics_of_a_resumed_run_that_goes_on(tmp_path):
    rows = [{"step": 50, "heat": 1.0}, {"step": 100, "heat": 2.0}, {"step": 50, "heat": 3.0}]
    path = logged(tmp_path, *rows, end='\n{"step": 150, "he')
    assert plots.read_metrics(path) == [{"step": 50, "heat": 3.0}, {"step": 100, "heat": 2.0}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        (b"", "no step yet"),
        (b"\n\n", "no step yet"),
        (b'{"step": 1, "heat": 2}\n{"step": \n', "line 2 is damaged"),
        (b"[1, 2]\n", "line 1 is damaged"),
        (b'{"heat": 2}\n', "line 1 is damaged"),
        (b'{"step": NaN}\n', "line 1 is damaged"),
        (b'{"step": "1"}\n', "line 1 is damaged"),
        (b"\x89PNG\xff\n", "not text"),
    ],
)
def test_bad_metrics_are_one_sentence(tmp_path, content, says):
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=says) as error:
        plots.loss_plot(path, tmp_path / "loss.png")
    assert "metrics.jsonl" in str(error.value)
    assert not (tmp_path / "loss.png").exists()


# Confusions


@pytest.mark.parametrize("n", [5, 6])
def test_confusions_show_counts_and_shares_of_rows(tmp_path, monkeypatch, n):
    counts = np.arange(n * n).reshape(n, n) * 100
    counts[2] = 0
    counts[5:, 5:] = 0
    plots.confusion_picture(counts, tmp_path / "confusion.png")
    pixels(tmp_path / "confusion.png")
    said = words(monkeypatch, lambda: plots.confusion_picture(counts, "x.png"))
    assert {f"{counts[1, 3]:,}", f"{100 * counts[1, 3] / counts[1].sum():.1f} %", "–"} <= set(said)
    assert said.count("–") == n


@pytest.mark.parametrize("counts", [np.zeros((4, 4), int), np.full((5, 5), -1)])
def test_other_confusions_are_errors(tmp_path, counts):
    with pytest.raises(ConfigError, match="5 x 5 or 6 x 6"):
        plots.confusion_picture(counts, tmp_path / "confusion.png")


# Files and global state


@pytest.mark.parametrize("place", ["no/such/folder.png", "file/in.png", "folder.png"])
def test_places_that_cannot_be_written_are_one_sentence(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ConfigError, match=r"cannot be written .*; choose another name or folder\.") as error:
        plots.molecule_picture(molecule("C"), tmp_path / place)
    assert place in str(error.value)


def test_suffixes(tmp_path):
    for suffix, start in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")):
        plots.confusion_picture(np.eye(5, dtype=int), tmp_path / f"c{suffix}")
        assert (tmp_path / f"c{suffix}").read_bytes().startswith(start)
    with pytest.raises(ConfigError, match=r"choose a name that ends in \.png"):
        plots.confusion_picture(np.eye(5, dtype=int), tmp_path / "c.xyz")


def test_nothing_global_changes(tmp_path):
    before = dict(matplotlib.rcParams)
    plots.prediction_picture(scan(), molecule(), tmp_path / "p.png")
    assert dict(matplotlib.rcParams) == before
    code = (
        "import sys, matplotlib; before = dict(matplotlib.rcParams); import afmol.plots; "
        "print('matplotlib.pyplot' in sys.modules, dict(matplotlib.rcParams) == before)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True"]
