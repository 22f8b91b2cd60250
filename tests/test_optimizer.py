"""Muon: orthogonal steps against a singular value decomposition, what is left to AdamW, resume of a checkpoint."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from afmol.checkpoint import load_training, save_training
from afmol.optimizer import MOMENTUM, SMALLEST, Muon, orthogonal, parameter_groups


def matrix(n: int, m: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, m, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 1000), st.floats(-6, 6))
def test_steps_are_orthogonal(n, m, seed, decades):
    """The singular vectors of the matrix, values near 1; whatever its scale, turned if it is turned."""
    a = matrix(n, m, seed)
    got, (u, s, v) = orthogonal(a * 10**decades), torch.linalg.svd(a, full_matrices=False)
    values = u.T @ got @ v.T
    well = (s > 0.01 * s.max()).numpy()
    diagonal = values.diagonal().numpy()[well]
    assert (diagonal > 0.6).all()
    assert (diagonal < 1.3).all()
    np.testing.assert_allclose((values - values.diagonal().diag()).numpy(), 0, atol=2e-3)
    turn = torch.linalg.qr(matrix(n, n, seed + 1))[0]
    np.testing.assert_allclose(orthogonal(turn @ a), turn @ orthogonal(a), atol=2e-3)


def stepped(optimizer: torch.optim.Optimizer, model: nn.Module, seeds: range) -> None:
    for seed in seeds:
        optimizer.zero_grad()
        model(matrix(8, 48, seed)).square().mean().backward()
        optimizer.step()


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(48, 40), nn.Tanh(), nn.Linear(40, 4))


def test_the_first_step_by_hand():
    """Of a matrix the length of AdamW's: a root mean square of 0.2 times the rate in its wider direction."""
    model = network()
    before = model[0].weight.detach().clone()
    model(matrix(8, 48)).square().mean().backward()
    gradient = model[0].weight.grad.clone()
    Muon(parameter_groups(model, 0.1, orthogonal=True), lr=0.01).step()
    change = model[0].weight.detach() - before * (1 - 0.01 * 0.1)
    nesterov = gradient * (1 - MOMENTUM**2)
    wanted = -0.01 * 0.2 * 48**0.5 * orthogonal(nesterov)
    np.testing.assert_allclose(change, wanted, atol=1e-6)


def test_the_rest_is_left_to_adamw():
    """Where all weights are small matrices the steps are AdamW's; otherwise those of biases and small ones."""
    models = [nn.Sequential(nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 4)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    kinds = (torch.optim.AdamW, False), (Muon, True)
    for model, (kind, orthogonally) in zip(models, kinds, strict=True):
        stepped(kind(parameter_groups(model, 0.1, orthogonal=orthogonally), lr=0.01), model, range(5))
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        np.testing.assert_array_equal(a.detach(), b.detach())
    large, small, flat = parameter_groups(network(), 0.1, orthogonal=True)
    assert [tuple(p.shape) for p in large["params"]] == [(40, 48)]
    assert min(40, 48) >= SMALLEST
    assert [tuple(p.shape) for p in small["params"]] == [(4, 40)]
    assert [tuple(p.shape) for p in flat["params"]] == [(40,), (4,)]
    assert (large["weight_decay"], small["weight_decay"], flat["weight_decay"]) == (0.1, 0.1, 0.0)


def test_convolutions_step_as_their_flattened_weights():
    conv, flat = nn.Conv2d(40, 48, 3, bias=False), nn.Linear(360, 48, bias=False)
    flat.weight.data = conv.weight.data.flatten(1).clone()
    for model in (conv, flat):
        gradient = matrix(48, 360, 9)
        model.weight.grad = gradient.view_as(model.weight).clone()
        Muon(parameter_groups(model, 0.0, orthogonal=True), lr=0.1).step()
    np.testing.assert_array_equal(conv.weight.detach().flatten(1), flat.weight.detach())


def test_a_run_that_goes_on_takes_the_same_steps(tmp_path):
    straight, stopped = network(), network()
    optimizer = Muon(parameter_groups(straight, 0.1, orthogonal=True), lr=0.01)
    stepped(optimizer, straight, range(6))
    first = Muon(parameter_groups(stopped, 0.1, orthogonal=True), lr=0.01)
    stepped(first, stopped, range(3))
    save_training(tmp_path / "c.safetensors", stopped, first, None, 3, {})
    other = network()
    second = Muon(parameter_groups(other, 0.1, orthogonal=True), lr=0.01)
    assert load_training(tmp_path / "c.safetensors", other, second, None, {}) == 3
    stepped(second, other, range(3, 6))
    for a, b in zip(straight.parameters(), other.parameters(), strict=True):
        np.testing.assert_array_equal(a.detach(), b.detach())


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_it_learns(target):
    model = network()
    optimizer = Muon(parameter_groups(model, 0.0, orthogonal=True), lr=0.02)
    curve = []
    for seed in range(60):
        optimizer.zero_grad()
        loss = (model(matrix(8, 48, seed % 2)) - target).square().mean()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    assert curve[-1] < 0.05 * curve[0]
