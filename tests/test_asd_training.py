"""How the ASD model is trained: removal of atoms, losses, what each mode trains; single steps for statistics."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from afmol.data.samples import Batch
from afmol.elements import CATEGORIES
from afmol.errors import ConfigError
from afmol.model.asd import Asd
from afmol.model.asd.crop import cropped
from afmol.model.asd.grid import position_grid
from afmol.model.asd.nodes import PartialGraph
from afmol.model.asd.removal import JITTER_CUT, Removal, remove
from afmol.model.asd.unet import SkipGate
from afmol.soap import power_spectrum
from test_asd import REPORT, TINY, close, graph_of, randomised, sample, step, step_with_soap, variants

TRAINED = {
    "all": {"position", "class", "bond"},
    "cnn": {"position", "class"},
    "coarse": {"position", "class"},
    "classes": {"class"},
    "graph": {"class", "bond"},
    "builder": {"class", "bond"},
    "bonds": {"bond"},
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def emptied(batch: Batch, molecules: list[int]) -> Batch:
    """The batch with the atoms of some images taken away."""
    keep = ~torch.isin(batch.molecule, torch.tensor(molecules))
    bonds = (keep.cumsum(0) - 1)[batch.bonds[keep[batch.bonds].all(1)]]
    left = {"positions": batch.positions[keep], "elements": batch.elements[keep], "molecule": batch.molecule[keep]}
    return batch._replace(bonds=bonds, **left)


# --- removal


def check(batch: Batch, task: Removal, removals: int, depth: float) -> None:
    """Each partial graph against the labels, atom by atom."""
    n, classes = len(batch.images), torch.as_tensor(CATEGORIES)[batch.elements].tolist()
    for g in range(removals * n):
        mine = (batch.molecule == g % n) & (batch.positions[:, 2] >= -depth)
        atoms = torch.nonzero(mine)[:, 0].tolist()
        rows = torch.nonzero(task.left.graph == g)[:, 0].tolist()
        kept = [next(a for a in atoms if close(batch.positions[a], task.left.positions[row], 1e-9)) for row in rows]
        gone = [a for a in atoms if a not in kept]
        bonds = {tuple(b) for b in batch.bonds.tolist()}
        expected = {(rows[i], rows[j]) for i, a in enumerate(kept) for j, b in enumerate(kept) if (a, b) in bonds}
        assert {tuple(b) for b in task.left.bonds.tolist() if b[0] in rows} == expected
        assert task.left.classes[rows].argmax(1).tolist() == [classes[a] for a in kept]
        if not gone:
            assert task.classes[g] == -1
            continue
        target = min(gone, key=lambda a: float((batch.positions[a] - task.positions[g]).norm()))
        assert task.classes[g] == classes[target]
        bonded = [(min(a, target), max(a, target)) in bonds for a in kept]
        assert task.bonded[rows].tolist() == bonded


@pytest.mark.parametrize("order", ["random", "x", "y", "z"])
def test_a_removal_is_what_its_graph_lacks(order):
    batch = sample([6, 0, 1, 9])
    batch.positions[::4, 2] = -1.2  # labelled, but deeper than the model is asked for
    for seed in range(5):
        task = remove(batch, 0.8, order, 3, generator(seed))
        check(batch, task, 3, 0.8)
        if order == "random":
            continue
        axis, exact = "xyz".index(order), remove(batch, 0.8, order, 3, generator(seed), jitter=False)
        for g in torch.nonzero(exact.classes >= 0)[:, 0]:
            left = exact.left.positions[exact.left.graph == g, axis]
            assert (left >= exact.positions[g, axis]).all()  # the largest of the removed comes back next


def test_statistics_of_the_procedure():
    """Any number of removed atoms, any removed atom picked, a jitter of (0.2, 0.2, 0.05) A cut at 0.5 A."""
    # atoms 3 A apart: the atom nearest to the jittered position is the picked one
    positions = torch.stack([3.0 * torch.arange(4.0), torch.zeros(4), torch.tensor([0.0, -0.2, -0.4, -0.6])], 1)
    no_bonds = torch.zeros(0, 2, dtype=torch.int64)
    images, molecule = torch.zeros(1, 10, 8, 8), torch.zeros(4, dtype=torch.int64)
    batch = Batch(images, positions, torch.arange(4), molecule, no_bonds, torch.zeros(1))
    task = remove(batch, 0.8, "random", 20000, generator())
    removed = 4 - torch.bincount(task.left.graph, minlength=20000)
    share = torch.bincount(removed, minlength=5) / 20000
    assert (share - 0.2).abs().max() < 0.015
    there = task.classes >= 0
    assert (there == (removed > 0)).all()
    atom = torch.cdist(task.positions[there], positions).argmin(1)
    assert (torch.bincount(atom, minlength=4) / there.sum() - 0.25).abs().max() < 0.015
    away = task.positions[there] - positions[atom]
    length = away.norm(dim=1)
    assert length.max() < JITTER_CUT + 1e-4
    # P(x^2 + y^2 > cut^2) = exp(-(0.5 / 0.2)^2 / 2), z adds little
    assert float((length > JITTER_CUT - 1e-4).float().mean()) == pytest.approx(np.exp(-3.125), abs=0.008)
    assert close(away.std(0), [0.19, 0.19, 0.05], 0.01)
    assert close(away.mean(0), [0.0, 0.0, 0.0], 0.01)


def test_random_numbers_come_from_the_generator():
    batch = sample([6, 5])
    a, b, c = (remove(batch, 0.8, "random", 2, generator(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip([*a.left[:4], *a[1:]], [*b.left[:4], *b[1:]], strict=True))
    assert not torch.equal(a.positions, c.positions)


# --- losses


@variants
def test_losses_by_hand(config):
    """Means over graphs as published: the bonds' over each graph's atoms first, nothing removed counting as 0."""
    model, batch = randomised(replace(config, removals=2)), sample([5, 0, 6, 1])
    losses = model(batch, generator(3))
    task = remove(batch, 0.8, "random", 2, generator(3))
    with torch.no_grad():
        logits, bonds = step(model, batch.images, task.left, task.positions)
        grid = model.unet(batch.images)
    assert close(losses["position"], 100 * (grid - position_grid(*batch[1:5:2], 4, (16, 24), 0.25)).square().mean())
    classes, bond = 0.0, 0.0
    for g in range(8):
        mine = task.left.graph == g
        if task.classes[g] >= 0:
            classes -= float(logits[g].log_softmax(0)[task.classes[g]]) / 8
            sign = 2.0 * task.bonded[mine] - 1
            bond -= float((sign * bonds[mine]).sigmoid().log().mean()) / 8 if mine.any() else 0.0
    assert close(losses["class"], classes)
    assert close(losses["bond"], bond)
    assert bond > 0.01
    assert classes > 0.01


@pytest.mark.parametrize("train", TRAINED)
@pytest.mark.parametrize("config", [TINY, REPORT], ids=["original", "report"])
def test_losses_are_finite_whatever_is_missing(config, train):
    model, whole = Asd(replace(config, train=train)), sample([4, 3])
    if "position" not in TRAINED[train]:
        model.unet.decode = None  # not needed where the grid is not trained
    for batch in (whole, emptied(whole, [0]), emptied(whole, [0, 1]), sample([1, 1])):
        for seed in range(2):
            losses = model(batch, generator(seed))
            assert losses.keys() == TRAINED[train]
            assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    if "bond" in TRAINED[train]:
        assert losses["bond"] == 0  # single atoms have no bonds
        assert all(len(t) == 0 for t in model.single_steps(emptied(whole, [0, 1]), generator()))


@pytest.mark.parametrize("train", TRAINED)
def test_losses_under_autocast_are_nearly_those_of_float32(train):
    model, batch = Asd(replace(TINY, train=train)), sample([4, 3])
    exact = model(batch, generator())
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(batch, generator())
    assert all(torch.isclose(rough[name], exact[name], rtol=0.1, atol=0.02) for name in exact)


# --- gradients


def trained(model: Any, needed: set[str]) -> set[str]:
    """Names of the parameters whose gradient is not zero after as many batches, up to four, as it takes."""
    got: set[str] = set()
    for seed in range(4):
        if not needed <= got:
            sum(model(sample([6, 7, 5], seed), generator(seed)).values()).backward()
            got = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    return got


@pytest.mark.parametrize("train", TRAINED)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("soap", ["none", "report"])
def test_gradients_reach_what_is_trained_and_nothing_frozen(soap, shared, train):
    model = randomised(replace(TINY, soap=soap, shared=shared, train=train, removals=3), seed=1)
    bonds = {"builder.bond_head"} | (set() if shared else {"builder.nodes.1"})
    classes = {"builder.nodes.0", "builder.graph_encoding", "builder.query", "builder.class_head"}
    parts = {
        "all": {"unet", "encoder", "builder"},
        "cnn": {"unet", "encoder"} | classes,
        "coarse": {"unet.encoder", "encoder", *(f"unet.{p}.{k}" for p in ("gates", "widen", "merge") for k in (0, 1))}
        | classes,
        "classes": {"unet.encoder", "encoder"} | classes,
        "graph": {"encoder", "builder"},
        "builder": {"builder"},
        "bonds": bonds,
    }[train]
    wanted = {name for name, _ in model.named_parameters() if any(name.startswith(f"{part}.") for part in parts)}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == wanted
    # a constant beside a softmax changes nothing: the biases of the last layer before one
    free = ("gates.0.weight.bias", "gates.1.weight.bias", "gates.2.weight.bias", "key.bias")
    needed = {name for name in wanted if not name.endswith(free)}
    got = trained(model, needed)
    assert got <= wanted
    assert needed - got == set()


def bond_gradient(config: Any) -> Tensor:
    """Gradient of the bond loss in the class head's last bias, where the new node's own class is hidden."""
    model = randomised(replace(config, removals=4))
    with torch.no_grad():
        model.builder.bond_head[0].weight[:, model.builder.class_nodes.width :][:, : 15 * 20] = 0.0
    model(sample([6, 7]), generator())["bond"].backward()
    return model.builder.class_head[2].bias.grad


def test_the_bonds_gradient_goes_through_soap_where_it_is_asked_for():
    assert bond_gradient(REPORT).abs().max() == 0
    plug_in, expected = (bond_gradient(replace(REPORT, soap_gradient=kind)) for kind in ("plug-in", "expected"))
    assert min(plug_in.abs().max(), expected.abs().max()) > 1e-6
    assert (plug_in - expected).abs().max() > 1e-6


@pytest.mark.parametrize("kind", ["plug-in", "expected"])
def test_the_gradient_through_soap_is_the_slope(kind):
    """Finite differences of the bond logits in the class logits."""
    model, batch = randomised(replace(REPORT, soap_gradient=kind)).double(), sample([5])
    old = PartialGraph(*(t.double() if t.is_floating_point() else t for t in graph_of(batch)[:4]))
    new, image = torch.rand(1, 3).double(), torch.randn(1, 128).double()
    logits, towards = torch.randn(2, 1, 5, dtype=torch.double)
    logits.requires_grad_()

    def bonds(logits: Tensor) -> Tensor:
        soap = model.builder.soap_with_new(old, new, model.builder.kept_classes(logits))
        return model.builder.bond(old, new, logits, image, soap).sum()

    bonds(logits).backward()
    ahead, back = (bonds(logits + s * 1e-5 * towards) for s in (1, -1))
    assert close(((ahead - back) / 2e-5).detach(), (logits.grad * towards).sum(), 1e-6)


# --- SOAP as a target (report, figure 6)


@pytest.mark.parametrize("of_new", ["computed", "report", "invariant"])
def test_the_loss_of_soap_by_hand(of_new):
    """Where an atom was added: computed, against SOAP with its true class; said, with the class that it was told."""
    gradient = "plug-in" if of_new == "computed" else "none"
    config = replace(REPORT, soap_of_new=of_new, soap_gradient=gradient, soap_weight=0.3, removals=2)
    model, batch = randomised(config), sample([5, 0, 6, 1])
    loss = model(batch, generator(3))["soap"]
    task = remove(batch, 0.8, "random", 2, generator(3))
    with torch.no_grad():
        logits, _, soap = step_with_soap(model, batch.images, task.left, task.positions)
    errors = []
    for g in torch.nonzero(task.classes >= 0)[:, 0].tolist():
        mine = task.left.graph == g
        kind = int(task.classes[g] if of_new == "computed" else logits[g].argmax())
        labels = torch.cat([task.left.classes[mine].argmax(1), torch.tensor([kind])])
        there = torch.cat([task.left.positions[mine], task.positions[g : g + 1]])
        wanted = power_spectrum(there, labels, backend="torch").flatten(2)
        found = torch.cat([soap[: len(mine)][mine], soap[len(mine) + g][None]])
        errors.append(((found - wanted) / 100).square())
    assert len(errors) > 3
    assert close(loss.detach(), 0.3 * torch.cat(errors).mean(), 1e-4)


def test_soap_as_a_target_teaches_the_class_or_the_network():
    """Its gradient goes to the class where SOAP is of probabilities, else to the network that says it."""
    for of_new, gradient in (("computed", "plug-in"), ("report", "none"), ("invariant", "none")):
        model = randomised(replace(REPORT, soap_of_new=of_new, soap_gradient=gradient, soap_weight=1.0, removals=3))
        model(sample([6, 7, 5]), generator())["soap"].backward()
        got = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        assert any("class_head" in name for name in got) == (of_new == "computed")
        dead = {name for name, _ in model.named_parameters() if "soap_predictor" in name} - got
        # a constant beside a softmax changes nothing: the last bias of queries, and that of keys with it
        assert {name for name in dead if not name.endswith(("query.2.bias", "key.2.bias"))} == set()


# --- parts of images, starting from other weights


def test_a_part_shows_what_the_whole_shows():
    """Pixels, atoms and bonds of a part are those of the whole, and every image that has atoms shows one."""
    batch, side = emptied(sample([6, 3, 9]), [1]), 9
    shape = batch.images.shape
    batch.images[:] = torch.arange(batch.images.numel()).view(shape)
    bonds = {frozenset(map(tuple, batch.positions[pair].tolist())) for pair in batch.bonds}
    places = set()
    for seed in range(20):
        part = cropped(batch, side, TINY.pixel, generator(seed))
        assert part.molecule.unique().tolist() == [0, 2]
        place = (part.images[:, 0, 0, 0] - batch.images[:, 0, 0, 0]).long()
        start = torch.stack([place // shape[3], place % shape[3]], dim=1)
        places |= set(map(tuple, start.tolist()))
        for b, (x, y) in enumerate(start.tolist()):
            assert torch.equal(part.images[b], batch.images[b, :, x : x + side, y : y + side])
        corner = torch.cat([TINY.pixel * start, torch.zeros(3, 1)], dim=1)
        in_place = batch.positions - corner[batch.molecule]
        inside = ((in_place[:, :2] > 0) & (in_place[:, :2] < side * TINY.pixel)).all(1)
        assert close(part.positions, in_place[inside])
        both = {frozenset(map(tuple, batch.positions[p].tolist())) for p in batch.bonds if inside[p].all()}
        index = torch.nonzero(inside)[:, 0]
        assert {frozenset(map(tuple, batch.positions[index[p]].tolist())) for p in part.bonds} == both <= bonds
    assert len(places) > 20


def test_parts_are_trained_on_and_whole_images_judged():
    model, batch = randomised(replace(TINY, train="cnn")), sample([6, 7])
    parts = randomised(replace(TINY, train="cnn", crop=8))
    losses = {mode: [m.train(mode)(batch, generator())["position"] for m in (model, parts)] for mode in (True, False)}
    assert close(*losses[False])
    assert not close(*losses[True], 1e-3)


def test_the_coarse_grid_is_half_as_fine(monkeypatch):
    """Means over 2 x 2 x 2 voxels, in the same frame; the images' width and height need not be even."""
    model, batch = Asd(replace(TINY, train="coarse")), sample([6, 7], nx=17, ny=24)
    atoms = graph_of(batch)
    fine = position_grid(atoms.positions, atoms.graph, 2, (24, 24), TINY.pixel)
    half = fine.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).mean((2, 4, 6))
    maps = model.unet.encode(batch.images)
    assert model.unet.coarse(maps).shape == half.shape == (2, 12, 12, 10)
    monkeypatch.setattr(model.unet, "coarse", lambda maps: half)
    assert model(batch, generator())["position"] < 1e-9


def test_a_skip_of_weight_one_is_the_published_one_times_its_voxels():
    x, coarsest = torch.randn(2, 4, 8, 8, 10), torch.randn(2, 6, 2, 2, 2)
    published, scaled = SkipGate(4, 6, False), SkipGate(4, 6, True)
    scaled.load_state_dict(published.state_dict())
    assert close(scaled(x, coarsest), 640 * published(x, coarsest), 1e-4)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"train": "bonds", "removals": 4}, {"unet", "encoder", "builder"}),
        ({"train": "builder"}, {"unet", "encoder"}),  # all graph builders start from the CNN alone
        ({"soap": "report", "shared": False}, {"unet", "encoder"}),
        ({"coordinates": "relative"}, {"unet", "encoder"}),
    ],
)
def test_what_is_taken_from_other_weights(change, same):
    other, model = randomised(replace(TINY, train="cnn"), seed=1), randomised(replace(TINY, **change), seed=2)
    model.take(other)
    for part in ("unet", "encoder", "builder"):
        theirs = getattr(other, part).state_dict()
        equal = {
            name: torch.equal(t, theirs[name])
            for name, t in getattr(model, part).state_dict().items()
            if name in theirs and t.shape == theirs[name].shape
        }
        assert all(equal.values()) == (part in same)
    with pytest.raises(ConfigError, match="have another CNN"):
        randomised(replace(TINY, mean_one_gates=True)).take(other)


# --- single steps


def test_single_steps_are_removals_with_the_true_position():
    model, batch = randomised(REPORT), sample([6, 0, 7, 3, 1])
    got = model.single_steps(batch, generator(1))
    task = remove(batch, 0.8, "random", 1, generator(1), jitter=False)
    with torch.no_grad():
        logits, bonds = step(model, batch.images, task.left, task.positions)
    there = torch.nonzero(task.classes >= 0)[:, 0].tolist()
    assert 0 < len(there) < 5
    for k, g in enumerate(there):
        assert (torch.cdist(task.positions[g : g + 1], batch.positions) == 0).any()
        mine = task.left.graph == g
        assert got.classes[k] == task.classes[g]
        assert close(got.class_logits[k], logits[g])
        assert got.sizes[k] == mine.sum() == (got.graph == k).sum()
        assert got.bonded[got.graph == k].tolist() == task.bonded[mine].tolist()
        assert close(got.bonds[got.graph == k], bonds[mine].sigmoid())
    assert len(got.classes) == len(there)
