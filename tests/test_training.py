"""Training: exact resume, a loss that falls, figures that can be read, mistakes that are explained."""

import dataclasses
import json
import logging
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch

from afmol.checkpoint import load_model, read_tensors, save_model, write_tensors
from afmol.data.loader import Simulated
from afmol.data.molecules import load_molecules, pack_molecules
from afmol.data.samples import DataConfig, collate, make_sample
from afmol.data.shards import SetConfig, make
from afmol.elements import bonds_by_distance
from afmol.errors import AfmolError, ConfigError, MoleculeError, WeightsError
from afmol.model import MODELS, AsdConfig, OnePass, OnePassConfig
from afmol.optimizer import parameter_groups
from afmol.precision import fast_precision
from afmol.structures import Molecule
from afmol.training import FitConfig, TrainConfig, fit, learning_rate, loop, resume, train, validation
from strategies import one_sentence

TINY = OnePassConfig(channels=(8, 12, 16), blocks=1, width=8, rounds=1)
DATA = DataConfig(shard_size=4, windows=((32, 32),))


@pytest.fixture(autouse=True)
def _quiet():
    """Fabric logs what it runs on."""
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)


def ring(number: int, n: int, length: float, *outer: tuple[int, float]) -> Molecule:
    """A flat ring of n atoms of one element, each with an outer atom (atomic number, distance)."""
    angle = 2 * np.pi * np.arange(n) / n
    circle = np.column_stack([np.cos(angle), np.sin(angle), 0 * angle])
    radius = length / (2 * np.sin(np.pi / n))
    positions = np.concatenate([radius * circle, *((radius + d) * circle for _, d in outer)])
    numbers = np.repeat([number, *(z for z, _ in outer)], n)
    charges = np.repeat([-0.1, *(0.1 for _ in outer)], n)
    return Molecule(positions, numbers, bonds_by_distance(positions, numbers), charges, name=f"{numbers}")


@pytest.fixture(scope="module")
def molecules(tmp_path_factory) -> str:
    """A packed set of five made-up molecules."""
    path = tmp_path_factory.mktemp("molecules") / "few.npz"
    usual = [ring(6, 6, 1.39, (1, 1.08)), ring(6, 5, 1.4, (8, 1.25)), ring(7, 4, 1.4)]
    pack_molecules([*usual, ring(6, 3, 1.5, (9, 1.35)), ring(6, 6, 1.39, (17, 1.74))], path)
    return str(path)


def tiny(molecules: str, out: Path, **change) -> TrainConfig:
    usual: dict[str, Any] = {
        "steps": 6,
        "batch_size": 4,
        "warm_up": 2,
        "checkpoint_every": 3,
        "accelerator": "cpu",
        "precision": "32-true",
        "workers": 0,
        "data": DATA,
        "model": TINY,
    }
    return TrainConfig(molecules=molecules, out=str(out), name="tiny", **(usual | change))


def rows(out: Path) -> list[dict]:
    """Lines of metrics.jsonl, read strictly: NaN is no JSON."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} in metrics.jsonl")

    return [json.loads(line, parse_constant=refuse) for line in (out / "metrics.jsonl").read_text().splitlines()]


# --- runs


@pytest.fixture(scope="module")
def whole_run(molecules, tmp_path_factory) -> Path:
    """The folder of a run of six steps, with validation."""
    out = tmp_path_factory.mktemp("whole")
    assert train(tiny(molecules, out, validation=molecules, validation_samples=8)) == out / "tiny.safetensors"
    return out


class StoppedError(Exception):
    """Somebody pulled the plug."""


@pytest.mark.parametrize(("workers", "stored", "average"), [(0, False, 0.9), (2, False, 0), (0, True, 0), (2, True, 0)])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    whole_run, molecules, tmp_path, monkeypatch, workers, stored, average
):
    """In the middle of an epoch, whether samples are stored or made meanwhile, and whether weights are averaged."""
    config = tiny(molecules, tmp_path, validation=molecules, validation_samples=8, workers=workers, average=average)
    if average:
        whole_run = tmp_path / "whole"
        train(dataclasses.replace(config, out=str(whole_run)))
    if stored:
        list(make(SetConfig(molecules, 24, data=DATA), tmp_path / "set", workers=0))
        config = dataclasses.replace(config, molecules="", stored=str(tmp_path / "set"))
    save = loop.save_training

    def save_and_stop(*args):
        save(*args)
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_training", save_and_stop)
        with pytest.raises(StoppedError):
            train(config)
    assert read_tensors(tmp_path / "checkpoint.safetensors")[1]["step"] == "3"
    torch.manual_seed(999)  # whatever the process did in between
    train(config)

    (a, a_about), (b, b_about) = (read_tensors(out / "checkpoint.safetensors") for out in (whole_run, tmp_path))
    assert a_about["step"] == b_about["step"] == "6"
    assert a.keys() == b.keys()
    assert any(key.startswith("optimizer.") for key in a)
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
    a, b = (read_tensors(out / "tiny.safetensors")[0] for out in (whole_run, tmp_path))
    assert all(torch.equal(a[key], b[key]) for key in a)
    last, again = (
        {k: v for k, v in rows(out)[-1].items() if k.startswith("validation")} for out in (whole_run, tmp_path)
    )
    assert last == again


def test_a_run_does_not_go_on_with_other_samples(whole_run, molecules, tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes((whole_run / "checkpoint.safetensors").read_bytes())
    other = str(tmp_path / "other.npz")
    pack_molecules([ring(6, 6, 1.39, (1, 1.08)), ring(6, 5, 1.4, (9, 1.35))], other)
    changes = {"batch_size 4, not 2": {"batch_size": 2}, "data.seed 0": {"data": dataclasses.replace(DATA, seed=3)}}
    changes |= {"molecules": {"molecules": other}, "average 0": {"average": 0.9}, "seed 0, not 1": {"seed": 1}}
    changes |= {"weight_decay 0.02, not 0.03": {"weight_decay": 0.03}, "precision": {"precision": "64-true"}}
    changes |= {"with other weights": {"start": str(whole_run / "tiny.safetensors")}, "warm_up 2": {"warm_up": 3}}
    for words, change in changes.items():
        with pytest.raises(ConfigError, match=words) as error:
            train(dataclasses.replace(tiny(molecules, tmp_path, steps=9), **change))
        one_sentence(error, tmp_path)


def test_what_does_not_change_the_steps_may_change(whole_run, molecules, tmp_path):
    """And weights under a new name are those of the run, though no step was left to do."""
    for path in whole_run.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "moved.npz").write_bytes(Path(molecules).read_bytes())
    change = {"workers": 1, "checkpoint_every": 2, "validate_every": 7, "accelerator": "auto"}
    config = dataclasses.replace(tiny(str(tmp_path / "moved.npz"), tmp_path), **change)
    assert train(dataclasses.replace(config, name="new")) == tmp_path / "new.safetensors"
    a, b = (read_tensors(tmp_path / f"{name}.safetensors")[0] for name in ("tiny", "new"))
    assert all(torch.equal(a[key], b[key]) for key in a | b)
    assert read_tensors(tmp_path / "checkpoint.safetensors")[1]["step"] == "6"
    with pytest.raises(ConfigError, match="at step 6, beyond the 5 steps") as error:
        train(dataclasses.replace(config, steps=5))
    one_sentence(error, tmp_path)
    train(dataclasses.replace(config, steps=7))
    assert read_tensors(tmp_path / "checkpoint.safetensors")[1]["step"] == "7"


def test_a_checkpoint_of_before_settings_were_stored_goes_on(whole_run, molecules, tmp_path):
    """One that lacks a field that was added since goes on too; one with a field that is gone does not."""
    tensors, about = read_tensors(whole_run / "checkpoint.safetensors")
    settings = json.loads(about["settings"])
    path = tmp_path / "checkpoint.safetensors"
    older = {k: v for k, v in about.items() if k != "settings"}
    less = about | {"settings": json.dumps({k: v for k, v in settings.items() if k != "average"})}
    for known in (older, less):
        write_tensors(path, tensors, known)
        train(tiny(molecules, tmp_path, steps=7))
        assert read_tensors(path)[1]["step"] == "7"
    for wrong in (json.dumps(settings | {"gone": 1}), "[]", "{"):
        write_tensors(path, tensors, about | {"settings": wrong})
        with pytest.raises(WeightsError) as error:
            train(tiny(molecules, tmp_path, steps=7))
        one_sentence(error, path)


@pytest.mark.parametrize(
    ("number", "when"),
    [(signal.SIGINT, "in a step"), (signal.SIGTERM, "between steps"), (signal.SIGTERM, "with another process")],
    ids=["SIGINT", "SIGTERM", "broken off"],
)
def test_a_run_that_is_told_to_stop_saves_what_it_has(whole_run, molecules, tmp_path, monkeypatch, number, when):
    config = tiny(molecules, tmp_path, checkpoint_every=100, validation=molecules, validation_samples=8)
    forward, add = OnePass.forward, loop._Means.add

    def signalled(function):
        def call(self, *args):
            calls.append(0)
            if len(calls) == (3 if when == "with another process" else 2):
                os.kill(os.getpid(), number)
                if when == "with another process":  # which left, so that this step cannot be finished
                    raise RuntimeError("Connection closed by peer")
            return function(self, *args)

        return call

    calls = []
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        if when != "between steps":
            patch.setattr(OnePass, "forward", signalled(forward))
        else:
            patch.setattr(loop._Means, "add", signalled(add))
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert read_tensors(tmp_path / "checkpoint.safetensors")[1]["step"] == "2"
    assert load_model(tmp_path / "tiny.safetensors")[1] == "tiny"
    train(config)
    assert (tmp_path / "tiny.safetensors").read_bytes() == (whole_run / "tiny.safetensors").read_bytes()
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == (whole_run / "checkpoint.safetensors").read_bytes()


def test_two_runs_do_not_write_one_folder(molecules, tmp_path, monkeypatch):
    step = OnePass.forward
    refused = []

    def second(*args):
        if not refused:
            with pytest.raises(ConfigError, match="Another command is writing") as error:
                train(tiny(molecules, tmp_path))
            refused.append(one_sentence(error, tmp_path))
        return step(*args)

    monkeypatch.setattr(OnePass, "forward", second)
    train(tiny(molecules, tmp_path))
    assert refused
    train(tiny(molecules, tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "checkpoint"}, "beside"),
        ({"name": ""}, "beside"),
        ({"steps": 10**20}, "steps"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"clip": 0.0}, "clip"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"warm_up": -1}, "warm_up"),
    ],
)
def test_numbers_that_cannot_be(change, words):
    with pytest.raises(ConfigError, match=words):
        FitConfig(**change)


@pytest.mark.parametrize(
    "change", [{"deepest": 3.0}, {"deepest": float("nan")}, {"depth": -1.0}, {"depth": float("nan")}, {"depth": 1.7}]
)
def test_atoms_are_learned_as_far_down_as_they_are_labelled(molecules, tmp_path, change):
    with pytest.raises(ConfigError, match=r"model\.depth"):
        tiny(molecules, tmp_path, model=dataclasses.replace(TINY, **change))


def test_a_run_does_not_replace_what_it_starts_from(molecules, whole_run, tmp_path):
    (tmp_path / "tiny.safetensors").write_bytes((whole_run / "tiny.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="would replace"):
        train(tiny(molecules, tmp_path, start=str(tmp_path / "tiny.safetensors")))


def test_a_run_that_diverges_keeps_its_checkpoint(molecules, tmp_path):
    with pytest.raises(ConfigError, match=r"diverged in step [1-9].*learning_rate.*nothing"):
        train(tiny(molecules, tmp_path, learning_rate=1e30, warm_up=0, checkpoint_every=100))
    assert not (tmp_path / "tiny.safetensors").exists()


def test_weights_that_are_no_numbers_are_not_written(tmp_path):
    model = OnePass(TINY)
    save_model(model, tmp_path / "w.safetensors", "w")
    before = (tmp_path / "w.safetensors").read_bytes()
    for value in (float("nan"), 1e6):  # beyond 16 bits
        with torch.no_grad():
            next(model.parameters()).fill_(value)
        with pytest.raises(WeightsError, match="diverged"):
            save_model(model, tmp_path / "w.safetensors", "w")
    assert (tmp_path / "w.safetensors").read_bytes() == before


def test_rows_are_those_of_this_run(tmp_path):
    """What lies behind the checkpoint is done again; of a run that begins anew the rows of before are put aside."""
    metrics = tmp_path / "metrics.jsonl"
    lines = [b'{"step": 50, "loss": 2}\n', b'{"step": 100, "loss": 1}\n', b'{"step": 150, "lo']
    metrics.write_bytes(b"".join(lines))
    resume.rows_until(metrics, 70)
    assert metrics.read_bytes() == lines[0]
    resume.rows_until(metrics, 50)
    assert metrics.read_bytes() == lines[0]
    resume.rows_until(metrics, 0)
    assert metrics.read_bytes() == b""
    metrics.write_bytes(lines[1])
    resume.rows_until(metrics, 0)
    assert (tmp_path / "metrics_before.jsonl").read_bytes() == lines[0] + lines[1]


def test_time_of_validation_is_no_time_of_training(molecules, tmp_path, monkeypatch):
    """Whenever it comes; by a clock of the test's own, on which all but validation takes no time to speak of."""
    now = [0.0]

    def clock():
        now[0] += 1e-3
        return now[0]

    def slow(_):
        now[0] += 1e3
        return {}

    monkeypatch.setattr(loop, "LOG_EVERY", 3)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=clock))

    config = tiny(molecules, tmp_path, steps=6, validate_every=4)  # after the first row, and before the second
    source = Simulated(load_molecules(molecules, "train"), DATA, 4)
    torch.manual_seed(0)
    fit(OnePass(TINY), source, config, slow)
    assert now[0] > 1e3
    assert 3 * 4 / rows(tmp_path)[-1]["samples_per_second"] < 1


def test_a_torn_line_does_not_spoil_the_next(molecules, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    train(tiny(molecules, tmp_path))
    assert [row["step"] for row in rows(tmp_path)] == [6]


def test_an_average_of_the_weights_is_what_is_written(molecules, whole_run, tmp_path):
    """By hand: mean <- decay mean + (1 - decay) weights, from the weights of the first step on."""
    mean = None
    for steps in range(1, 4):
        train(tiny(molecules, tmp_path / "a", steps=steps, warm_up=0, learning_rate=1e-2, average=0.75))
        now = read_tensors(tmp_path / "a" / "checkpoint.safetensors")[0]
        weights = {k[6:]: v for k, v in now.items() if k.startswith("model.") and v.is_floating_point()}
        mean = weights if mean is None else {k: 0.75 * mean[k] + 0.25 * v for k, v in weights.items()}
    written = load_model(tmp_path / "a" / "tiny.safetensors")[0].state_dict()
    for name, value in mean.items():
        torch.testing.assert_close(now[f"average.module.{name}"], value, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(written[name], value, rtol=2**-10, atol=1e-6)
    assert not torch.allclose(mean["posnet.head.bias"], weights["posnet.head.bias"], atol=1e-4)


def test_what_a_run_leaves(whole_run):
    assert {p.name for p in whole_run.iterdir()} == {"metrics.jsonl", "checkpoint.safetensors", "tiny.safetensors"}
    model, name = load_model(whole_run / "tiny.safetensors")
    assert name == "tiny"
    assert model.config == TINY
    (row,) = rows(whole_run)
    assert row["step"] == 6
    losses = {f"loss_{part}" for part in ("heat", "offset", "z", "exists", "elements", "depth", "bonds")}
    assert losses | {"loss", "samples_per_second", "waiting", "learning_rate"} <= row.keys()
    for prefix in ("", "validation_"):
        assert row[f"{prefix}loss"] == pytest.approx(sum(row[prefix + name] for name in losses), abs=1e-4)
        assert row[f"{prefix}loss_heat"] > 0
    assert {"validation_precision", "validation_recall", "validation_bond_f1"} <= row.keys()


def test_a_finished_run_stays_as_it_is(molecules, whole_run, tmp_path):
    for path in whole_run.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    train(tiny(molecules, tmp_path))
    assert all((tmp_path / path.name).read_bytes() == path.read_bytes() for path in whole_run.iterdir())


def test_the_seed_decides(molecules, whole_run, tmp_path):
    train(tiny(molecules, tmp_path / "a", steps=1))
    train(tiny(molecules, tmp_path / "b", steps=1, seed=1))
    train(tiny(molecules, tmp_path / "c", steps=1, data=dataclasses.replace(DATA, seed=1)))
    a, b, c = (read_tensors(tmp_path / n / "checkpoint.safetensors")[0]["model.posnet.stem.weight"] for n in "abc")
    assert not torch.equal(a, b)
    assert not torch.equal(a, c)


def test_each_step_trains_with_its_own_seed(molecules, tmp_path, monkeypatch):
    """Also after a validation, which needs the model in another mode."""
    seen, forward = [], OnePass.forward

    def spy(model, batch, generator):
        seen.append((model.training, generator.initial_seed()))
        return forward(model, batch, generator)

    monkeypatch.setattr(OnePass, "forward", spy)
    train(tiny(molecules, tmp_path, steps=4, validation=molecules, validation_samples=4, validate_every=2))
    assert [seed for training, seed in seen if training] == [0, 1, 2, 3]
    assert [training for training, _ in seen] == [True, True, False, True, True, False]
    assert [row["step"] for row in rows(tmp_path)] == [2, 4]


def test_a_run_that_starts_from_weights(molecules, whole_run, tmp_path):
    """With no learning rate nothing but the batch norm statistics moves."""
    start = str(whole_run / "tiny.safetensors")
    train(tiny(molecules, tmp_path, start=start, steps=1, learning_rate=0.0))
    before, after = load_model(start)[0].state_dict(), load_model(tmp_path / "tiny.safetensors")[0].state_dict()
    assert all(torch.equal(before[k], v) for k, v in after.items() if "running" not in k and "num_batches" not in k)
    with pytest.raises(ConfigError, match="another configuration"):
        train(tiny(molecules, tmp_path / "b", start=start, model=dataclasses.replace(TINY, width=12)))
    with pytest.raises(WeightsError, match="no weight file"):
        train(tiny(molecules, tmp_path / "c", start="nowhere.safetensors"))


def test_the_first_step_is_as_long_as_the_learning_rate(molecules, tmp_path):
    """That is how Adam begins."""
    train(tiny(molecules, tmp_path, steps=1, warm_up=100, learning_rate=0.01, weight_decay=0.0))
    torch.manual_seed(0)
    before, after = OnePass(TINY).state_dict(), read_tensors(tmp_path / "checkpoint.safetensors")[0]
    moved = torch.cat([(after[f"model.{k}"] - v).flatten() for k, v in before.items() if k.startswith("posnet.head")])
    assert float(moved.abs().max()) == pytest.approx(0.01 / 100, rel=0.01)


@pytest.mark.parametrize(
    ("flags", "precision"),
    [({"avx512_bf16": True}, "bf16-mixed"), ({"amx_bf16": True}, "bf16-mixed"), ({"avx512_f": True}, "32-true")],
)
def test_precision_is_what_the_processor_does_well(monkeypatch, flags, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    assert fast_precision("cpu") == precision
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert fast_precision("auto") == "bf16-mixed"
    assert fast_precision("cpu") == precision


def test_half_precision_on_any_device(molecules, tmp_path):
    """The usual settings, with warnings as errors."""
    train(tiny(molecules, tmp_path, steps=2, precision="bf16-mixed", accelerator="auto", workers=2))
    assert all(np.isfinite(v) for row in rows(tmp_path) for v in row.values())


def test_labels_keep_their_precision(molecules, tmp_path, monkeypatch):
    """In half precision too: bfloat16 would move atoms by up to 0.03 A."""
    seen, forward = set(), OnePass.forward

    def watched(self, batch, generator):
        seen.add((batch.positions.dtype, batch.images.dtype, torch.is_autocast_enabled("cpu")))
        return forward(self, batch, generator)

    monkeypatch.setattr(OnePass, "forward", watched)
    train(tiny(molecules, tmp_path, steps=1, precision="bf16-mixed", accelerator="cpu", workers=0))
    assert (torch.float32, torch.float32, True) in seen
    assert all(dtype == torch.float32 for dtype, _, _ in seen)


def test_the_loss_falls(molecules):
    """On one batch that is seen again and again."""
    torch.manual_seed(0)
    packed = load_molecules(molecules)
    batch = collate([make_sample(packed, DATA, i) for i in range(4)])
    model = OnePass(TINY).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.02), lr=2e-2)
    curve = []
    for _ in range(80):
        losses = model(batch, torch.Generator().manual_seed(0))
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        curve.append(loss.item())
    assert np.mean(curve[-3:]) < curve[0] / 3


# --- parts


def test_learning_rate():
    config = TrainConfig(steps=1100, warm_up=100, learning_rate=0.01)
    assert learning_rate(0, config) == pytest.approx(0.0001)
    assert learning_rate(49, config) == pytest.approx(0.005)
    assert learning_rate(99, config) == learning_rate(100, config) == pytest.approx(0.01)
    assert learning_rate(350, config) == pytest.approx(0.01 * (1 + 0.5**0.5) / 2)
    assert learning_rate(600, config) == pytest.approx(0.005)
    assert 0 < learning_rate(1099, config) < 1e-5 * 0.01 * 10
    assert all(learning_rate(s, config) > learning_rate(s + 1, config) for s in range(100, 1099))
    assert learning_rate(0, TrainConfig(warm_up=0)) == TrainConfig().learning_rate


def test_biases_and_norms_do_not_decay():
    model = OnePass(TINY)
    decaying, others = parameter_groups(model, 0.1)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {id(p) for p in decaying["params"] + others["params"]} == set(names)
    assert all(names[id(p)].endswith("weight") for p in decaying["params"])
    assert any(".norm1.weight" in names[id(p)] for p in others["params"])


def test_validation_is_the_same_each_time_and_leaves_the_weights_alone(molecules, tmp_path):
    packed = load_molecules(molecules)
    model: Any = OnePass(TINY)
    model.posnet.head.bias.data[:4] = -1.5
    before = {k: v.clone() for k, v in model.state_dict().items()}
    validate = validation(packed, tiny(molecules, tmp_path, validation_samples=8))
    first, second = validate(model), validate(model)
    assert first == second
    assert first["recall"] is not None
    assert first["loss"] == pytest.approx(sum(v for k, v in first.items() if k.startswith("loss_")), abs=1e-4)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# --- another model


@dataclasses.dataclass(frozen=True)
class LineConfig:
    kind: Literal["line"] = "line"
    slope: float = 0.0


class Points(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


class Line(torch.nn.Module):
    """y = slope x, learned from points: a model that reads no images."""

    def __init__(self, config: LineConfig) -> None:
        super().__init__()
        self.config = config
        self.slope = torch.nn.Parameter(torch.tensor([[config.slope]]))

    def forward(self, batch: Points, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"square": (self.slope * batch.x - batch.y).square().mean()}


class Threes:
    size, origin = 8, {"slope": 3}

    def batch(self, q: int) -> Points:
        x = torch.randn(8, 1, generator=torch.Generator().manual_seed(q))
        return Points(x, 3 * x)


def test_a_second_model_needs_its_file_and_three_lines(tmp_path, monkeypatch):
    """An import, its line in MODELS, and its configuration in ModelConfig for those who train it by TOML: loop,
    resume, logs and weight files are there."""
    monkeypatch.setitem(MODELS, "line", (LineConfig, Line))
    config = FitConfig(
        out=str(tmp_path), name="line", steps=60, warm_up=0, learning_rate=0.3, weight_decay=0.0, clip=10.0,
        checkpoint_every=20, validate_every=30, accelerator="cpu", precision="32-true", workers=0,
    )  # fmt: skip
    weights = fit(Line(LineConfig()), Threes(), config, lambda model: {"slope": model.slope.item()})
    assert [row["step"] for row in rows(tmp_path)] == [30, 50, 60]
    assert rows(tmp_path)[-1]["validation_slope"] == pytest.approx(3, abs=0.05)
    line, name = load_model(weights)
    assert name == "line"
    assert line.config == LineConfig()
    assert line.slope.item() == pytest.approx(3, abs=0.05)


# --- mistakes


def test_missing_molecules(molecules, tmp_path):
    none, out = str(tmp_path / "none.npz"), tmp_path / "out"
    for config in (tiny(none, out), tiny(molecules, out, validation=none)):
        with pytest.raises(MoleculeError, match=r"none\.npz does not exist"):
            train(config)
    assert not out.exists()


def test_a_frozen_part_needs_weights(molecules, tmp_path):
    model = AsdConfig(pixel=DATA.pixel, train="builder")
    with pytest.raises(ConfigError, match="stays frozen: name the weights"):
        train(tiny(molecules, tmp_path / "out", model=model))
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_written(molecules, tmp_path):
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "full" / "metrics.jsonl").mkdir(parents=True)
    for name in ("file", "file/below", "full"):
        with pytest.raises(ConfigError, match="cannot be written") as error:
            train(tiny(molecules, tmp_path / name))
        assert str(tmp_path / name) in str(error.value)


def test_the_checkpoint_of_another_run(molecules, whole_run, tmp_path):
    checkpoint = (whole_run / "checkpoint.safetensors").read_bytes()
    (tmp_path / "checkpoint.safetensors").write_bytes(checkpoint)
    other = dataclasses.replace(TINY, width=12)
    with pytest.raises(ConfigError, match=r"model\.width 8, not 12"):
        train(tiny(molecules, tmp_path, model=other))
    (tmp_path / "checkpoint.safetensors").write_bytes(checkpoint[:-5])
    with pytest.raises(WeightsError, match=r"checkpoint\.safetensors"):
        train(tiny(molecules, tmp_path))


@pytest.mark.parametrize(
    "change",
    [{"model": dataclasses.replace(TINY, slices=7)}, {"data": dataclasses.replace(DATA, pixel=0.2)}],
    ids=["slices", "pixel"],
)
def test_data_that_the_model_does_not_take(molecules, tmp_path, change):
    with pytest.raises(AfmolError, match=r"slices|pixel"):
        train(tiny(molecules, tmp_path, **change))
