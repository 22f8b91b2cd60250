"""The SOAP predictor: shapes of the report's boxes, symmetries of the networks, labels that are SOAP itself."""

import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from afmol.checkpoint import load_image_model, load_model
from afmol.cli import main
from afmol.config import config_from_toml
from afmol.errors import ConfigError, WeightsError
from afmol.model.soap_predictor import PointsConfig, RandomPoints, SoapPredictor, SoapPredictorConfig
from afmol.model.soap_predictor.graphs import Graphs, geometry, members, pairs_of
from afmol.model.soap_predictor.report import Head, ReportNetwork
from afmol.soap import SETTING_A, SETTING_B, SoapConfig, dscribe_vector, power_spectrum
from afmol.training import PointsTrainConfig, fit
from strategies import refused

SMALL = SoapConfig(n_species=3, max_l=1, n_radial=2)
REPORT = SoapPredictorConfig(soap=SMALL, widths=(8, 6, 4))
OURS = SoapPredictorConfig(network="invariant", soap=SMALL, widths=(8, 8))
REFERENCE = Path(__file__).parents[2] / "shared" / "reference" / "soap" / "dscribe_reference.npz"
SUMMED = replace(REPORT, sum_over_pairs=True, normalise=False)
both = pytest.mark.parametrize("config", [REPORT, SUMMED, OURS], ids=["report", "summed", "ours"])


def graphs(classes: list[list[int]], old: int, seed: int = 0, soap: SoapConfig = SMALL) -> Graphs:
    """Random points; the first `old` nodes were there before, with any SOAP."""
    torch.manual_seed(seed)
    labels = torch.tensor(classes)
    batch, n = labels.shape
    known = torch.rand(batch, n, soap.n_pairs, soap.n_radial**2 * (soap.max_l + 1))
    before = (torch.arange(n) < old) & (labels >= 0)
    return Graphs(2 * torch.rand(batch, n, 3) - 1, labels, known * before[..., None, None], before)


def model(config: SoapPredictorConfig) -> SoapPredictor:
    torch.manual_seed(1)
    return SoapPredictor(config).double()


def double(g: Graphs) -> Graphs:
    return Graphs(g.positions.double(), g.classes, g.known.double(), g.old)


# --- the report's boxes


def test_shapes_at_each_box():
    """Figures 9 to 11 in setting B: (n, n, 8) -> (n, 64); (pairs, n, 67) -> (pairs, 128); heads to (n, 16)."""
    network = ReportNetwork(SoapPredictorConfig())
    g = graphs([[0, 0, 1, 2, 1]], 4, soap=SETTING_B)
    shape, there = geometry(g.positions), torch.ones(1, 5, 5, dtype=torch.bool)
    assert shape.shape == (1, 5, 5, 8)
    x, sizes = shape, []
    for layer in network.centres.layers:
        x = layer(x, x, there)
        sizes.append(x.shape[-1])
    assert sizes == [16, 32, 64]
    assert network.centres(shape, there).shape == (1, 5, 64)
    assert network.environments.layers[0].key[0].in_features == 67
    assert network.environments(torch.rand(6, 5, 67), torch.ones(6, 5, dtype=torch.bool)).shape == (6, 128)
    assert [len(heads) for heads in (network.known, network.new)] == [4, 4]
    assert [len(head.layers) for head in (network.known[0], network.new[0])] == [4, 3]
    known, new = network.known[0].layers[0], network.new[0].layers[0]
    assert (known.key[0].in_features, known.query[0].in_features) == (8 + 64, 8 + 128)
    assert (new.key[0].in_features, new.query[0].in_features) == (8 + 64, 8 + 64)
    assert network(g).shape == (1, 5, 6, 64)


def test_geometry_by_hand():
    """Centre at (1, 0, 0), node at (1, 2, 0): 2 A apart, a right angle towards the origin."""
    row = geometry(torch.tensor([[[1.0, 0, 0], [1.0, 2, 0]]]))[0]
    assert torch.allclose(row[0, 1], torch.tensor([1, 0, 0, 1, 2, 0, 2, torch.pi / 2]))
    assert torch.equal(row[0, 0, 6:], torch.zeros(2))


def test_exchanging_the_channels_changes_nothing():
    head = Head(3, 3, (8, 6, 4), REPORT)
    a, b, system = torch.rand(2, 4, 3, 8), torch.rand(2, 4, 5, 8), torch.rand(2, 4, 3)
    masks = torch.ones(2, 4, 3, dtype=torch.bool), torch.rand(2, 4, 5) > 0.3
    masks[1][..., 0] = True
    one, other = head((a, b), masks, system, system), head((b, a), masks[::-1], system, system)
    assert torch.allclose(one, other, atol=1e-6)
    assert one.std() > 1e-3


def test_a_sum_over_pairs_counts_them():
    """Each node of one class there twice: twice as many pairs, and nothing else is new."""
    a, b, system = torch.rand(2, 4, 3, 8), torch.rand(2, 4, 5, 8), torch.rand(2, 4, 3)
    there = torch.ones(2, 4, 3, dtype=torch.bool), torch.rand(2, 4, 5) > 0.3
    there[1][..., 0] = True
    twice = (torch.cat([a, a], 2), b), (torch.cat([there[0], there[0]], 2), there[1])
    summed = Head(3, 3, (8, 6, 4), replace(REPORT, sum_over_pairs=True))
    assert torch.allclose(summed(*twice, system, system), 2 * summed((a, b), there, system, system), atol=1e-5)
    plain = Head(3, 3, (8, 6, 4), REPORT)
    assert (plain(*twice, system, system) - 2 * plain((a, b), there, system, system)).abs().max() > 1e-2


# --- any network


@both
def test_permuting_nodes_permutes_the_output(config):
    """Old nodes, whatever their class."""
    predictor, g = model(config), double(graphs([[0, 1, 1, 0, 2, 1]], 5))
    order = torch.tensor([3, 2, 0, 4, 1, 5])
    moved = Graphs(*(t[:, order] for t in g))
    assert torch.allclose(predictor.soap(moved), predictor.soap(g)[:, order], atol=1e-12)
    assert predictor.soap(g).std(1).max() > 1e-6


@both
def test_a_batch_is_its_graphs_of_any_size(config):
    predictor, g = model(config), double(graphs([[0, 1, 1, 0, 2], [2, 2, 0, -1, -1], [1, -1, -1, -1, -1]], 2))
    together = predictor.soap(g)
    for b, n in enumerate((5, 3, 1)):
        alone = predictor.soap(Graphs(*(t[b : b + 1, :n] for t in g)))
        assert torch.allclose(together[b, :n], alone[0], atol=1e-12)


@both
def test_pairs_that_a_graph_lacks_are_zero(config):
    g = double(graphs([[0, 2, 2]], 2))
    found = model(config).soap(g)[0]
    for pair, kinds in enumerate(pairs_of(3)):
        assert bool(found[:, pair].abs().max() > 0) == (1 not in kinds)


def test_ours_knows_nothing_of_the_frame_or_the_past():
    predictor, g = model(OURS), double(graphs([[0, 1, 1, 0, 2]], 4))
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.double))[0]
    moved = g._replace(positions=g.positions @ turn.T + torch.tensor([3.0, -1.0, 2.0]), known=0 * g.known)
    assert torch.allclose(predictor.soap(moved), predictor.soap(g), atol=1e-10)


def test_the_report_s_network_goes_by_the_past():
    predictor, g = model(REPORT), double(graphs([[0, 1, 1, 0, 2]], 4))
    assert not torch.allclose(predictor.soap(g._replace(known=2 * g.known)), predictor.soap(g), atol=1e-4)


def test_members_of_a_class():
    nodes = members(torch.tensor([[1, 0, 1, 2], [0, 0, 2, -1]]), 0)
    assert nodes.there.tolist() == [[True, False], [True, True]]
    assert nodes.place[0, 0] == 1
    assert nodes.place[1].tolist() == [0, 1]


# --- training


def source(steps: int = 100, **change: object) -> RandomPoints:
    return RandomPoints(PointsConfig(**({"nodes": 4} | change)), SMALL, 3, steps)


def test_an_addition_a_batch():
    batches = [source().batch(q) for q in range(8)]
    assert [b.positions.shape[1] for b in batches] == [1, 2, 3, 4] * 2
    for a, b in pairwise(batches[:4]):
        assert torch.equal(a.positions, b.positions[:, :-1])
        assert torch.equal(a.classes, b.classes[:, :-1])
    assert not torch.equal(batches[3].positions, batches[7].positions)
    assert (batches[3].classes == batches[3].classes[:1]).all()
    assert source(first=2).batch(3).positions.shape[1] == 2
    assert max(float(b.positions.abs().max()) for b in batches) <= 1
    for name, tensor in source().batch(5)._asdict().items():  # a function of its number
        assert torch.equal(tensor, getattr(batches[5], name))


def test_labels_are_soap_and_the_first_atom_s_a_constant():
    for q in range(8):
        batch = source().batch(q)
        for b in range(3):
            soap = power_spectrum(batch.positions[b].double(), batch.classes[b], None, SMALL)
            assert torch.allclose(batch.labels[b], torch.as_tensor(soap).flatten(2).float(), rtol=1e-4, atol=1e-5)
    firsts = source().batch(0).labels, source().batch(4).labels
    kinds = [int(source().batch(q).classes[0, 0]) for q in (0, 4)]
    own = [pairs_of(3).index((k, k)) for k in kinds]
    assert torch.allclose(firsts[0][0, 0, own[0]], firsts[1][2, 0, own[1]])


@pytest.mark.skipif(not REFERENCE.is_file(), reason="the reference vectors of DScribe are not here")
def test_labels_are_those_of_dscribe():
    with np.load(REFERENCE) as file:
        z, xyz, soap = (file[f"B_0_{name}"] for name in ("Z", "xyz", "soap"))
    ours = dscribe_vector(xyz, np.searchsorted([1, 6, 8], z), None, SETTING_B)
    np.testing.assert_allclose(ours, soap, rtol=1e-6, atol=1e-6)


def test_teacher_forcing():
    """Always: the label of the graph before, with noise. Never: nothing is known, all is the network's own."""
    always, never = (source(forcing=(p, p)) for p in (1.0, 0.0))
    assert [always.batch(q).known.shape[1] for q in range(4)] == [0, 1, 2, 3]
    assert [never.batch(q).known.shape[1] for q in range(4)] == [0, 0, 0, 0]
    label, known = always.batch(2).labels, always.batch(3).known
    ratio = (known / label)[label > 1e-3]
    assert 0.03 < float((ratio - 1).std()) < 0.07
    predictor = SoapPredictor(REPORT)
    step = never.batch(2)
    by_hand = predictor.grown(step._replace(known=_own(predictor, step)))
    assert torch.allclose(predictor.grown(step), by_hand)


def test_what_asks_for_no_past_is_run_once():
    """Ours says in one step what the growth from the first node on would say; the report's needs each step."""
    step = source(forcing=(0.0, 0.0)).batch(3)
    for config, runs in ((OURS, 1), (REPORT, 4)):
        predictor, calls = SoapPredictor(config), []
        predictor.network.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        found = predictor.grown(step)
        assert len(calls) == runs
    predictor = SoapPredictor(OURS)
    told = step._replace(known=torch.rand_like(step.labels[:, :3]))
    assert torch.equal(predictor.grown(told), predictor.grown(step))
    assert found.shape == step.labels.shape


def _own(predictor: SoapPredictor, step: object) -> torch.Tensor:
    """What the network says of the first two nodes' graph, from nothing."""
    first = step._replace(positions=step.positions[:, :1], classes=step.classes[:, :1])
    known = predictor.grown(first)
    second = step._replace(positions=step.positions[:, :2], classes=step.classes[:, :2], known=known)
    return predictor.grown(second).detach()


def test_training_lowers_the_error():
    predictor, points = SoapPredictor(OURS), source(nodes=3)
    optimizer = torch.optim.Adam(predictor.parameters(), lr=1e-2)
    losses = []
    for q in range(60):
        loss = predictor(points.batch(q), torch.Generator())["soap"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-9:]) < 0.5 * np.mean(losses[:9])


@pytest.mark.parametrize("change", [{"first": 5}, {"nodes": 1}, {"forcing": (0.5, 1.2)}, {"cube": 0.0}])
def test_points_that_cannot_be(change):
    with pytest.raises(ConfigError, match="points"):
        source(**change)


def test_setting_a_has_a_skip_too():
    assert SoapPredictor(SoapPredictorConfig(soap=SETTING_A, widths=(8, 8))).soap(
        graphs([[0, 4, 1]], 2, soap=SETTING_A)
    ).shape == (1, 3, 15, 27)


def test_a_run_by_toml_goes_on_where_it_was(tmp_path, capsys):
    """The same weights whether it was stopped or not; and they are told from a model that reads images."""
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    (tmp_path / "p.toml").write_text(
        """
        name = "p"
        steps = 6
        batch_size = 2
        warm_up = 1
        workers = 0
        checkpoint_every = 3
        accelerator = "cpu"
        [points]
        nodes = 3
        [model]
        kind = "soap-predictor"
        network = "invariant"
        widths = [4, 4]
        soap = { n_species = 3, max_l = 1, n_radial = 2 }
        """
    )
    whole = config_from_toml(PointsTrainConfig, tmp_path / "p.toml")
    stopped = replace(whole, out=str(tmp_path / "stopped"))

    class Stop(RandomPoints):
        def batch(self, q):
            if q == 5:
                raise KeyboardInterrupt
            return super().batch(q)

    points = RandomPoints(whole.points, whole.model.soap, 2, 6)
    broken = Stop(whole.points, whole.model.soap, 2, 6)
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        fit(SoapPredictor(whole.model), broken, stopped)
    fit(SoapPredictor(whole.model), points, stopped)
    main(["train", str(tmp_path / "p.toml"), "--out", str(tmp_path / "whole")])
    a, b = (load_model(tmp_path / run / "p.safetensors")[0].state_dict() for run in ("stopped", "whole"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(WeightsError, match="reads no images"):
        load_image_model(tmp_path / "whole" / "p.safetensors")
    of_images = ["--model", tmp_path / "whole" / "p.safetensors", "-o", tmp_path / "out", "--depth", "0.5"]
    capsys.readouterr()
    refused(capsys, ["evaluate", *of_images], "graphs, not on images")
