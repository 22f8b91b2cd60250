"""Spoiled stacks are what they are called; the network that learns from them sees statistics of the slices."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import afmol
from afmol.checkpoint import load_model
from afmol.data.molecules import molecule_set, pack_molecules
from afmol.data.samples import DataConfig, make_sample
from afmol.data.spoiled import DRAWN, KINDS, SpoiledConfig, SpoiledStacks, in_no_order, scene, xe_tip
from afmol.errors import ConfigError
from afmol.model import StackCheckConfig
from afmol.model.stack_check import slice_statistics
from afmol.training import CheckTrainConfig, train_check

DATA = DataConfig(seed=3, shard_size=1, windows=((48, 40),))


@pytest.fixture(scope="module")
def molecules():
    return molecule_set([afmol.molecule_from_smiles(s) for s in ("c1ccccc1O", "Nc1ccncc1", "O=C1C=CC(=O)C=C1F")])


def test_scenes_hold_a_good_stack_and_one_that_is_spoiled_as_it_says(molecules):
    seen = set()
    for i in range(24):
        (good, called_good), (bad, kind) = scene(molecules, DATA, SpoiledConfig(), i)
        seen.add(kind)
        assert called_good == "good"
        assert good.shape == bad.shape == (48, 40, 10)
        assert np.isfinite(bad).all()
        match kind:
            case "reversed":
                np.testing.assert_array_equal(bad, good[..., ::-1])
            case "negated":
                np.testing.assert_array_equal(bad, -good)
            case "tip" | "nothing" | "lattice":
                assert abs(np.corrcoef(good[..., -1].ravel(), bad[..., -1].ravel())[0, 1]) < 0.98
    assert seen == set(KINDS[1:])


def test_a_good_stack_of_the_true_size_is_a_training_sample(molecules):
    (good, _), _ = scene(molecules, DATA, SpoiledConfig(scale=0.0), 5)
    np.testing.assert_array_equal(good, make_sample(molecules, DATA, 5).scan.data)


@pytest.mark.parametrize("seed", range(8))
def test_no_order_is_no_order(seed):
    stack = np.broadcast_to(np.arange(10.0), (8, 8, 10)) + 1e-3 * np.random.default_rng(seed).normal(size=(8, 8, 10))
    heights = in_no_order(stack, np.random.default_rng(seed)).mean((0, 1))
    assert np.ptp(heights) < 0.5 or abs(np.corrcoef(heights, np.arange(10))[0, 1]) <= 0.5


def test_a_xe_tip_takes_the_place_of_the_one_that_is_drawn(molecules):
    tip = xe_tip(np.random.default_rng(0))
    by_co, by_xe = (make_sample(molecules, DATA, 1, tip=t).scan for t in (None, tip))
    assert by_co.size == by_xe.size
    assert not np.allclose(by_co.data, by_xe.data)
    np.testing.assert_array_equal(by_xe.data, make_sample(molecules, DATA, 1, tip=tip).scan.data)


def test_drawn_stacks_are_those_of_their_seed():
    for drawn in DRAWN.values():
        one, same, other = (drawn(np.random.default_rng(seed), (40, 32, 10), 0.25) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one, same)
        assert not np.allclose(one, other)


def test_periods_of_lattices_are_lengths():
    """The same surface, whatever the pixels."""
    fine, coarse = (DRAWN["lattice"](np.random.default_rng(3), (n, n, 4), 20 / n) for n in (160, 80))
    np.testing.assert_allclose(fine[::2, ::2] / np.abs(fine).max(), coarse / np.abs(coarse).max(), atol=0.1)


def test_two_slices_have_no_order():
    with pytest.raises(ConfigError, match="at least 3"):
        CheckTrainConfig(data=replace(DATA, slices=2), model=StackCheckConfig(slices=2))
    with pytest.raises(ConfigError, match="pixel"):
        CheckTrainConfig(data=replace(DATA, pixel=0.9), model=StackCheckConfig(pixel=0.9))


def test_batches_are_functions_of_their_number(molecules):
    stacks = SpoiledStacks(molecules, DATA, SpoiledConfig(sides=(40, 56)), 4)
    batch, again = stacks.batch(7), stacks.batch(7)
    assert all(torch.equal(a, b) for a, b in zip(batch, again, strict=True))
    assert batch.kinds[::2].tolist() == [0, 0]
    assert all(40 <= side <= 56 for side in batch.images.shape[2:])
    assert not torch.equal(batch.images[0, 0, :40, :40], stacks.batch(8).images[0, 0, :40, :40])


def test_statistics_are_those_of_numpy_and_know_no_scale_offset_or_plane():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.gamma(2.0, size=(2, 4, 30, 24)).cumsum(1).astype(np.float32))
    got = slice_statistics(images)
    x, y = torch.linspace(-1, 1, 30)[:, None], torch.linspace(-1, 1, 24)
    same = slice_statistics(5 * images + 3 + 2 * x - y)
    torch.testing.assert_close(same, got, atol=2e-2, rtol=2e-2)  # smoothing bends planes at the rims
    # of smooth slices, which the smoothing hardly changes, and which hold no plane
    x, y = torch.linspace(-1, 1, 60)[:, None], torch.cos(np.pi * torch.linspace(-1, 1, 48))
    waves = torch.stack([torch.cos(k * np.pi * x) * y * (k + 1) + 0.5 * y for k in (1, 2, 3)])[None]
    flat = waves[0].flatten(1).double().numpy()
    contrast, centred = np.log(flat.std(1)), flat - flat.mean(1, keepdims=True)
    skewness = (centred**3).mean(1) / flat.std(1) ** 3
    correlations = np.corrcoef(flat)[np.triu_indices(3, 1)]
    expected = [*(contrast - contrast.mean()), *skewness, *correlations]
    np.testing.assert_allclose(slice_statistics(waves)[0], expected, atol=0.03)


def test_training_writes_weights_that_load_and_goes_on(molecules, tmp_path, monkeypatch):
    pack_molecules([molecules[i] for i in range(3)], tmp_path / "some.npz")
    config = CheckTrainConfig(
        **{"out": str(tmp_path / "run"), "name": "check", "steps": 2, "workers": 0, "accelerator": "cpu"},
        **{"molecules": str(tmp_path / "some.npz"), "batch_size": 4, "data": DATA, "precision": "32-true"},
        model=StackCheckConfig(channels=(8, 8), blocks=(1, 1), width=8),
        spoiled=SpoiledConfig(sides=(40, 40)),
    )
    network, name = load_model(train_check(config))
    logits = network.judge(torch.randn(2, 10, 33, 40))
    assert (name, logits.shape) == ("check", (2, len(KINDS)))

    seen, real = [], SpoiledStacks.batch

    def batch(self, number):
        seen.append(number)
        return real(self, number)

    monkeypatch.setattr(SpoiledStacks, "batch", batch)
    again = load_model(train_check(config))[0].state_dict()  # all is done
    assert all(torch.equal(value, again[name]) for name, value in network.state_dict().items())
    assert seen == []
    more = load_model(train_check(replace(config, steps=3)))[0]
    assert seen == [2], "it goes on"
    assert more.config == network.config
    assert any(not torch.equal(value, again[name]) for name, value in more.state_dict().items())
    begun = replace(config, start=str(tmp_path / "run" / "check.safetensors"), out=str(tmp_path / "on"), warm_up=1000)
    on = load_model(train_check(replace(begun, steps=1, learning_rate=1e-9)))[0]
    for name, value in on.named_parameters():
        torch.testing.assert_close(value, more.get_parameter(name), msg="it starts from other weights")
    pack_molecules([molecules[0]], tmp_path / "other.npz")
    with pytest.raises(ConfigError, match="other"):
        train_check(replace(config, steps=4, molecules=str(tmp_path / "other.npz")))


@pytest.mark.parametrize("wrong", [{"scale": -0.1}, {"scale": 2.0}, {"sides": (8, 64)}, {"sides": (64, 48)}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match="spoiled"):
        SpoiledConfig(**wrong)


def test_batches_must_be_even(molecules):
    with pytest.raises(ConfigError, match="even"):
        SpoiledStacks(molecules, DATA, SpoiledConfig(), 5)
