"""Weight files that rebuild their model, old ones too; what is wrong with others, in one sentence."""

import dataclasses
import json
import runpy
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch.optim.swa_utils import AveragedModel

from afmol.checkpoint import (
    FORMAT,
    TRAINING,
    VERSION,
    load_model,
    load_training,
    read_tensors,
    save_model,
    save_training,
    shipped_models,
    write_tensors,
)
from afmol.config import config_to_dict
from afmol.errors import ConfigError, WeightsError
from afmol.metrics import Comparison, summary
from afmol.model import OnePass, OnePassConfig
from strategies import one_sentence

TINY = OnePassConfig(
    slices=6, pixel=0.2, widest_step=0.15, depth=0.7, channels=(8, 12, 16), blocks=1, width=8, rounds=2
)
WEIGHTS = Path(__file__).parents[1] / "src" / "afmol" / "weights"
FIXTURES = Path(__file__).parent / "fixtures"

OUTPUTS: dict[int, dict[str, list[float]]] = {
    1: {
        "maps": [-3.08355, -0.05438, -0.1016, 0.05905],
        "at 5, 7": [-2.70446, 0.83686, 0.59768, -0.05073],
        "exists": [-2.00683, -1.51804, -3.37985],
        "elements": [-0.70295, -0.46857, -0.35115],
        "bonds": [0.99582, 0.87233, -0.21782],
        "z": [0.0, -0.1, -0.3],  # format 1 did not correct depths
    },
    2: {
        "maps": [-2.52903, -0.152, 0.02318, 0.20956],
        "at 5, 7": [-4.11459, 0.77594, -0.00312, -0.01398],
        "exists": [2.47518, 2.95138, 0.04618],
        "elements": [-0.10717, -0.61961, 0.9462],
        "bonds": [2.21325, 0.70927, 1.87335],
        "z": [-0.78834, -3.43599, 0.90656],
    },
}
"""What the file of each old format gave for `pattern()`, and for three atoms on it, when it was written."""


def model(seed: int = 0) -> Any:
    """Random weights and batch norm statistics: nothing in it is zero or one."""
    g = torch.manual_seed(seed)
    made: Any = OnePass(TINY)
    with torch.no_grad():
        for p in made.parameters():
            p += torch.randn(p.shape, generator=g) / max(4, p[0].numel()) ** 0.5
        for name, b in made.named_buffers():
            if "running" in name:
                b += torch.rand(b.shape, generator=g)
        made.posnet.head.bias[:4] += 1.5  # so that a few atoms are found, at depths that are reported
        made.posnet.head.weight[4:] *= 0.2
    return made.eval()


def pattern() -> torch.Tensor:
    """A stack without random numbers, the same with every release of every library."""
    x, y, z = np.ogrid[:24, :32, :6]
    stack = np.sin(0.5 * x + 0.1 * z) * np.cos(0.37 * y) + 0.2 * np.sin(0.9 * x - 0.6 * y + z)
    return torch.from_numpy(stack.transpose(2, 0, 1).astype(np.float32))[None]


@torch.no_grad()
def maps(made: OnePass) -> torch.Tensor:
    return made.posnet(pattern())[1]


# --- round trips


def test_weights_alone_rebuild_the_model(tmp_path):
    before = model()
    save_model(before, tmp_path / "some.safetensors", "some name")
    after, name = load_model(tmp_path / "some.safetensors")
    assert name == "some name"
    assert after.config == TINY
    assert not after.training
    for (key, a), (_, b) in zip(before.state_dict().items(), after.state_dict().items(), strict=True):
        assert b.dtype == a.dtype, key
        # batch norm statistics as they are, the rest rounded to the 11 bits of a 16-bit float
        assert torch.equal(a, b) if "running" in key else torch.allclose(a, b, rtol=2**-11, atol=1e-7), key
    assert torch.allclose(maps(after), maps(before), atol=0.02)
    assert not torch.equal(maps(after), maps(before))


def test_32_bit_weights_are_exact(tmp_path):
    before = model()
    save_model(before, tmp_path / "some.safetensors", "some", half=False)
    after, _ = load_model(tmp_path / "some.safetensors")
    assert torch.equal(maps(after), maps(before))


def test_saving_what_was_loaded_changes_nothing(tmp_path):
    save_model(model(), tmp_path / "a.safetensors", "some")
    save_model(load_model(tmp_path / "a.safetensors")[0], tmp_path / "b.safetensors", "some")
    a, b = (read_tensors(tmp_path / f"{n}.safetensors") for n in "ab")
    assert a[1] == b[1]
    assert all(torch.equal(a[0][k], b[0][k]) for k in a[0] | b[0])


def test_saving_leaves_one_file(tmp_path):
    path = tmp_path / "some.safetensors"
    path.write_bytes(b"an older file")
    save_model(model(), path, "some")
    assert list(tmp_path.iterdir()) == [path]
    assert load_model(str(path))[1] == "some"


def test_a_weight_file_under_another_suffix_loads(tmp_path):
    save_model(model(), tmp_path / "some.safetensors", "some")
    (tmp_path / "some.safetensors").rename(tmp_path / "some.bin")
    assert load_model(tmp_path / "some.bin")[1] == "some"


def test_equal_runs_write_equal_bytes(tmp_path):
    """The library writes metadata in the order of a hash that each file draws anew."""
    kinds = {"b": torch.half, "a": torch.half, "c": torch.float}
    about = {f"{k} é": str(k) for k in range(9)}
    written, theirs = set(), set()
    for _ in range(20):
        tensors = {name: torch.arange(5.0).to(kind) for name, kind in kinds.items()}
        write_tensors(tmp_path / "a", tensors, about)
        written.add((tmp_path / "a").read_bytes())
        theirs.add(save(tensors, about))
    assert len(theirs) > 1  # the test sees what it looks for
    (content,) = written
    assert int.from_bytes(content[:8], "little") % 8 == 0
    tensors, metadata = read_tensors(tmp_path / "a")
    assert metadata == about
    assert all(torch.equal(v, torch.arange(5.0).to(v.dtype)) for v in tensors.values())
    assert {k: v.dtype for k, v in tensors.items()} == {"a": torch.half, "b": torch.half, "c": torch.float}


@pytest.mark.parametrize("version", OUTPUTS)
def test_old_weights_load_for_ever(version):
    """tests/fixtures/weights_vN.safetensors were written by the save_model of format N and are never written again:
    they stand for the files that users have."""
    path = FIXTURES / f"weights_v{version}.safetensors"
    made, name = load_model(path)
    assert read_tensors(path)[1]["version"] == str(version)
    assert name == "tiny"
    assert made.config == TINY
    atoms = torch.tensor([[2.0, 2.0, 0.0], [3.0, 2.5, -0.1], [3.9, 1.9, -0.3]])
    with torch.no_grad():
        features, images = made.posnet(pattern())
        graph = made.bondnet(features, atoms, torch.zeros(3, dtype=torch.long), 0.5)
    got = {"maps": images.double().mean((0, 2, 3)), "at 5, 7": images[0, :, 5, 7], "exists": graph.exists}
    got |= {"elements": graph.elements.mean(1), "bonds": graph.bonds, "z": graph.z}
    for what, values in OUTPUTS[version].items():
        np.testing.assert_allclose(got[what], values, atol=1e-3, err_msg=what)


# --- what is wrong with a weight file


def good() -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    metadata = {"format": FORMAT, "version": str(VERSION), "name": "some"}
    return model().state_dict(), metadata | {"config": json.dumps(config_to_dict(TINY))}


def broken(path: Path, kind: str) -> None:
    """Write a weight file of which one thing is wrong."""
    tensors, metadata = good()
    config = json.loads(metadata["config"])
    first = next(iter(tensors))
    if kind == "no tensors":
        tensors = {}
    elif kind == "missing tensor":
        del tensors[first]
    elif kind == "another tensor":
        tensors["some.weight"] = torch.zeros(3)
    elif kind == "tensor of another shape":
        tensors[first] = tensors[first][:-1]
    elif kind == "foreign tensors":
        tensors, metadata = {"embedding.weight": torch.zeros(4, 4)}, {}
    elif kind == "foreign format":
        metadata["format"] = "pt"
    elif kind == "training checkpoint":
        metadata["format"] = "afmol-training"
    elif kind == "newer version":
        metadata["version"] = str(VERSION + 1)
    elif kind in ("version", "config"):
        del metadata[kind]
    else:
        metadata |= {
            "version in words": {"version": "one"},
            "config cut off": {"config": metadata["config"][:-5]},
            "config is a list": {"config": "[]"},
            "config of a newer model": {"config": json.dumps(config | {"attention": 8})},
            "config of another type": {"config": json.dumps(config | {"width": "wide"})},
            "config without channels": {"config": json.dumps(config | {"channels": []})},
            "config of another size": {"config": json.dumps(config | {"width": 24})},
            "another kind": {"config": json.dumps(config | {"kind": "oracle"})},
        }[kind]
    save_file(tensors, path, metadata)


DAMAGED = {
    "no tensors": "damaged",
    "missing tensor": "damaged",
    "another tensor": "damaged",
    "tensor of another shape": "damaged",
    "foreign tensors": "no afmol weights",
    "foreign format": "no afmol weights",
    "training checkpoint": "no afmol weights",
    "newer version": "newer than this afmol reads",
    "version": "damaged",
    "config": "damaged",
    "version in words": "damaged",
    "config cut off": "damaged",
    "config is a list": "damaged",
    "config of a newer model": "damaged",
    "config of another type": "damaged",
    "config without channels": "damaged",
    "config of another size": "damaged",
    "another kind": "does not know",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_is_wrong_with_a_weight_file(tmp_path, kind):
    path = tmp_path / "some.safetensors"
    broken(path, kind)
    with pytest.raises(WeightsError, match=DAMAGED[kind]) as error:
        load_model(path)
    one_sentence(error, path)


@pytest.mark.parametrize("share", [0.0, 1e-4, 1e-3, 0.05, 0.5, 0.999])
def test_a_truncated_file(tmp_path, share):
    path = tmp_path / "some.safetensors"
    save_model(model(), path, "some")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(WeightsError, match="not a weight file") as error:
        load_model(path)
    one_sentence(error, path)


@pytest.mark.parametrize(
    "content",
    [b"not a tensor in sight", b"\x80\x04\x95\x0b", b"PK\x03\x04" * 50, struct.pack("<Q", 2**40) + b"{}", bytes(999)],
    ids=["text", "pickle", "zip", "huge header", "zeros"],
)
def test_something_else_than_safetensors(tmp_path, content):
    path = tmp_path / "some.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a weight file") as error:
        load_model(path)
    one_sentence(error, path)


def test_missing_files_and_unknown_names(tmp_path):
    with pytest.raises(WeightsError, match="no weight file") as error:
        load_model(tmp_path / "nowhere.safetensors")
    one_sentence(error, tmp_path / "nowhere.safetensors")
    with pytest.raises(WeightsError, match="no model 'nonsense'; shipped: ") as error:
        load_model("nonsense")
    assert all(name in str(error.value) for name in shipped_models())
    with pytest.raises(WeightsError) as error:
        load_model(tmp_path)
    one_sentence(error, tmp_path)


def test_a_folder_of_the_name_of_a_shipped_model_is_in_nobodys_way(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_model("base")[1] == "base"


# --- training checkpoints


def trained(seed: int) -> tuple[OnePass, torch.optim.Optimizer]:
    """A model and its optimizer after a step of nonsense."""
    made = model(seed)
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-3)
    torch.stack([p.square().sum() for p in made.parameters()]).sum().backward()
    optimizer.step()
    return made, optimizer


def test_a_training_checkpoint_brings_back_weights_optimizer_average_and_step(tmp_path):
    (before, optimizer), (after, fresh) = trained(1), trained(2)
    averages = AveragedModel(before), AveragedModel(after)
    averages[0].update_parameters(model(3))
    save_training(tmp_path / "c.safetensors", before, optimizer, averages[0], 42, {"batch_size": 4})
    assert load_training(tmp_path / "c.safetensors", after, fresh, averages[1], {"batch_size": 4}) == 42
    for a, b in ((before, after), averages):
        assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    old, new = optimizer.state_dict()["state"], fresh.state_dict()["state"]
    assert old.keys() == new.keys()
    assert all(torch.equal(v, new[i][k]) and v.dtype == new[i][k].dtype for i in old for k, v in old[i].items())


def test_checkpoints_that_do_not_fit(tmp_path):
    path = tmp_path / "c.safetensors"

    def refused(error_type, words, other=None, average=None, origin=None):
        made, optimizer = trained(0) if other is None else (other, torch.optim.AdamW(other.parameters()))
        with pytest.raises(error_type, match=words) as error:
            load_training(path, made, optimizer, average, origin or {})
        one_sentence(error, path)

    save_model(model(), path, "some")
    refused(WeightsError, "not a training checkpoint")
    save_training(path, *trained(0), None, 1, {"seed": 1, "data": {"noise": 1}})
    refused(ConfigError, "another data", origin={"seed": 1, "data": {"noise": 2}})
    refused(ConfigError, "seed 1", origin={"seed": 2, "data": {"noise": 1}})
    save_training(path, *trained(0), None, 1, {})
    refused(ConfigError, "without an average", average=AveragedModel(model()))
    refused(WeightsError, "another model", other=OnePass(dataclasses.replace(TINY, channels=(8, 12, 20))))
    for step in (-1, 10**15):
        save_training(path, *trained(0), None, step, {})
        refused(WeightsError, "is damaged")
    for count in (-1e38, 1e38):  # beyond which the optimizer's next step overflows
        made, optimizer = trained(0)
        optimizer.state_dict()["state"][0]["step"].fill_(count)
        save_training(path, made, optimizer, None, 1, {})
        refused(WeightsError, "is damaged")
    path.write_bytes(path.read_bytes()[:-9])
    refused(WeightsError, "not a weight file")
    tensors, metadata = good()
    save_file(tensors, path, metadata | {"format": TRAINING})
    refused(WeightsError, "before format 3")


def test_tensors_and_metadata_survive(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(7), "c": torch.zeros(0, 3)}
    tensors["a again"] = tensors["a"]  # shared memory, which the format itself refuses
    write_tensors(tmp_path / "t.safetensors", tensors, {"what": "é"})
    got, metadata = read_tensors(tmp_path / "t.safetensors")
    assert metadata == {"what": "é"}
    assert got.keys() == tensors.keys()
    assert all(torch.equal(got[k], tensors[k]) and got[k].dtype == tensors[k].dtype for k in tensors)


# --- what is shipped


@pytest.mark.parametrize("name", shipped_models() if WEIGHTS.is_dir() else [])
def test_shipped_weights(name):
    path = WEIGHTS / f"{name}.safetensors"
    made, own = load_model(name)
    assert own == name
    assert path.stat().st_size < 12e6
    images = torch.randn(1, made.config.slices, 24, 20, generator=torch.Generator().manual_seed(0))
    (molecule,) = made.predict(images, 0.01)  # of noise: whatever it says, it is a molecule
    assert molecule.confidence is not None
    assert all(p.isfinite().all() for p in made.state_dict().values())


@pytest.mark.parametrize("name", shipped_models() if WEIGHTS.is_dir() else [])
def test_shipped_weights_have_a_model_card(name):
    assert len((WEIGHTS / f"{name}.md").read_text()) > 200


def test_a_card_says_what_its_weights_are(tmp_path):
    """tools/card.py wrote the figures of these weights, and writes those of an evaluation between the marks."""
    tool = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "card.py"))
    shipped = (WEIGHTS / "measured.md").read_text()
    assert f"{tool['START']}\n\n{tool['size_of']('measured')}\n" in shipped
    counts = Comparison(molecules=4, exact=3)
    record = {"data": "some.npz", "noise": 0.05, "flat molecules, nominal force parameters": summary(counts)}
    (tmp_path / "evaluation.json").write_text(json.dumps(record))
    (tmp_path / "card.md").write_text(f"before\n{tool['START']}old{tool['END']}\nafter\n")
    tool["main"]("measured", str(tmp_path / "evaluation.json"), str(tmp_path / "card.md"))
    card = (tmp_path / "card.md").read_text()
    assert card.startswith(f"before\n{tool['START']}")
    assert card.endswith(f"{tool['END']}\nafter\n")
    assert "| exact graphs | 0.750 |" in card
    assert "| flat molecules, nominal (4) |" in card
    assert "old" not in card
