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
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Circle, Rectangle

from afmol import plots
from afmol.elements import BY_SYMBOL, bonds_by_distance
from afmol.errors import ConfigError
from afmol.plots import molecule as drawing
from afmol.plots.stack import best_slice, depth_label, draw_slice
from afmol.plots.training import read_metrics
from afmol.structures import Molecule, Scan

SIZE = (12.0, 8.0)


def chain(symbols: str = "CON", **kwargs) -> Molecule:
    """A bent chain in the image."""
    n = len(symbols)
    positions = np.array([[3.0 + 1.3 * i, 4.0 + 0.4 * (i % 2), -0.5 * i] for i in range(n)]).reshape(n, 3)
    numbers = np.array([BY_SYMBOL[s].number for s in symbols], int)
    return Molecule(positions, numbers, bonds_by_distance(positions, numbers), **kwargs)


def scan(nz: int = 4, heights: bool = False) -> Scan:
    data = np.random.default_rng(0).normal(size=(48, 32, nz))
    return Scan(data, SIZE, np.arange(nz, 0, -1) * 0.1 if heights else None, "test.npz")


def sliced():
    """Axes that fill a picture of 50 dots an A, so that a place in A is a place in pixels, with a slice in them."""
    figure = Figure((SIZE[0] / 2, SIZE[1] / 2), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    draw_slice(axes, scan(), 0)
    return figure, axes


def rendered(figure: Figure) -> np.ndarray:
    """Colours (x, y, 3) in 0 ... 1, x to the right and y up."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[::-1, :, :3].transpose(1, 0, 2) / 255


def colour_at(figure: Figure, x: float, y: float) -> np.ndarray:
    return rendered(figure)[round(x * 50), round(y * 50)]


def pixels(path) -> np.ndarray:
    picture = imread(path)[..., :3]
    assert np.ptp(picture) > 0.5  # not blank
    return picture


@settings(max_examples=10)
@given(ix=st.integers(1, 22), iy=st.integers(1, 14))  # the outermost pixels reach on to the edge
def test_a_bright_pixel_and_an_atom_on_it_are_drawn_at_its_place(ix, iy):
    data = np.zeros((24, 16, 3))
    data[ix, iy, 1] = 1.0
    x, y = (ix + 0.5) * 0.5, (iy + 0.5) * 0.5
    figure, axes = sliced()
    draw_slice(axes, Scan(data, SIZE), 1)
    grey = rendered(figure)[..., 0]
    assert np.abs(np.argwhere(grey > 0.9 * grey.max()).mean(0) / 50 - [x, y]).max() < 0.05
    assert (*axes.get_xlim(), *axes.get_ylim(), axes.get_aspect()) == (0, 12, 0, 8, 1)

    drawing.draw_overlay(axes, Molecule(np.array([[x, y, 0.0]]), np.array([8]), np.zeros((0, 2), int)))
    assert {patch.center for patch in axes.patches if isinstance(patch, Circle)} == {(x, y)}
    beside_the_letter = colour_at(figure, x, y - 0.22)
    assert np.allclose(beside_the_letter, to_rgb(BY_SYMBOL["O"].colour), atol=0.02)


def test_the_topmost_atom_is_in_front():
    for heights, top in (([0.0, -1.0], "Cl"), ([-1.0, 0.0], "H")):
        pair = Molecule(np.array([[6.0, 4.0, z] for z in heights]), np.array([17, 1]), np.zeros((0, 2), int))
        figure, axes = sliced()
        drawing.draw_overlay(axes, pair)
        assert np.allclose(colour_at(figure, 6.0, 3.85), to_rgb(BY_SYMBOL[top].colour), atol=0.02)


def test_opacity_follows_the_probabilities():
    found = chain("CON", confidence=np.array([1.0, 0.5, 0.0]), bond_probabilities=np.array([0.9, 0.2]))
    _, axes = sliced()
    drawing.draw_overlay(axes, found)
    faces = [to_rgba(patch.get_facecolor())[3] for patch in axes.patches]
    assert [alpha for alpha in faces if alpha] == pytest.approx([0.15, 0.575, 1])  # from the lowest atom up
    for lines in axes.collections:
        sure, unsure = np.asarray(lines.get_edgecolor())
        assert sure[3] > unsure[3] > 0


def test_a_missed_reference_atom_is_an_open_square_and_a_found_one_is_under_its_circle():
    true = chain("COC")
    found = Molecule(true.positions[:2], true.numbers[:2], np.array([[0, 1]]))
    figure, axes = sliced()
    drawing.draw_overlay(axes, found)
    before = rendered(figure)
    drawing.draw_reference(axes, true)
    squares = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert np.allclose([square.get_center() for square in squares], true.positions[:, :2])
    changed = np.abs(rendered(figure) - before).sum(2) > 0
    x, y, side = *true.positions[2, :2], squares[0].get_width()
    assert np.allclose(colour_at(figure, x + side / 2, y + 0.1), to_rgb(drawing.REFERENCE), atol=0.2)
    assert not changed[round(x * 50), round(y * 50)]
    for x, y in found.positions[:, :2]:
        assert not changed[round((x - 0.25) * 50) : round((x + 0.25) * 50), round(y * 50)].any()


@settings(max_examples=30)
@given(tilt=st.floats(0, math.pi), turn=st.floats(-math.pi, math.pi))
def test_a_view_is_a_rotation_and_tilting_lifts_what_is_higher(tilt, turn):
    matrix = drawing.view(np.eye(3), tilt, turn)
    assert np.allclose(matrix @ matrix.T, np.eye(3))
    assert np.linalg.det(matrix) == pytest.approx(1)
    point = np.array([[1.0, 2.0, 3.0]])
    assert np.allclose(drawing.view(point, 0, 0), point)  # from above, as the microscope sees it
    assert np.allclose(drawing.view(point, math.pi / 2, 0), [[1, 3, -2]])  # from the front: z up, y away
    assert np.allclose(drawing.view(point, 0, math.pi / 2), [[-2, 1, 3]])  # counterclockwise


@pytest.mark.parametrize(("height", "front"), [(2.0, "O"), (-2.0, "C")])
def test_the_nearer_ball_hides_the_farther(height, front):
    pair = Molecule(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, height]]), np.array([6, 8]), np.zeros((0, 2), int))
    figure = Figure((4.0, 4.0), dpi=100)
    drawing.draw_molecule(figure.add_axes((0, 0, 1, 1)), pair, 0.0, 0.0)
    red, green, _ = rendered(figure)[200, 200]
    assert (red > 2 * green) == (front == "O")


def test_unlikely_bonds_are_no_sticks():
    drawn = []
    for p in (0.9, 0.1):
        axes = Figure().add_subplot()
        drawing.draw_molecule(axes, chain("CO", bond_probabilities=np.array([p])), 0.0, 0.0)
        drawn.append(len(axes.collections[0].get_paths()))
    assert drawn[0] > drawn[1]


def test_best_slice_is_the_closest_with_the_most_detail():
    x, y = np.meshgrid(np.arange(60) * 0.2, np.arange(40) * 0.2, indexing="ij")
    atoms = np.cos(2 * np.pi * x / 2.4) * np.cos(2 * np.pi * y / 2.4)
    cloud = 20 * np.exp(-((x - 6) ** 2 + (y - 4) ** 2) / 8)
    stack = np.stack([cloud, cloud + atoms, cloud + 20 * atoms, 1.05 * (cloud + 20 * atoms), 9 * cloud], axis=-1)
    assert best_slice(Scan(stack, SIZE)) == 3
    assert best_slice(Scan(np.zeros((5, 5, 4)), SIZE)) == 3


def test_slices_are_named_by_height_where_known():
    assert [depth_label(scan(3, heights=True), k) for k in range(3)] == ["+0.20 Å, far", "+0.10 Å", "+0.00 Å, close"]
    assert [depth_label(scan(3), k) for k in range(3)] == ["slice 1, far", "slice 2", "slice 3, close"]


def test_predictions_are_written_and_differ(tmp_path):
    pictures = []
    for k, (found, true) in enumerate([("CON", None), ("CFN", None), ("CON", chain("CONC"))]):
        plots.prediction_picture(scan(heights=True), chain(found), tmp_path / f"{k}.png", true)
        pictures.append(pixels(tmp_path / f"{k}.png"))
    assert len({picture.shape for picture in pictures}) == 1
    for k in (1, 2):
        assert (pictures[0] != pictures[k]).any(axis=2).sum() > 100


@pytest.mark.parametrize("size", [(1.0, 60.0), (300.0, 10.0), (5.0, 5.0)])
def test_odd_stacks_and_empty_predictions_are_drawn(tmp_path, size):
    odd = Scan(np.zeros((3, 3, 1)), size, None, "$x^ \udc80.npz")
    plots.stack_strip(odd, tmp_path / "strip.png")
    plots.prediction_picture(odd, chain(""), tmp_path / "prediction.PNG", chain("CC"))
    plots.molecule_picture(chain("C"), tmp_path / "molecule.svg")
    pixels(tmp_path / "strip.png")
    assert (tmp_path / "prediction.PNG").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "molecule.svg").read_bytes().startswith(b"<?xml")


def test_training_curves_and_confusions_are_written(tmp_path):
    rows = [
        {"step": 50, "loss": 1.5, "loss_heat": 1.0, "loss_z": 0.0},
        {"step": 100, "loss_heat": math.nan, "validation_xy_error": 0.1, "validation_loss_heat": 0.5},
    ]

    def picture(rows):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        plots.loss_plot(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
        return pixels(tmp_path / "loss.png")

    first, both = picture(rows[:1]), picture(rows)
    assert first.shape != both.shape or (first != both).any()
    beside = {"waiting": 0.3, "samples_per_second": 50.0, "learning_rate": 1e-3}
    assert (picture([row | beside for row in rows]) == both).all(), "these are no losses"
    for k, counts in enumerate((np.arange(36).reshape(6, 6), np.zeros((6, 6), int))):
        plots.confusion_picture(counts, tmp_path / f"{k}.png")
    assert (pixels(tmp_path / "0.png") != pixels(tmp_path / "1.png")).any()


def test_metrics_of_a_resumed_run_that_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 50, "z": 1}\n{"step": 100, "z": 2, "f1": null}\n{"step": 50, "z": 3}\n{"step": 150, "z')
    assert read_metrics(path) == [{"step": 50, "z": 3}, {"step": 100, "z": 2}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        (b"\x89PNG\xff\n", "cannot be read .not text"),
        (b"", "no step yet"),
        (b'{"step": 1, "heat": 2}\n{"step": \n', "line 2 is damaged"),
        (b"[1, 2]\n", "line 1 is damaged"),
        (b'{"step": "1"}\n', "line 1 is damaged"),
    ],
)
def test_bad_metrics_are_one_sentence(tmp_path, content, says):
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"metrics\.jsonl.* {says}"):
        plots.loss_plot(path, tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


@pytest.mark.parametrize(
    ("place", "says"),
    [("no/such/folder.png", "cannot be written"), ("folder.png", "cannot be written"), ("c.xyz", r"ends in \.png")],
)
def test_places_that_cannot_be_written_are_one_sentence(tmp_path, place, says):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ConfigError, match=f"{place}.*{says}"):
        plots.molecule_picture(chain("C"), tmp_path / place)


def test_nothing_global_changes_and_nothing_heavy_is_imported(tmp_path):
    before = dict(matplotlib.rcParams)
    plots.prediction_picture(scan(), chain(), tmp_path / "p.png")
    assert dict(matplotlib.rcParams) == before
    code = (
        "import sys, matplotlib; before = dict(matplotlib.rcParams); import afmol.plots; "
        "print(*{'matplotlib.pyplot', 'torch', 'numba'} & sys.modules.keys(), dict(matplotlib.rcParams) == before)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True"]


def test_warnings_are_in_the_picture(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(drawing, "save", lambda figure, path: drawn.append(figure))
    drawing.prediction_picture(scan(), chain("CON", warnings=("it is made up.",)), tmp_path / "p.png")
    assert "WARNING: it is made up." in [text.get_text() for text in drawn[0].texts]


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """Drawing that fails half way leaves the picture of before."""
    path = tmp_path / "p.png"
    plots.prediction_picture(scan(), chain(), path)
    before = path.read_bytes()

    def half(self, file, **how):
        file.write(b"half a picture")
        raise MemoryError

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(MemoryError):
        plots.prediction_picture(scan(), chain("CO"), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]
