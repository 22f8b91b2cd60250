"""The command line as a person meets it: results where they should be, one sentence and exit code 2 for mistakes."""

import json
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest

import afmol
from afmol.checkpoint import read_tensors, write_tensors
from afmol.cli import COMMANDS as COMMANDS_OF_MAIN
from afmol.cli import DATASET, main
from afmol.data.molecules import pack_molecules
from afmol.errors import ScanError
from afmol.files import read_scan, write_molecule, write_scan
from afmol.structures import Molecule, Scan
from strategies import COMMENT, both, flat_ring, gsf, members, refused, sxm, theirs, write, xyz

COMMANDS = (*COMMANDS_OF_MAIN, "train")


def save(path, data=None, **more):
    data = np.random.default_rng(0).random((40, 40, 5)) if data is None else data
    np.savez(path, data=data, **({"lengthX": 10.0, "lengthY": 10.0} | more))
    return path


def noise(*shape):
    return np.random.default_rng(0).random(shape)


BAD_ARRAYS = {
    "NaN": (np.where(np.arange(5) == 2, np.nan, noise(40, 40, 5)), {}, "NaN"),
    "infinite": (np.where(np.arange(5) == 2, np.inf, noise(40, 40, 5)), {}, "infinite"),
    "constant": (np.ones((40, 40, 5)), {}, "constant"),
    "one slice": (noise(40, 40, 1), {}, "1 slice"),
    "flat array": (noise(40, 40), {}, "three"),
    "too small": (noise(40, 40, 5), {"lengthX": 3.0}, "at least 4 A"),
    "pixels of 0.001 A": (noise(4000, 8, 3), {"lengthX": 4.0, "lengthY": 4.0}, "0.001"),
    "pixels of 10 A": (noise(10, 10, 5), {"lengthX": 100.0, "lengthY": 100.0}, "10 x 10 A"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_stacks(case, tmp_path, capsys, weights):
    data, more, word = BAD_ARRAYS[case]
    path = save(tmp_path / "s.npz", data, **more)
    refused(capsys, ["predict", path, "-o", tmp_path / "out", "--model", weights], word)


def test_missing_file(tmp_path, capsys, weights):
    refused(capsys, ["predict", tmp_path / "none.npz", "-o", tmp_path, "--model", weights], "none.npz")


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".gsf", ".sxm", ".xyz", ""])
def test_empty_file_and_wrong_suffix(suffix, tmp_path, capsys, weights):
    path = tmp_path / f"empty{suffix}"
    path.write_bytes(b"")
    refused(capsys, ["predict", path, "-o", tmp_path / "out", "--model", weights], path.name)


@pytest.mark.parametrize("kind", ["npz", "h5", "sxm"])
def test_truncated_file(kind, tmp_path, capsys, weights):
    if kind == "sxm":
        folder = tmp_path / "stack"
        folder.mkdir()
        for k in range(3):
            (folder / f"{k}.sxm").write_bytes(sxm({"Frequency_Shift": both(noise(40, 40))}, z=-k * 1e-11))
        target, whole = folder, folder / "1.sxm"
    elif kind == "npz":
        target = whole = save(tmp_path / "s.npz")
    else:
        target = whole = tmp_path / "s.h5"
        with h5py.File(whole, "w") as file:
            file["data"], file["lengthX"], file["lengthY"] = noise(40, 40, 5), 10.0, 10.0
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    refused(capsys, ["predict", target, "-o", tmp_path / "out", "--model", weights], whole.name)


def test_unknown_size_is_asked_for(tmp_path, capsys, weights):
    path = tmp_path / "s.npz"
    np.savez(path, data=noise(40, 40, 5))
    refused(capsys, ["predict", path, "-o", tmp_path / "out", "--model", weights], "--size")
    main([*("predict", str(path), "-o", str(tmp_path / "out"), "--model", str(weights)), "--size", "10", "12"])
    assert json.loads((tmp_path / "out" / "s.json").read_text())["scan"]["size"] == [10.0, 12.0]


def test_a_single_sxm_says_what_is_missing(tmp_path, capsys, weights):
    (tmp_path / "one.sxm").write_bytes(sxm({"Frequency_Shift": both(noise(40, 40))}))
    refused(capsys, ["predict", tmp_path / "one.sxm", "-o", tmp_path / "out", "--model", weights], "other heights")


def test_slices_of_different_sizes(tmp_path, capsys, weights):
    folder = tmp_path / "stack"
    folder.mkdir()
    for k in range(3):
        image = noise(8 + (k == 1), 8)
        (folder / f"{k}.gsf").write_bytes(gsf(image, XReal=1e-9, YReal=1e-9, XYUnits="m"))
    refused(capsys, ["predict", folder, "-o", tmp_path / "o", "--model", weights, "--heights", 3, 2, 1], "1.gsf")


def test_unwritable_output_folder(tmp_path, capsys, weights):
    (tmp_path / "file").write_text("")
    path = save(tmp_path / "s.npz")
    refused(capsys, ["predict", path, "-o", tmp_path / "file", "--model", weights], "file")


def test_weights_that_are_no_weights(tmp_path, capsys, weights):
    path = save(tmp_path / "s.npz")
    (tmp_path / "text.safetensors").write_text("not weights at all")
    tensors, metadata = read_tensors(weights)
    write_tensors(tmp_path / "newer.safetensors", tensors, metadata | {"version": "99"})
    for model, word in (
        ("text.safetensors", "not a weight file"),
        ("newer.safetensors", "newer"),
        ("none", "no weight"),
    ):
        name = tmp_path / model if "." in model else tmp_path / f"{model}.safetensors"
        refused(capsys, ["predict", path, "-o", tmp_path / "out", "--model", name], word)
    refused(capsys, ["predict", path, "-o", tmp_path / "out", "--model", "nonesuch"], "nonesuch", "shipped")


def test_no_atom_found_is_a_result(tmp_path, capsys, weights):
    path = save(tmp_path / "s.npz")
    main(["predict", str(path), "-o", str(tmp_path / "out"), "--model", str(weights)])
    assert "no atom found" in capsys.readouterr().out
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".json", ".xyz", ".sdf", ".png"}


def test_one_bad_stack_among_good_ones(tmp_path, capsys, weights):
    good, bad = save(tmp_path / "good.npz"), save(tmp_path / "bad.npz", np.ones((40, 40, 5)))
    (tmp_path / "other").mkdir()
    same = save(tmp_path / "other" / "good.npz")
    with pytest.raises(SystemExit) as stop:
        main(["predict", *map(str, (bad, good, same)), "-o", str(tmp_path / "out"), "--model", str(weights)])
    assert stop.value.code == 2
    assert "constant" in capsys.readouterr().err
    sources = [json.loads(p.read_text())["scan"]["source"] for p in (tmp_path / "out").glob("good-????????.json")]
    assert sorted(sources) == sorted(map(str, (good, same)))


def test_heights_of_slices_are_in_the_order_of_their_names(tmp_path, capsys, weights, monkeypatch):
    """2 before 10, whatever the order in which a shell names them."""
    data = np.random.default_rng(0).random((8, 8, 11), np.float32)
    write_scan(Scan(data, (4.0, 4.0)), tmp_path / "a.gsf")
    for k in range(11):
        (tmp_path / "a.gsf" / f"{k:03d}.gsf").rename(tmp_path / f"s{k}.gsf")
    seen = []

    def sees(scan, *_, **__):
        seen.append(scan.data)
        raise ScanError("seen")

    monkeypatch.setattr("afmol.results.predict", sees)
    named = sorted(map(str, tmp_path.glob("s*.gsf")))
    assert named[1].endswith("s1.gsf")
    assert named[2].endswith("s10.gsf")
    heights = [str(1.0 - 0.1 * k) for k in range(11)]
    command = ["predict", *named, "-o", tmp_path / "out", "--model", weights, "--heights", *heights]
    refused(capsys, command, "seen")
    assert np.array_equal(seen[0], data)


def test_results_of_another_stack_are_not_replaced(tmp_path, capsys, weights):
    """Whatever the order and however the path is spelled; those of the same stack are, and all are if that is said."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = save(tmp_path / "a" / "x.npz"), save(tmp_path / "b" / "x.npz", lengthX=20.0)
    out = tmp_path / "out"
    command = [*("-o", str(out), "--model", str(weights))]
    main(["predict", str(first), *command])
    main(["predict", str(tmp_path / "b" / ".." / "a" / "x.npz"), *command])
    capsys.readouterr()
    before = {path: path.read_bytes() for path in out.iterdir()}
    refused(capsys, ["predict", second, *command], str(out / "x.json"), str(first), "--overwrite")
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    main(["predict", str(second), str(first), *command])
    together = sorted(path.name for path in out.glob("x-*.json"))
    main(["predict", str(first), str(second), *command])
    assert sorted(path.name for path in out.glob("x-*.json")) == together
    assert len(together) == 2
    main(["predict", str(second), *command, "--overwrite"])
    assert json.loads((out / "x.json").read_text())["scan"] == {
        "source": str(second),
        "shape": [40, 40, 5],
        "size": [20.0, 10.0],
        "stated_size": [20.0, 10.0],
    }
    capsys.readouterr()
    (tmp_path / "a" / "x.xyz").write_text("the molecule that was measured")
    refused(capsys, ["predict", first, "-o", tmp_path / "a", "--model", weights], "x.xyz", "no result")
    assert (tmp_path / "a" / "x.xyz").read_text() == "the molecule that was measured"


def test_a_name_that_cannot_be_written_does_not_end_the_batch(tmp_path, capsys, weights):
    stacks = [save(tmp_path / f"{name}.npz") for name in ("a", "b" * 251, "c")]
    with pytest.raises(SystemExit) as stop:
        main(["predict", *map(str, stacks), "-o", str(tmp_path / "out"), "--model", str(weights)])
    told = capsys.readouterr()
    assert stop.value.code == 2
    assert told.err.count("\n") == 1
    assert "cannot be written" in told.err
    assert len(told.err) <= 301
    assert [line.split(":")[0] for line in told.out.splitlines()] == ["a", "c"]
    assert all("WARNING: this looks like noise" in line for line in told.out.splitlines()), "it is noise"


def test_a_name_that_begins_with_a_dash(tmp_path, capsys, weights, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "-dash.npz")
    main(["predict", "-dash.npz", "-o", "out", "--model", str(weights)])
    assert json.loads((tmp_path / "out" / "-dash.json").read_text())["scan"]["source"] == str(tmp_path / "-dash.npz")


def raising(error):
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("what\n" * 200), ("KeyError", "this is our mistake, please report it", "--debug")),
        (MemoryError(), ("too little memory", "our mistake")),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), ("too little memory",)),
        (RecursionError("maximum recursion depth exceeded"), ("nested too deeply",)),
    ],
)
def test_what_nobody_foresaw_is_one_sentence(error, words, capsys, monkeypatch):
    monkeypatch.setitem(COMMANDS_OF_MAIN, "info", raising(error))
    for arguments in (["info"], ["info", "--debug"], ["--debug", "info"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 70
        *traceback, text = capsys.readouterr().err.splitlines()
        assert text.startswith("afmol: ")
        assert all(word in text for word in words)
        assert len(text) <= 300
        assert bool(traceback) == (len(arguments) > 1)
        if traceback:
            assert traceback[0] == "Traceback (most recent call last):"


def test_debug_shows_where_a_mistake_was_found(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--debug", str(tmp_path / "none.toml")])
    told = capsys.readouterr().err
    assert stop.value.code == 2
    assert "Traceback" in told
    assert told.splitlines()[-1].startswith("afmol: ")


def test_a_reader_that_closes_the_pipe_gets_no_words(tmp_path):
    code = "from afmol.cli import main\nmain(['--version'])"
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run.stdout.close()
    assert run.stderr.read() == ""
    assert run.wait() == 1
    run.stderr.close()


def test_soap_of_files_and_smiles(tmp_path, capsys):
    """Vectors are those of the library; a molecule is like itself, and less like another."""
    afmol.write_molecule(afmol.molecule_from_smiles("c1ccncc1"), tmp_path / "pyridine.xyz")
    pyridine, out = str(tmp_path / "pyridine.xyz"), tmp_path / "vectors.npz"
    main(["soap", pyridine, "c1ccccc1", pyridine, "-o", str(out)])
    printed = capsys.readouterr().out.splitlines()
    rows = [line.split(maxsplit=2) for line in printed if line.startswith("  ")]
    assert [row[2] for row in rows] == [f"{pyridine}, c1ccccc1", f"{pyridine}, {pyridine}", f"c1ccccc1, {pyridine}"]
    assert rows[1][:2] == ["1.0000", "1.0000"]
    assert rows[0][:2] == rows[2][:2]
    assert 0.5 < float(rows[0][1]) < 0.99
    with np.load(out) as written:
        assert written["vectors"].shape == (11 + 12 + 11, 360)
        np.testing.assert_array_equal(np.bincount(written["molecule"]), [11, 12, 11])
        np.testing.assert_array_equal(written["vectors"][:11], written["vectors"][23:])
        expected = afmol.soap.dscribe_vector(afmol.read_molecule(pyridine))
        np.testing.assert_allclose(written["vectors"][:11], expected, rtol=1e-12, atol=1e-12)


def test_soap_of_one_molecule_and_with_other_parameters(tmp_path, capsys):
    main(["soap", "CO", "--max-l", "0", "--n-radial", "1", "-o", str(tmp_path / "v.npz")])
    assert capsys.readouterr().out.splitlines()[0] == "CO: 6 atoms (C 1, H 4, O 1), 5 bonds, 15 entries an atom"
    with np.load(tmp_path / "v.npz") as written:
        assert written["vectors"].shape == (6, 15)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["at least one molecule"]),
        (["nowhere.xyz"], ["nowhere.xyz", "does not exist"]),
        (["c1ccccc"], ["not valid SMILES"]),
        (["C", "--cutoff", "0.5"], ["longer than 1 A"]),
        (["C", "--max-l", "12"], ["0 to 9"]),
        (["C", "--n-radial", "12", "--cutoff", "1.01"], ["cannot be told apart"]),
        (["C", "C", "--alpha", "0"], ["positive alpha"]),
        (["C", "-o", "vectors.txt"], [".npz"]),
        (["C", "-o", "nowhere/vectors.npz"], ["cannot be written"]),
    ],
)
def test_mistakes_with_soap(arguments, words, capsys):
    refused(capsys, ["soap", *arguments], *words)


def test_simulate_from_a_file_and_from_smiles(tmp_path, capsys):
    (tmp_path / "co.xyz").write_text("2\n\nC 0 0 0\nO 1.13 0 0\n")
    main(["simulate", str(tmp_path / "co.xyz"), "-o", str(tmp_path / "co.npz"), "--size", "8", "6", "--pixel", "0.25"])
    scan = read_scan(tmp_path / "co.npz")
    assert scan.data.shape == (32, 24, 10)
    assert scan.size == (8.0, 6.0)
    assert (tmp_path / "co_stack.png").stat().st_size > 0
    main(["simulate", "O", "-o", str(tmp_path / "water.npz"), "--pixel", "0.5", "--noise", "0.05", "--slices", "4"])
    assert read_scan(tmp_path / "water.npz").data.shape[2] == 4


def test_charges_that_a_file_lacks_are_found_or_said_to_be_missing(tmp_path, capsys):
    benzene = afmol.molecule_from_smiles("c1ccccc1")
    afmol.write_molecule(benzene, tmp_path / "own.xyz")
    afmol.write_molecule(replace(benzene, charges=None), tmp_path / "none.xyz")
    afmol.write_molecule(replace(benzene, charges=np.zeros(12)), tmp_path / "zero.xyz")
    (tmp_path / "apart.xyz").write_text("2\n\nC 0 0 0\nC 6 0 0\n")
    stacks = {}
    for name in ("own", "none", "zero", "apart"):
        main(["simulate", str(tmp_path / f"{name}.xyz"), "-o", str(tmp_path / f"{name}.npz"), "--pixel", "0.5"])
        stacks[name] = read_scan(tmp_path / f"{name}.npz").data
        told = capsys.readouterr().err
        assert ("apart.xyz has no charges, so electrostatic forces are left out" in told) == (name == "apart")
    np.testing.assert_allclose(stacks["none"], stacks["own"], atol=1e-3 * np.ptp(stacks["own"]))
    assert np.abs(stacks["zero"] - stacks["own"]).max() > 0.05 * np.ptp(stacks["own"])


def test_simulate_at_given_heights(tmp_path):
    """Ten slices 0.1 A apart down to 2.97 A are the usual ones; any others will do."""
    usual, same, few = (tmp_path / f"{name}.npz" for name in ("usual", "same", "few"))
    heights = [f"{2.97 + 0.1 * k:.2f}" for k in range(9, -1, -1)]
    main(["simulate", "C", "-o", str(usual), "--pixel", "0.5"])
    main(["simulate", "C", "-o", str(same), "--pixel", "0.5", "--heights", *heights])
    main(["simulate", "C", "-o", str(few), "--pixel", "0.5", "--heights", "4", "3.5", "3.2"])
    np.testing.assert_allclose(read_scan(same).data, read_scan(usual).data, atol=1e-3)
    np.testing.assert_allclose(np.diff(read_scan(few).heights), [-0.5, -0.3])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["simulate", "C", "-o", "x.npz", "--heights", "3", "4"], "descend"),
        (["simulate", "C", "-o", "x.npz", "--heights", "4", "0.2"], "into the molecule"),
        (["simulate", "C1CC", "-o", "x.npz"], "C1CC"),
        (["simulate", "none.xyz", "-o", "x.npz"], "none.xyz"),
        (["simulate", "C", "-o", "x.npz", "--pixel", "0"], "--pixel"),
        (["simulate", "C", "-o", "x.foo"], ".foo"),
        (["predict", "-o", "out"], "at least one stack"),
        (["predict", "s.npz", "-o", "out", "--threshold", "1.5"], "threshold"),
        (["predict", "s.npz", "-o", "out", "--model", "base", "--depth", "1.5"], "finds atoms down to 0.8 A"),
        (["predict", "s.npz", "-o", "out", "--depth", "nan"], "finds atoms down to"),
        (["evaluate", "--data", "none.npz", "-o", "out"], "none.npz"),
        (["train", "none.toml"], "none.toml"),
    ],
)
def test_other_mistakes(arguments, word, tmp_path, capsys, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    refused(capsys, [*arguments, *(["--model", weights] if arguments[0] in ("predict", "evaluate") else [])], word)


@pytest.fixture
def molecule_set(tmp_path):
    bent = [np.array([[0, 0, 0], [1.2, 0, 0], [1.7, 1.0 + 0.1 * k, 0]]) for k in range(3)]
    path = tmp_path / "set.npz"
    pack_molecules([Molecule(p, np.array([6, 8, 1]), np.array([[0, 1], [1, 2]]), np.zeros(3)) for p in bent], path)
    return path


def test_train_from_a_file_and_the_command_line(tmp_path, capsys, molecule_set):
    text = f"""molecules = '{molecule_set}'
        out = '{tmp_path / "run"}'
        name = 'small'
        steps = 50
        batch_size = 2
        precision = '32-true'
        accelerator = 'cpu'
        [data]
        windows = [[32, 32]]
        [model]
        channels = [16, 24, 32]
        blocks = 1
        width = 16
        rounds = 1"""
    (tmp_path / "small.toml").write_text(text)
    main(["train", str(tmp_path / "small.toml"), "--steps", "3", "--data.noise", "0.01"])
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        *("checkpoint.safetensors", "losses.png", "metrics.jsonl", "small.safetensors")
    }
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3]


@pytest.fixture
def set_toml(tmp_path, molecule_set):
    path = tmp_path / "set.toml"
    path.write_text(f"molecules = '{molecule_set}'\nsamples = 6\n[data]\nshard_size = 4\nwindows = [[32, 32]]\n")
    return path


def test_stored_samples_are_made_checked_drawn_and_trained_on(tmp_path, capsys, set_toml, molecule_set):
    out = tmp_path / "set"
    make = ["dataset", "make", str(set_toml), "-o", str(out), "--workers", "0"]
    main([*make, "--data.noise", "0"])
    assert "2 shards made" in capsys.readouterr().out
    main([*make, "--data.noise", "0", "--samples", "9"])
    assert "2 shards kept, 1 shard made" in capsys.readouterr().out
    refused(capsys, make, "train_00000.h5", "another configuration")
    main(["dataset", "check", str(out)])
    assert "3 whole shards, 12 samples" in capsys.readouterr().out
    for source in (out, set_toml):
        picture = tmp_path / f"{source.stem}.png"
        main(["dataset", "show", str(source), "-o", str(picture), "--samples", "3"])
        assert picture.stat().st_size > 10000

    small = ["--batch-size", "4", "--steps", "2", "--workers", "0", "--accelerator", "cpu", "--precision", "32-true"]
    model = ["--model.channels", "16", "24", "32", "--model.blocks", "1", "--model.width", "16", "--model.rounds", "1"]
    (tmp_path / "run.toml").write_text(f"stored = '{out}'\nout = '{tmp_path / 'run'}'\n")
    main(["train", str(tmp_path / "run.toml"), *small, *model])
    assert (tmp_path / "run" / "base.safetensors").exists()
    capsys.readouterr()  # the bar
    refused(capsys, ["train", tmp_path / "run.toml", "--molecules", molecule_set], "either molecules", "or stored")

    content = bytearray((out / "train_00001.h5").read_bytes())
    content[3000] ^= 4
    (out / "train_00001.h5").write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        main(["dataset", "check", str(out)])
    assert stop.value.code == 2
    told = capsys.readouterr()
    assert "train_00001.h5 is damaged" in told.err
    assert "2 whole shards, 8 samples" in told.out
    refused(capsys, ["dataset", "show", out, "-o", tmp_path / "x.png", "--first", "2"], "train_00001.h5 is damaged")
    main([*make, "--data.noise", "0"])
    assert "1 shard kept, 1 shard made again, it was damaged" in capsys.readouterr().out


def test_samples_of_other_groups_are_imported(tmp_path, capsys):
    scan, molecule = theirs()
    tar = write(tmp_path / "a.tar", *(members(n, [scan.data], xyz(molecule, COMMENT)) for n in range(3)))
    main(["dataset", "import", str(tar), "-o", str(tmp_path / "set"), "--shard-size", "2", "--surface", "Cu"])
    assert "3 samples in 2 shards" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["make", "none.toml", "-o", "out"], "none.toml"),
        (["make", "set.toml", "-o", "out", "--samples", "0"], "at least 1"),
        (["make", "set.toml", "-o", "set.toml"], "cannot be made"),
        (["check", "nowhere"], "nowhere holds no shard"),
        (["show", "set.toml", "-o", "x.foo"], "x.foo"),
        (["show", "set.toml", "-o", "x.png", "--samples", "0"], "--samples"),
        (["import", "-o", "out"], "at least one file"),
        (["import", "x.zip", "-o", "out"], "x.zip"),
        (["import", "x.hdf5", "-o", "out"], "--window"),
        (["import", "x.tar", "-o", "out"], "x.tar"),
        (["import", "x.tar", "-o", "out", "--surface", "Qq"], "Qq"),
        (["import", "x.tar", "-o", "out", "--slices", "2"], "--slices"),
    ],
)
def test_mistakes_with_stored_samples(arguments, word, tmp_path, capsys, monkeypatch, set_toml):
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["dataset", *arguments], word)


@pytest.mark.parametrize("command", ["make", *DATASET])
def test_help_of_dataset_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["dataset", command, "--help"])
    assert stop.value.code == 0
    assert f"Example: afmol dataset {command}" in " ".join(capsys.readouterr().out.split())


def test_evaluate_prints_its_table(tmp_path, capsys, molecule_set, weights):
    arguments = ["--data", str(molecule_set), "-o", str(tmp_path / "out"), "--model", str(weights), "--molecules", "2"]
    main(["evaluate", *arguments, "--shapes", "flat", "--conditions", "nominal"])
    assert "atoms recall" in capsys.readouterr().out
    assert (tmp_path / "out" / "evaluation.json").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    assert f"Example: afmol {command}" in " ".join(told.split())
    assert "(default: )" not in told
    assert "--debug" in told


def test_help_needs_no_torch():
    code = "import sys\nfrom afmol.cli import main\n"
    code += "try: main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split()[-1] == "False"


def test_options_of_predict_arrive(tmp_path, weights, monkeypatch):
    asked, nothing = {}, Molecule(np.zeros((0, 3)), np.zeros(0, int), np.zeros((0, 2), int))

    def read(source, **how):
        asked.update(how)
        return Scan(noise(40, 40, 3), (10.0, 10.0))

    def found(scan, network, threshold, **how):
        asked.update(how, threshold=threshold)
        return nothing

    monkeypatch.setattr("afmol.results.read_scan", read)
    monkeypatch.setattr("afmol.results.predict", found)
    how = "--threshold 0.3 --depth 0.5 --channel df --direction backward --heights 3 2 1 --size 8 6"
    main(["predict", "s", "-o", str(tmp_path), "--model", str(weights), *how.split()])
    wanted = {"threshold": 0.3, "depth": 0.5, "channel": "df", "direction": "backward"}
    wanted |= {"heights": (3, 2, 1), "size": (8, 6)}
    assert {name: asked[name] for name in wanted} == wanted
    assert json.loads((tmp_path / "s.json").read_text())["model"]["depth"] == 0.5


def test_info_names_what_is_shipped(capsys):
    main(["info"])
    told = capsys.readouterr().out
    assert all(f"model {name}:" in told for name in ("base", "measured", "asd"))
    assert "depth 0.8 A" in told


def test_serve_hands_on_what_it_is_told(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("afmol.serve.serve", lambda *what: asked.append(what))
    main(["serve", "a.npz", "--port", "81", "--host", "0.0.0.0", "--no-browser"])
    assert asked == [(("a.npz",), 81, "0.0.0.0", False)]
    assert "not encrypted" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path, capsys, weights, monkeypatch):
    for work in ("fitting.fit", "results.predict", "evaluation.evaluate", "calibration.calibrate", "imaging.simulate"):
        monkeypatch.setattr(f"afmol.{work}", lambda *_, **__: pytest.fail("the work has begun"))
    (tmp_path / "file").write_text("")
    write_molecule(flat_ring(), tmp_path / "m.xyz")
    stack, molecule, file = save(tmp_path / "s.npz"), tmp_path / "m.xyz", tmp_path / "file"
    refused(capsys, ["fit", molecule, stack, "-o", file], "file")
    refused(capsys, ["predict", stack, "-o", file, "--model", weights], "file")
    refused(capsys, ["evaluate", "--data", "set.npz", "-o", file], "file")
    refused(capsys, ["calibrate", "base", "--data", "set.npz", "-o", file / "w.safetensors"], "file")
    refused(capsys, ["simulate", molecule, "-o", file / "s.npz"], "file")
    refused(capsys, ["simulate", molecule, "-o", tmp_path / "s.foo"], ".foo", ".npz")


@pytest.mark.parametrize(
    "command", [("simulate", "C"), ("evaluate", "--data", "x.npz"), ("calibrate", "base", "--data", "x.npz")]
)
def test_a_negative_seed_is_the_users_mistake(command, tmp_path, capsys):
    out = tmp_path / ("w.safetensors" if command[0] == "calibrate" else "s.npz")
    refused(capsys, [*command, "-o", out, "--seed", "-1"], "seed", "negative")


def test_two_folders_of_slices_are_two_stacks(tmp_path, weights):
    """As `afmol simulate -o NAME.gsf` writes them."""
    for name in "ab":
        write_scan(Scan(noise(40, 40, 3), (10.0, 10.0), np.array([0.2, 0.1, 0.0])), tmp_path / f"{name}.gsf")
    both = [str(tmp_path / f"{name}.gsf") for name in "ab"]
    main(["predict", *both, "-o", str(tmp_path / "out"), "--model", str(weights)])
    assert {path.name for path in (tmp_path / "out").glob("*.json")} == {"a.json", "b.json"}
