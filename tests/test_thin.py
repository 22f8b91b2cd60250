"""tools/thin.py: what is left of a network does what the whole one did, as well as so few channels can."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from afmol.model import OnePass, OnePassConfig

TOOL = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "thin.py"))


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_the_weights_left_are_those_of_least_squares(seed, keep):
    """Against numpy's solver with the inputs of the channels that are left; the loss is its residual."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(200, 5 * 3)) @ rng.normal(size=(15, 15)) + rng.normal(size=(200, 15))
    weights = rng.normal(size=(4, 5, 3))
    output = inputs @ weights.reshape(4, 15).T
    products = torch.from_numpy(inputs.T @ inputs / len(inputs))
    left, kept, lost = TOOL["eliminate"](products, torch.from_numpy(weights), keep)
    of_left = inputs.reshape(-1, 5, 3)[:, left.numpy()].reshape(-1, 3 * keep)
    best = np.linalg.lstsq(of_left, output, rcond=None)[0]
    np.testing.assert_allclose(kept.numpy().reshape(4, -1).T, best, atol=1e-3 * np.abs(best).max())
    residual = np.square(output - of_left @ best).sum() / np.square(output).sum()
    assert lost == pytest.approx(residual, rel=1e-3, abs=1e-4)


def test_the_first_channel_to_leave_is_the_one_that_costs_least():
    rng = np.random.default_rng(1)
    inputs, weights = rng.normal(size=(500, 4, 2)) * [[[3.0], [1.0], [0.1], [2.0]]], np.ones((3, 4, 2))
    products = torch.from_numpy(np.einsum("nct,nds->ctds", inputs, inputs).reshape(8, 8) / 500)
    left, _, lost = TOOL["eliminate"](products, torch.from_numpy(weights), 3)
    assert left.tolist() == [0, 1, 3]
    assert lost < 0.01


def test_channels_that_say_the_same_leave_and_nothing_changes():
    """A network whose blocks have each channel twice, against the one of half as many channels."""
    torch.manual_seed(0)
    model = OnePass(OnePassConfig(slices=4, channels=(8, 12), blocks=1, width=8, rounds=1)).eval()
    with torch.no_grad():
        torch.nn.init.normal_(model.posnet.head.weight, std=0.1)
        for _, _, block in TOOL["by_level"](model.posnet):
            half = block.conv1.out_channels // 2
            block.conv1.weight[half:] = block.conv1.weight[:half]
            torch.nn.init.kaiming_normal_(block.conv2.weight)
    images = torch.randn(6, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model.posnet(images)[1]
        smaller = TOOL["thin"](model, [images[:3], images[3:]], (4, 6))
        after, fewer = smaller.posnet(images)[1], TOOL["thin"](smaller, [images], (1, 1)).posnet(images)[1]
    assert smaller.config.inner == (4, 6)
    assert [tuple(block.conv1.weight.shape) for _, _, block in TOOL["by_level"](smaller.posnet)] == [
        (4, 8, 3, 3), (6, 12, 3, 3), (4, 8, 3, 3),
    ]  # fmt: skip
    assert float((after - before).abs().max()) < 1e-3 * float((before - before.mean()).abs().max())
    assert float((fewer - before).abs().max()) > 10 * float((after - before).abs().max())
