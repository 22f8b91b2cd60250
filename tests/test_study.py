"""A study from its file to its page: equal data, restartable, figures that are those of the runs."""

import csv
import json
import logging
import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from afmol.cli import main
from afmol.config import config_from_toml
from afmol.data.molecules import load_molecules, pack_molecules
from afmol.data.samples import DataConfig, make_sample
from afmol.elements import bonds_by_distance
from afmol.errors import ConfigError, MoleculeError
from afmol.metrics import Steps, count_steps, step_summary
from afmol.structures import Molecule
from afmol.study import StudyConfig, run_study, study_tasks, write_report
from afmol.study.report import mean_and_spread
from afmol.study.run import Variant, run_task

RUN = """
batch_size = 2
warm_up = 1
accelerator = "cpu"
precision = "32-true"
workers = 0
validation_samples = 2
[data]
shard_size = 2
windows = [[32, 32]]
[model]
kind = "asd"
pixel = 0.25
channels = [2, 2, 2, 2]
"""
STUDY = """
title = "a < b"
molecules = "{set}"
validation = "{set}"
test = "{set}"
steps = 2
test_samples = 3
seeds = [5]
[[variants]]
name = "plain"
config = "plain.toml"
[[variants]]
name = "soap"
config = "soap.toml"
about = "with SOAP"
steps = 1
start = ""
[[variants]]
name = "bonds"
config = "bonds.toml"
after = "plain"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    path = tmp_path_factory.mktemp("study")
    angle = np.pi / 3 * np.arange(6)
    ring = np.column_stack([np.cos(angle), np.sin(angle), 0 * angle])
    positions, numbers = np.concatenate([1.39 * ring, 2.47 * ring]), np.repeat([6, 1], 6)
    pack_molecules([Molecule(positions, numbers, bonds_by_distance(positions, numbers), np.zeros(12))], path / "s.npz")
    (path / "plain.toml").write_text(RUN)
    (path / "soap.toml").write_text(RUN + 'soap = "report"\n')
    (path / "bonds.toml").write_text(RUN + 'train = "bonds"\n')
    (path / "study.toml").write_text(STUDY.format(set=path / "s.npz"))
    return path


def test_a_study_goes_on_where_it_was_and_ends_in_a_page(folder, capsys):
    study, out = config_from_toml(StudyConfig, folder / "study.toml"), folder / "out"
    tasks = study_tasks(replace(study, start="a.safetensors", stored="set{seed}"), folder, out)
    assert [(t.train.steps, Path(t.train.start).name) for t in tasks] == [
        *((2, "a.safetensors"), (1, ""), (2, "plain.safetensors"))
    ]
    assert {(t.train.molecules, t.train.stored) for t in tasks} == {("", "set5")}
    runs = run_study(study, folder, out)
    first, done = next(runs)
    assert (first.name, first.seed, done) == ("plain", 5, "done")
    runs.close()  # stopped
    main(["study", str(folder / "study.toml"), "-o", str(out)])
    said = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[-1] for line in said[:-1]] == ["kept", "done", "done"]
    assert {p.name for p in out.iterdir() if p.is_file()} == {
        *("table.csv", "table.md", "curves.png", "report.html"),
        *(f"confusions_{name}.png" for name in ("plain", "soap", "bonds")),
    }
    assert (out / "soap_5" / "shift.png").is_file()
    page = (out / "report.html").read_text()
    assert "a &lt; b" in page
    assert "with SOAP" in page
    assert 'src="soap_5/shift.png"' in page
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    figures = {(row["variant"], row["figure"]): float(row["mean"]) for row in rows}
    assert figures["soap", "parameters"] > figures["plain", "parameters"]
    parts = [figures["plain", f"loss: {part}"] for part in ("position", "class", "bond")]
    assert figures["plain", "loss: total"] == pytest.approx(sum(parts), rel=1e-5)
    assert 0 < min(parts) < 10
    again = [done for _, done in run_study(study, folder, out)]
    assert again == ["kept"] * 3
    result = json.loads((out / "plain_5" / "result.json").read_text())
    del result["config"]["average"]  # a field that is newer than the result has its default
    (out / "plain_5" / "result.json").write_text(json.dumps(result))
    assert [done for _, done in run_study(study, folder, out)] == ["kept"] * 3
    (folder / "plain.toml").write_text(RUN.replace("warm_up = 1", "warm_up = 0"))
    with pytest.raises(ConfigError, match="another study"):
        list(run_study(study, folder, out))
    (folder / "plain.toml").write_text(RUN)
    with pytest.raises(ConfigError, match="holds no result"):
        write_report(study, study_tasks(study, folder, folder / "elsewhere"), folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("plain.toml", "none.toml"), "none.toml cannot be read"),
        (('after = "plain"', 'after = "last"'), "does not stand before it"),
        (('name = "soap"', 'name = "plain"'), "different names"),
        (("steps = 2", "steps = 0"), "at least 1"),
    ],
)
def test_studies_that_cannot_be(folder, tmp_path, capsys, change, words):
    (folder / "wrong.toml").write_text((folder / "study.toml").read_text().replace(*change))
    with pytest.raises(SystemExit):
        main(["study", str(folder / "wrong.toml"), "-o", str(tmp_path)])
    assert words in capsys.readouterr().err


def test_what_another_starts_from_is_done_before_it(folder, tmp_path, monkeypatch):
    """However long the chain, and whoever works."""
    study = config_from_toml(StudyConfig, folder / "study.toml")
    study = replace(study, variants=(*study.variants, Variant("last", "bonds.toml", after="bonds")))
    waves = []
    monkeypatch.setattr("afmol.study.run.results", lambda _, tasks, *__: waves.append([t.name for t in tasks]) or [])
    list(run_study(study, folder, tmp_path / "out"))
    assert waves == [["plain", "soap"], ["bonds"], ["last"]]


def test_a_set_that_is_not_there_is_told_before_the_training(folder, tmp_path, monkeypatch):
    study = config_from_toml(StudyConfig, folder / "study.toml")
    monkeypatch.setattr("afmol.study.run.train", lambda *_: pytest.fail("the work has begun"))
    for field in ("test", "validation", "molecules"):
        with pytest.raises(MoleculeError, match=r"nowhere\.npz"):
            list(run_study(replace(study, **{field: "nowhere.npz"}), folder, tmp_path / "out"))


def test_a_run_in_a_process_that_may_have_none_of_its_own(folder, tmp_path, monkeypatch):
    """As in a worker of Dask; there graphs are built on true positions."""
    study = config_from_toml(StudyConfig, folder / "study.toml")
    study = replace(study, variants=study.variants[:1], positions="given")
    (folder / "plain.toml").write_text(RUN.replace("workers = 0", "workers = 1"))
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    run_task(study_tasks(study, folder, tmp_path)[0])
    (folder / "plain.toml").write_text(RUN)
    whole = json.loads((tmp_path / "plain_5" / "result.json").read_text())["whole"]
    assert (whole["precision"], whole["recall"]) == (1, 1)
    assert whole["matched_atoms"] > 5


def test_a_shift_moves_the_image_over_the_same_scene(folder):
    """2 A are 8 pixels: without noise what both images show is the same, and the labels move with it."""
    still = DataConfig(nominal_share=1.0, windows=((64, 64),), noise=0.0, drift=0.0, line_noise=0.0, background=0.0)
    config = DataConfig(**(vars(still) | {"cut_outs": 0, "compression": 0.0}))
    molecules = load_molecules(folder / "s.npz")
    (scan, atoms), (moved, left) = (make_sample(molecules, config, 4, (by, 0.0)) for by in (0.0, 2.0))
    np.testing.assert_allclose(moved.data[:-8], scan.data[8:], rtol=1e-4, atol=1e-4 * np.ptp(scan.data))
    both = np.intersect1d(np.round(left.positions[:, 1], 6), np.round(atoms.positions[:, 1], 6))
    assert len(both) >= 6
    for y in both:
        a, b = (m.positions[np.isclose(m.positions[:, 1], y, atol=1e-6), 0] for m in (atoms, left))
        assert np.isclose(a[:, None] - 2.0, b[None], atol=1e-6).any()


def test_single_steps_by_hand():
    """Two steps: a nitrogen taken for carbon, bonded to the first of two atoms; a hydrogen without any atom there."""
    steps = count_steps(
        np.array([2, 0]),
        np.array([[0.1, 0.5, 0.4, 0, 0], [0.9, 0.1, 0, 0, 0]]),
        np.array([True, False]),
        np.array([0.5, 0.49]),
        np.array([False, False]),
    )
    figures = step_summary(steps + Steps())
    assert figures["steps"] == 2
    assert steps.classes[2, 1] == steps.classes[0, 0] == 1
    assert figures["class_precision"] == [1.0, 0.0, None, None, None]
    assert figures["class_recall"] == [1.0, None, 0.0, None, None]
    assert (figures["bond_precision"], figures["bond_recall"]) == (1.0, 1.0), "a half is enough"
    assert (figures["rule_bond_precision"], figures["rule_bond_recall"]) == (None, 0.0)
    assert step_summary(Steps())["class_accuracy"] is None


def test_mean_and_spread():
    assert mean_and_spread([1.0, None, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert mean_and_spread([4.0]) == (4.0, None)
    assert mean_and_spread([None]) == (None, None)
