"""The ASD model: the published sizes, figure 15, the graph builder against plain loops, invariances, gradients."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from afmol.data.samples import Batch
from afmol.elements import CATEGORIES, ELEMENTS
from afmol.errors import ConfigError
from afmol.model.asd import Asd, AsdConfig, asd
from afmol.model.asd.asd import addition_order
from afmol.model.asd.grid import position_grid
from afmol.model.asd.nodes import PartialGraph
from afmol.model.asd.peaks import find_peaks
from afmol.soap import power_spectrum

TINY = AsdConfig(channels=(2, 3, 4, 5), pixel=0.25)
REPORT = replace(TINY, soap="report", shared=False)
VARIANTS = {
    "original": TINY,
    "report": REPORT,
    "shared, no messages": replace(REPORT, shared=True, class_rounds=0, bond_rounds=0),
    "plug-in": replace(REPORT, soap_gradient="plug-in", attention_layers=1),
    "expected": replace(REPORT, soap_gradient="expected", new_node_soap=False),
    "relative": replace(REPORT, coordinates="relative", symmetric_messages=True, scaled_attention=True),
    "figure 6": replace(REPORT, soap_of_new="report", soap_weight=0.5),
    "ours": replace(REPORT, soap_of_new="invariant", soap_weight=0.5, coordinates="relative"),
}
variants = pytest.mark.parametrize("config", VARIANTS.values(), ids=list(VARIANTS))


# --- things to test with


def randomised(config: AsdConfig, seed: int = 0) -> Any:
    """A model with weights so large that every part of it matters; SOAP in units that do not drown the rest."""
    torch.manual_seed(seed)
    model: Any = Asd(replace(config, soap_scale=30.0))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(2 * p if p.ndim > 1 else p + 0.3 * torch.randn(p.shape) if p.ndim else p)
        for attention in model.encoder.attentions:
            attention.key.weight *= 20
    return model


def sample(counts: list[int], seed: int = 0, nx: int = 16, ny: int = 24, pixel: float = 0.25) -> Batch:
    """A batch of noise with `counts` atoms in each image, none deeper than 0.75 A, and random bonds."""
    g = torch.Generator().manual_seed(seed)
    n, molecule = sum(counts), torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    pairs = torch.combinations(torch.arange(n))
    pairs = pairs[(molecule[pairs[:, 0]] == molecule[pairs[:, 1]]) & (torch.rand(len(pairs), generator=g) < 0.4)]
    return Batch(
        torch.randn(len(counts), 10, nx, ny, generator=g),
        torch.rand(n, 3, generator=g) * torch.tensor([nx * pixel, ny * pixel, -0.75]),
        torch.randint(0, len(ELEMENTS), (n,), generator=g),
        molecule,
        pairs.view(-1, 2),
        torch.zeros(len(counts)),
    )


def graph_of(batch: Batch) -> PartialGraph:
    classes = torch.eye(5)[torch.as_tensor(CATEGORIES)[batch.elements]]
    return PartialGraph(batch.positions, classes, batch.molecule, batch.bonds)


def step(model: Any, images: Tensor, old: PartialGraph, new: Tensor) -> tuple[Tensor, Tensor]:
    """Class and bond logits of one step of the builder."""
    logits, bonds, _ = step_with_soap(model, images, old, new)
    return logits, bonds


def step_with_soap(model: Any, images: Tensor, old: PartialGraph, new: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same, and SOAP of the graphs that hold the new atoms, old ones first."""
    levels = model.encoder.levels(model.unet.encode(images))
    logits, image = model.builder.classify(model.encoder, levels, old, new)
    soap = model.builder.soap_with_new(old, new, model.builder.kept_classes(logits))
    return logits, model.builder.bond(old, new, logits, image, soap), soap


def close(a: Any, b: Any, tolerance: float = 2e-5) -> bool:
    a, b = (torch.as_tensor(x, dtype=torch.double) for x in (a, b))
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- sizes


def test_the_original_has_the_published_number_of_parameters():
    model = Asd(AsdConfig())
    assert count(model.unet) + count(model.encoder) == 578_068
    assert count(model) == 625_082


def test_parameters_of_the_reports_model_layer_by_layer():
    """About 1,100,000 in the report, the original's 600,000 almost doubled; our reading of it has 1,134,106."""
    model, w = Asd(AsdConfig(soap="report", shared=False)), 128
    messages = (40 * 64 + 64) + (64 * 64 + 64) + (64 * 20 + 20) + 2 * (20 * 60 + 60)
    initial = (35 * 64 + 64) + (64 * 20 + 20)
    square = w * w + w
    attention = [2 * ((width * w + w) + square) + (2 * w * w + w) + square for width in (20, w)]
    branch = initial + messages + sum(attention) + 2 * w * w
    graph = 2 * ((w * 32 + 32) + (32 * w + w))
    heads = (131 * 64 + 64 + square // 4 + 32) + (256 * 32 + 32 + 32 * 5 + 5) + ((128 + 300 + 128) * 32 + 32 + 32 + 1)
    assert count(model.builder.class_nodes) == count(model.builder.bond_nodes) == branch == 250_240
    assert count(model) == 578_068 + 2 * branch + graph + heads == 1_134_106
    assert count(Asd(AsdConfig(soap="report"))) == 1_134_106 - branch


def test_shapes_of_the_unet():
    model = Asd(AsdConfig())
    with torch.no_grad():
        maps = model.unet.encode(torch.randn(1, 10, 128, 128))
        assert [tuple(x.shape[1:]) for x in maps] == [
            *[(4, 128, 128, 10), (8, 64, 64, 5)],
            *[(16, 32, 32, 4), (32, 16, 16, 2)],
        ]
        assert model.unet.decode(maps).shape == (1, 128, 128, 20)
        assert Asd(TINY).unet(torch.randn(2, 10, 20, 30)).shape == (2, 20, 30, 20)  # filled up to 24 x 32 and cut


def test_shapes_at_each_arrow_of_figure_15():
    net: Any = Asd(REPORT).builder.class_nodes
    shapes = []
    for layer in (net.first, net.messages, *net.attentions, net.gather):
        layer.register_forward_hook(lambda _, x, y: shapes.extend([tuple(x[0].shape), tuple(y.shape)]))
    old = graph_of(sample([7]))
    states = net.initial(old.positions, old.classes, torch.zeros(7, 15, 27))
    assert net(states, old.bonds, 3).shape == (7, 128)
    expand = [((15, 7, 35), (15, 7, 20)), ((15, 7, 20), (15, 7, 20))]
    attend = [((7, 15, 20), (7, 15, 128)), ((7, 15, 128), (7, 15, 128)), ((7, 15, 128), (7, 128))]
    assert shapes == [shape for pair in expand + attend for shape in pair]


# --- the graph builder


@variants
def test_the_order_of_atoms_changes_nothing(config):
    model, batch, new = randomised(config), sample([5, 6]), torch.rand(2, 3)
    old = graph_of(batch)
    shuffle = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    shuffled = PartialGraph(*(t[shuffle] for t in old[:3]), shuffle.argsort()[old.bonds].flip(0))
    with torch.no_grad():
        (a, bonds), (b, shuffled_bonds) = (step(model, batch.images, graph, new) for graph in (old, shuffled))
    assert close(a, b)
    assert close(bonds[shuffle], shuffled_bonds)
    assert bonds.std() > 1e-3
    assert a.std(0).min() > 1e-3


@variants
def test_a_batch_of_two_is_two_batches(config):
    model, batch, new = randomised(config), sample([5, 0, 6]), torch.rand(3, 3)
    old = graph_of(batch)
    with torch.no_grad():
        logits, bonds = step(model, batch.images, old, new)
        for b, (start, stop) in enumerate(((0, 5), (5, 5), (5, 11))):
            mine = old.bonds[(old.bonds[:, 0] >= start) & (old.bonds[:, 0] < stop)] - start
            alone = PartialGraph(old.positions[start:stop], old.classes[start:stop], old.graph[start:stop] - b, mine)
            own_logits, own_bonds = step(model, batch.images[b : b + 1], alone, new[b : b + 1])
            assert close(logits[b], own_logits[0])
            assert close(bonds[start:stop], own_bonds)


def test_several_graphs_of_an_image_share_its_encoding():
    model, batch = randomised(REPORT), sample([4, 4])
    left, new = graph_of(sample([4, 4, 4, 4], seed=1)), torch.rand(4, 3)
    with torch.no_grad():
        once, twice = (step(model, batch.images.repeat(r, 1, 1, 1), left, new) for r in (1, 2))
    assert all(close(a, b) for a, b in zip(once, twice, strict=True))


def seen_by(net: Any, call: Any) -> list[Tensor]:
    """The inputs of a node network's first layer during a call."""
    seen: list[Tensor] = []
    hook = net.first.register_forward_hook(lambda _, x, y: seen.append(x[0]))
    call()
    hook.remove()
    return seen


@pytest.mark.parametrize("gradient", ["none", "plug-in", "expected"])
def test_nodes_are_described_by_soap_of_their_partial_graph(gradient):
    model, batch, new = randomised(replace(REPORT, soap_gradient=gradient)), sample([4, 5]), torch.rand(2, 3)
    old, out = graph_of(batch), []
    (inputs,) = seen_by(model.builder.class_nodes, lambda: out.append(step(model, batch.images, old, new)))
    after, added = seen_by(model.builder.bond_nodes, lambda: step(model, batch.images, old, new))
    probabilities = out[0][0].softmax(1)
    labels = F.one_hot(probabilities.argmax(1), 5).float()
    for b, mine in enumerate((slice(0, 4), slice(4, 9))):
        p, c, soft = old.positions[mine], old.classes[mine], gradient != "none"
        before = power_spectrum(p, c.argmax(1), backend="torch").flatten(2) / 30
        assert close(inputs[:, mine, 8:], before.transpose(0, 1))
        p, c = torch.cat([p, new[b : b + 1]]), torch.cat([c, (probabilities if soft else labels)[b : b + 1]])
        both = power_spectrum(p, c, backend="torch", expected=gradient == "expected").flatten(2).transpose(0, 1) / 30
        assert close(torch.cat([after[:, mine], added[:, b : b + 1]], 1)[:, :, 8:], both)
        assert close(inputs[7, mine, :8], torch.cat([old.positions[mine], old.classes[mine]], 1))
        assert close(added[3, b, :8], torch.cat([new[b], probabilities[b]]))


def test_new_nodes_without_soap():
    model, batch = randomised(replace(REPORT, new_node_soap=False)), sample([4])
    after, added = seen_by(
        model.builder.bond_nodes, lambda: step(model, batch.images, graph_of(batch), torch.rand(1, 3))
    )
    assert (added[..., 8:] == 0).all()
    assert (after[..., 8:] != 0).any()


def test_a_shift_of_image_and_graph_changes_nothing_with_relative_coordinates():
    """By 2 A, with the rim out of sight: a convolution sees 63 pixels far."""
    config = replace(REPORT, channels=(2, 2, 2, 2))
    old, new = graph_of(sample([5], nx=10, ny=10)), torch.tensor([[21.0, 21.0, -0.3]])
    images = torch.randn(1, 10, 176, 176, generator=torch.Generator().manual_seed(0))
    old = old._replace(positions=old.positions + torch.tensor([20.0, 20.0, 0.0]))
    shift = torch.tensor([2.0, -2.0, 0.0])
    moved = old._replace(positions=old.positions + shift)
    for coordinates, same in (("relative", True), ("absolute", False)):
        model = randomised(replace(config, coordinates=coordinates))
        with torch.no_grad():
            a = step(model, images, old, new)
            b = step(model, images.roll((8, -8), (2, 3)), moved, new + shift)
        assert close(a[0], b[0]) is close(a[1], b[1]) is same


@pytest.mark.parametrize(
    "wrong",
    [
        *({"slices": 5}, {"pixel": 0.0}, {"class_rounds": -1}, {"removals": 0}, {"soap_scale": 0.0}),
        *({"soap_gradient": "expected"}, {"attention_layers": 0}, {"channels": (4, 8, 16, 0)}),
        *({"soap_weight": 1.0}, {"soap_of_new": "report"}, {"soap": "report", "soap_weight": -1.0}),
        {"soap": "report", "soap_of_new": "invariant", "soap_gradient": "plug-in"},
    ],
)
def test_settings_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ConfigError):
        AsdConfig(**wrong)


# --- whole molecules


def plain_loop(model: Any, images: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Class probabilities and bond probabilities (later, earlier): one molecule, one atom at a time, nothing reused."""
    classes, seen, said = torch.zeros(0, 5), [], torch.zeros(0, 15, 27)
    bonds, matrix = torch.zeros(0, 2, dtype=torch.long), torch.zeros(len(positions), len(positions))
    for k in range(len(positions)):
        old = PartialGraph(positions[:k], classes, torch.zeros(k, dtype=torch.long), bonds)
        if model.config.soap_of_new != "computed":
            old = old._replace(soap=said)
        logits, bond, said = step_with_soap(model, images, old, positions[k : k + 1])
        probabilities = logits.softmax(1)
        label = torch.eye(5)[probabilities.argmax(1)]
        classes = torch.cat([classes, label if model.config.soap_gradient == "none" else probabilities])
        seen.append(probabilities[0])
        for j in range(k):
            matrix[k, j] = bond[j].sigmoid()
            if matrix[k, j] > 0.5:
                bonds = torch.cat([bonds, torch.tensor([[j, k]])])
    return torch.stack(seen) if seen else torch.zeros(0, 5), matrix


@variants
def test_prediction_is_the_plain_loop(config, monkeypatch):
    model, images = randomised(config), sample([1, 1, 1]).images
    true = [[0.7, 0.9, -0.1], [1.9, 4.6, 0.0], [3.1, 2.0, -0.4], [0.9, 2.9, -0.2], [2.2, 3.3, 0.1]]
    atoms, image = torch.tensor(true + true[1:4]), torch.tensor([0] * 5 + [2] * 3)
    grid = position_grid(atoms, image, 3, (16, 24), 0.25)
    monkeypatch.setattr(model.unet, "decode", lambda maps: grid)
    for _ in range(20):  # until some of the bonds are predicted and some are not
        molecules = model.predict(images, order="y")
        likely = np.concatenate([m.bond_probabilities for m in molecules])
        if 0 < (n_bonds := (likely > 0.5).sum()) < 13:
            break
        with torch.no_grad():
            model.builder.bond_head[2].bias -= torch.as_tensor(likely).logit().median()
    positions, owner, _ = find_peaks(grid, 0.25)
    for b, molecule in enumerate(molecules):
        mine = positions[owner == b]
        mine = mine[mine[:, 1].argsort(descending=True)]
        with torch.no_grad():
            classes, matrix = plain_loop(model, images[b : b + 1], mine)
        assert len(molecule) == len(mine) == (5, 0, 3)[b]
        assert np.allclose(molecule.positions[:, :2], mine[:, :2], atol=1e-6)
        assert close(molecule.class_probabilities, classes)
        for (i, j), p in zip(molecule.bonds, molecule.bond_probabilities, strict=True):
            assert close(p, matrix[j, i])
        assert len(molecule.bonds) == (matrix >= 0.01).sum()
    assert 0 < n_bonds < 13
    assert molecules[0].positions[:, 2].max() == 0
    assert (molecules[0].class_probabilities.argmax(1) == molecules[0].classes).all()


def test_growing_on_given_positions_is_prediction_on_such_peaks(monkeypatch):
    model, batch = randomised(REPORT), sample([6, 4, 5], seed=3, nx=32, ny=32)
    there = (batch.positions, batch.molecule, torch.ones(len(batch.positions)))
    monkeypatch.setattr(asd, "find_peaks", lambda grid, pixel: there)
    for a, b in zip(model.predict(batch.images), model.grow(batch.images, *there[:2]), strict=True):
        assert len(a) > 3
        for name in ("positions", "class_probabilities", "confidence", "bonds", "bond_probabilities"):
            assert np.array_equal(getattr(a, name), getattr(b, name))


def test_predictions_of_a_batch_are_those_of_its_images(monkeypatch):
    model, batch = randomised(REPORT), sample([6, 4, 5], seed=3, nx=32, ny=32)
    grid = position_grid(batch.positions, batch.molecule, 3, (32, 32), 0.25)
    found = []
    for chosen in ([0, 1, 2], [0], [1], [2]):
        monkeypatch.setattr(model.unet, "decode", lambda maps, chosen=chosen: grid[chosen])
        found += model.predict(batch.images[chosen])
    assert [len(m) for m in found[:3]] == [6, 4, 5]
    for a, b in zip(found[:3], found[3:], strict=True):
        for name in ("positions", "class_probabilities", "confidence", "bonds", "bond_probabilities"):
            assert np.allclose(getattr(a, name), getattr(b, name), atol=1e-4)


@pytest.mark.parametrize("order", ["x", "y", "z", "random"])
def test_the_order_of_addition(order):
    positions, image = torch.rand(30, 3), torch.arange(3).repeat_interleave(10)
    place = addition_order(positions, image, order)
    assert sorted(place.tolist()) == list(range(30))
    assert (image[place].diff() >= 0).all()
    if order == "random":
        assert (addition_order(positions[10:], image[10:], order) + 10 == place[10:]).all()  # an image's own
        assert place[:10].tolist() != sorted(place[:10].tolist())
    else:
        key = positions[place, "xyz".index(order)].view(3, 10)
        assert (key.diff(dim=1) <= 0).all()
