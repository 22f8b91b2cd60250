"""The ASD model's layers against their plain formulas; the position grid and its peaks as a round trip."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from torch import Tensor

from afmol.model import pair_means
from afmol.model.asd.convolution import convolution, convolved_upsampled, upsampled
from afmol.model.asd.encoding import QueryAttention
from afmol.model.asd.grid import PEAK, position_grid
from afmol.model.asd.grouping import rank_within
from afmol.model.asd.nodes import MessagePassing
from afmol.model.asd.peaks import MOST, NEAREST, find_peaks, local_maxima
from afmol.model.asd.unet import SkipGate, standardised
from afmol.model.attention import Attention, GatedSum, mlp
from afmol.model.pair_means import mean_of_pairs, reference
from test_asd import close

seeds = st.integers(0, 2**32 - 1)


# --- layers against their plain formulas


def test_convolving_before_enlarging_changes_nothing():
    torch.manual_seed(0)
    conv, x = convolution(3, 4).double(), torch.randn(2, 3, 2, 3, 2, dtype=torch.double, requires_grad=True)
    for size in ((16, 24, 10), (4, 6, 4), (2, 3, 2)):
        ours, plain = convolved_upsampled(conv, x, size), conv(upsampled(x, size))
        assert close(ours, plain, 1e-12)
        weight = torch.randn_like(plain)
        (a,), (b,) = (torch.autograd.grad((y * weight).sum(), x, retain_graph=True) for y in (ours, plain))
        assert close(a, b, 1e-12)


@pytest.mark.parametrize("local", [False, True])
def test_query_attention_is_a_weighted_mean_over_voxels(local):
    torch.manual_seed(0)
    attention, pixel = QueryAttention(3, 5, local), 0.5
    values, coarsest = torch.randn(2, 3, 8, 16, 4), torch.randn(2, 5, 1, 2, 2)
    query, places = torch.randn(2, 6, 64), torch.rand(2, 6, 2) * 4
    read = attention(attention.level(values, coarsest, pixel), query, places)
    keys = attention.key(values + F.relu(attention.coarsest(upsampled(coarsest, (8, 16, 4)))))
    for b in range(2):
        for r in range(6):
            logits = (query[b, r].softmax(0)[:, None, None, None] * keys[b]).sum(0)
            if local:
                x, y = (torch.arange(8) + 0.5) * pixel, (torch.arange(16) + 0.5) * pixel
                square = (x[:, None] - places[b, r, 0]) ** 2 + (y - places[b, r, 1]) ** 2
                logits = logits - square[..., None] / 2
            share = logits.flatten().softmax(0).view_as(logits)
            assert close(read[b, r], (share * values[b]).sum((1, 2, 3)))


def test_attention_as_in_figure_8():
    """Values are an MLP of each key with each query; the softmax of a key runs over the queries."""
    torch.manual_seed(0)
    attention = Attention(4, 6, 8)
    keys, queries = attention.key(u := torch.randn(3, 5, 4)), attention.query(w := torch.randn(3, 7, 6))
    out = attention(u, w)
    for n in range(3):
        for i in range(5):
            share = torch.stack([keys[n, i] @ q for q in queries[n]]).softmax(0)
            values = [attention.value(F.relu(attention.mix(torch.cat([keys[n, i], q])))) for q in queries[n]]
            assert close(out[n, i], sum(s * v for s, v in zip(share, values, strict=True)))


def test_what_all_nodes_have_in_common_may_come_apart():
    torch.manual_seed(0)
    attention = Attention(4 + 3, 6 + 2, 8)
    u, w, of_keys, of_queries = (torch.randn(3, *shape) for shape in ((5, 4), (7, 6), (3,), (2,)))
    together = [torch.cat([x, c[:, None].expand(-1, x.shape[1], -1)], 2) for x, c in ((u, of_keys), (w, of_queries))]
    assert close(attention(u, w, systems=(of_keys, of_queries)), attention(*together), 1e-6)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (1, 1, 1, 1), (3, 2, 1, 5), (7, 4, 6, 16)])
def test_means_of_pairs_and_their_derivatives(shape):
    n, k, q, width = shape
    torch.manual_seed(0)
    inputs = [torch.randn(n, *x, dtype=torch.double, requires_grad=True) for x in ((k, width), (q, width), (k, q))]
    keys, queries, share = inputs
    plain = torch.einsum("nij,nijc->nic", share, F.relu(keys[:, :, None] + queries[:, None]))
    assert close(mean_of_pairs(*inputs), plain, 1e-12)
    assert close(reference(*inputs), plain, 1e-12)
    if n:
        assert torch.autograd.gradcheck(mean_of_pairs, inputs)
        assert torch.autograd.gradgradcheck(mean_of_pairs, inputs)


def test_what_is_not_finite_stays_so():
    keys = torch.full((1, 1, 16), torch.nan)
    assert mean_of_pairs(keys, torch.randn(1, 3, 16), torch.full((1, 1, 3), 1 / 3)).isnan().all()


def test_means_of_pairs_on_two_threads_are_those_on_one(monkeypatch):
    monkeypatch.setattr(pair_means, "FEWEST_VALUES", 8)
    torch.manual_seed(0)
    inputs = [torch.randn(9, *x, requires_grad=True) for x in ((4, 8), (5, 8), (4, 5))]
    found, threads = [], torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        means = mean_of_pairs(*inputs)
        found.append([means, *torch.autograd.grad(means.square().sum(), inputs)])
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_gated_sum():
    torch.manual_seed(0)
    gated, u = GatedSum(mlp(4, 5, 6), mlp(4, 5, 6)), torch.randn(7, 4)
    one = [torch.sigmoid(gated.gate(x)) * gated.value(x) for x in u]
    assert close(gated(u), sum(one))
    graph = torch.tensor([0, 2, 2, 0, 2, 0, 0])
    expected = torch.stack([one[0] + one[3] + one[5] + one[6], torch.zeros(6), one[1] + one[2] + one[4]])
    assert close(gated.by_graph(u, graph, 3), expected)


@pytest.mark.parametrize("symmetric", [False, True])
def test_messages_bond_by_bond(symmetric):
    torch.manual_seed(0)
    net, states, bonds = MessagePassing(symmetric), torch.randn(2, 4, 20), [(0, 1), (1, 3)]
    expected = states
    for _ in range(2):
        received = torch.zeros_like(states)
        for e in range(2):
            for i, j in bonds + [(j, i) for i, j in bonds]:
                message, back = (net.message(torch.cat([expected[e, a], expected[e, b]])) for a, b in ((i, j), (j, i)))
                received[e, i] += (message + back) / 2 if symmetric else message
        expected = torch.stack([net.update(r, s) for r, s in zip(received, expected, strict=True)])
    assert close(net(states, torch.tensor(bonds), 2), expected)
    assert net(states, torch.tensor(bonds), 0) is states


def test_skip_gates_weigh_voxels():
    torch.manual_seed(0)
    gate, x, coarsest = SkipGate(3, 5), torch.randn(2, 3, 8, 8, 5), torch.randn(2, 5, 1, 1, 2)
    logits = gate.weight(F.relu(gate.own(x)) + F.relu(gate.query(upsampled(coarsest, (8, 8, 5)))))
    weight = logits.flatten(1).softmax(1)
    assert close(gate(x, coarsest), x * weight.view_as(logits))


def test_slices_are_standardised_one_by_one():
    images = 3 + 5 * torch.randn(2, 4, 9, 7)
    images[1, 2] = 7.0  # a constant slice
    out = standardised(images)
    assert close(out.mean((2, 3)), torch.zeros(2, 4), 1e-5)
    expected = torch.ones(2, 4).index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(0.0))
    assert close(out.std((2, 3), correction=0), expected, 1e-5)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=20))
def test_ranks_within_groups(rows):
    group, key = (torch.tensor([row[k] for row in rows], dtype=torch.long) for k in (0, 1))
    expected = [sum(g == h and (k, b) < (key[a], a) for b, (h, k) in enumerate(rows)) for a, (g, _) in enumerate(rows)]
    assert rank_within(group, key.float()).tolist() == expected


# --- the grid and its peaks


def apart(rng: np.random.Generator, n: int, size: tuple[float, float], distance: float) -> np.ndarray:
    """At most n random points (A), at least `distance` apart and 0.1 A off the image's rim; z in -0.8 ... 0."""
    points = np.zeros((0, 3))
    for p in rng.uniform(0, 1, (50 * n, 3)):
        p = np.array([0.1, 0.1, -0.8]) + p * [size[0] - 0.2, size[1] - 0.2, 0.8]
        if len(points) < n and (np.linalg.norm(points - p, axis=1) >= distance).all():
            points = np.vstack([points, p])
    return points


def found(points: list[np.ndarray], shape: tuple[int, int], pixel: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Positions and confidence of the peaks of each image's grid, in the order of its points where it finds all."""
    image = torch.arange(len(points)).repeat_interleave(torch.tensor([len(p) for p in points]))
    grid = position_grid(torch.from_numpy(np.concatenate(points)).float(), image, len(points), shape, pixel)
    positions, owner, confidence = find_peaks(grid, pixel)
    assert (owner.diff() >= 0).all()
    out = []
    for b, true in enumerate(points):
        p, c = positions[owner == b].double().numpy(), confidence[owner == b].numpy()
        place = np.linalg.norm(true[:, None] - p, axis=-1).argmin(1) if len(p) and len(p) == len(true) else slice(None)
        out.append((p[place], c[place]))
    return out


def test_the_grid_holds_normalised_gaussians():
    atoms, image = torch.tensor([[1.0, 2.1, -0.3], [1.9, 0.4, 0.0], [0.3, 0.2, -1.0]]), torch.tensor([0, 2, 2])
    grid = position_grid(atoms, image, 3, (32, 40), 0.125).double().numpy()
    x, y, z = (np.arange(32) + 0.5) * 0.125, (np.arange(40) + 0.5) * 0.125, -1.45 + 0.1 * np.arange(20)
    voxels = np.stack(np.meshgrid(x, y, z, indexing="ij"), -1)
    expected = np.zeros((3, 32, 40, 20))
    for p, b in zip(atoms.numpy(), image, strict=True):
        expected[b] += multivariate_normal.pdf(voxels, mean=p, cov=0.25**2)
    assert np.allclose(grid, expected, atol=1e-5)
    assert grid[0].sum() * 0.125**2 * 0.1 == pytest.approx(1, abs=1e-3)
    assert pytest.approx(multivariate_normal.pdf(np.zeros(3), mean=np.zeros(3), cov=0.25**2)) == PEAK


@settings(max_examples=8)
@given(seeds, st.sampled_from([30, 60]))
def test_peaks_of_molecules_in_a_batch(seed, n):
    rng = np.random.default_rng(seed)
    points = [apart(rng, k, (16.0, 16.0), 0.95) for k in (n, 0, 1)]
    for true, (p, confidence) in zip(points, found(points, (128, 128), 0.125), strict=True):
        assert p.shape == true.shape
        assert np.abs(p - true).max(initial=0) < 0.005
        assert (confidence > 0.99).all()


@settings(max_examples=8)
@given(seeds, st.sampled_from([(0.125, 0.7), (0.25, 0.95)]))
def test_peaks_that_overlap(seed, grid):
    pixel, distance = grid
    rng = np.random.default_rng(seed)
    towards = rng.normal(size=3) * [1, 1, 0.5]
    first = np.array([*rng.uniform(2, 6, 2), -0.4])
    pair = np.stack([first, first + distance * towards / np.linalg.norm(towards)])
    ((p, confidence),) = found([pair], (int(8 / pixel), int(8 / pixel)), pixel)
    assert p.shape == (2, 3)
    assert np.linalg.norm(p - pair, axis=1).max() < 0.02
    assert (confidence > 0.99).all()


def test_confidence_is_half_at_the_published_limit():
    """Of an atom alone: the squared difference to the whole Gaussian over its square, 0.7 at half confidence."""
    atom = torch.tensor([[2.0625, 2.0625, -0.35]])
    grid = position_grid(atom, torch.tensor([0]), 1, (32, 32), 0.125)
    for height in (0.2, 0.7, 1.0, 1.3):
        _, _, confidence = find_peaks(height * grid, 0.125)
        assert float(confidence) == pytest.approx(1 - (1 - height) ** 2 / 1.4, abs=1e-3)


def test_peaks_in_noise_are_the_atoms():
    rng, g = np.random.default_rng(0), torch.Generator().manual_seed(0)
    true = apart(rng, 20, (16.0, 16.0), 1.0)
    grid = position_grid(torch.from_numpy(true).float(), torch.zeros(20, dtype=torch.long), 1, (128, 128), 0.125)
    p, _, confidence = find_peaks(0.8 * grid + 0.05 * PEAK * torch.randn(grid.shape, generator=g), 0.125)
    p = p[confidence > 0.5].double().numpy()
    assert p.shape == true.shape
    assert np.linalg.norm(p[:, None] - true, axis=-1).min(0).max() < 0.05


def test_of_equal_voxels_one_is_the_peak():
    grid = position_grid(torch.tensor([[2.0, 2.0, -0.4]]), torch.tensor([0]), 1, (32, 32), 0.125)
    heights = (grid / PEAK * 64).round() / 64  # eight voxels around the atom are equal
    assert len(local_maxima(heights)) == 1
    (p,), _, _ = find_peaks(grid, 0.125)
    assert close(p, [2.0, 2.0, -0.4], 1e-3)


def test_whatever_the_grid_holds_peaks_are_few_and_apart():
    grid = 3 * PEAK * torch.randn(2, 48, 48, 20, generator=torch.Generator().manual_seed(0))
    p, image, confidence = find_peaks(grid, 0.25)
    assert p.isfinite().all()
    assert torch.bincount(image, minlength=2).max() <= MOST
    for b in range(2):
        mine: Tensor = p[image == b]
        assert (torch.pdist(mine) >= NEAREST).all()
    assert all(len(t) == 0 for t in find_peaks(torch.zeros(2, 8, 8, 20), 0.25))
    assert ((confidence > 0) & (confidence <= 1)).all()
