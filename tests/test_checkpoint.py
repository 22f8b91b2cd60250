"""Weight files that rebuild their model, old ones too; what is wrong with others, in one sentence."""

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from afmol.checkpoint import (
    FORMAT,
    VERSION,
    config_from_dict,
    config_from_toml,
    load_model,
    load_training,
    read_tensors,
    save_model,
    save_training,
    shipped_models,
    write_tensors,
)
from afmol.data.samples import DataConfig
from afmol.data.shards import SetConfig
from afmol.errors import ConfigError, WeightsError
from afmol.model import OnePass, OnePassConfig
from afmol.training import TrainConfig

TINY = OnePassConfig(
    slices=6, pixel=0.2, step=(0.05, 0.15), depth=0.7, channels=(8, 12, 16), blocks=1, width=8, rounds=2
)
WEIGHTS = Path(__file__).parents[1] / "src" / "afmol" / "weights"
OLD = Path(__file__).parent / "fixtures" / "weights_v1.safetensors"

MEANS = [-3.08355, -0.05438, -0.1016, 0.05905]
DEVIATIONS = [0.84818, 0.56569, 0.68511, 0.22554]
AT_5_7 = [-2.70446, 0.83686, 0.59768, -0.05073]
EXISTS = [-2.00683, -1.51804, -3.37985]
ELEMENTS = [-0.70295, -0.46857, -0.35115]
BONDS = [0.99582, 0.87233, -0.21782]
"""What the file of format 1 gave for `pattern()`, and for three atoms on it, when it was written."""


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


def one_sentence(error, path: Path | str) -> None:
    """The message names the file and is one sentence."""
    text = str(error.value)
    assert str(path) in text
    assert text.endswith(".")
    assert not text.endswith("..")
    assert ". " not in text.replace(str(path), "")
    assert "\n" not in text
    assert len(text.replace(str(path), "")) < 300


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


def test_weights_of_format_1_load_for_ever():
    """tests/fixtures/weights_v1.safetensors was written by save_model(model(seed=1), ..., "tiny") at format 1; it is
    never written again: it stands for the files that users have."""
    made, name = load_model(OLD)
    assert OLD.stat().st_size < 200_000
    assert name == "tiny"
    assert made.config == TINY
    got = maps(made).double()
    np.testing.assert_allclose(got.mean((0, 2, 3)), MEANS, atol=1e-4)
    np.testing.assert_allclose(got.std((0, 2, 3)), DEVIATIONS, atol=1e-4)
    np.testing.assert_allclose(got[0, :, 5, 7], AT_5_7, atol=1e-3)
    atoms = torch.tensor([[2.0, 2.0, 0.0], [3.0, 2.5, -0.1], [3.9, 1.9, -0.3]])
    with torch.no_grad():
        graph = made.bondnet(made.posnet(pattern())[0], atoms, torch.zeros(3, dtype=torch.long), 0.5)
    np.testing.assert_allclose(graph.exists, EXISTS, atol=1e-3)
    np.testing.assert_allclose(graph.elements.mean(1), ELEMENTS, atol=1e-3)
    np.testing.assert_allclose(graph.bonds, BONDS, atol=1e-3)
    assert torch.equal(graph.z, atoms[:, 2])  # format 1 did not correct depths


# --- what is wrong with a weight file


def good() -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    metadata = {"format": FORMAT, "version": str(VERSION), "name": "some"}
    return model().state_dict(), metadata | {"config": json.dumps(dataclasses.asdict(TINY))}


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


# --- training checkpoints


def trained(seed: int) -> tuple[OnePass, torch.optim.Optimizer]:
    """A model and its optimizer after a step of nonsense."""
    made = model(seed)
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-3)
    torch.stack([p.square().sum() for p in made.parameters()]).sum().backward()
    optimizer.step()
    return made, optimizer


def test_a_training_checkpoint_brings_back_weights_optimizer_and_step(tmp_path):
    before, optimizer = trained(1)
    save_training(tmp_path / "c.safetensors", before, optimizer, 42, {"steps": 100})
    after, fresh = trained(2)
    assert load_training(tmp_path / "c.safetensors", after, fresh, {}) == 42
    assert all(torch.equal(v, after.state_dict()[k]) for k, v in before.state_dict().items())
    old, new = optimizer.state_dict()["state"], fresh.state_dict()["state"]
    assert old.keys() == new.keys()
    assert all(torch.equal(v, new[i][k]) and v.dtype == new[i][k].dtype for i in old for k, v in old[i].items())


def test_checkpoints_that_do_not_fit(tmp_path):
    path = tmp_path / "c.safetensors"
    save_model(model(), path, "some")
    with pytest.raises(WeightsError, match="not a training checkpoint") as error:
        load_training(path, *trained(0), {})
    one_sentence(error, path)
    save_training(path, *trained(0), 1, {})
    other = OnePass(dataclasses.replace(TINY, channels=(8, 12, 20)))
    with pytest.raises(WeightsError, match="another model") as error:
        load_training(path, other, torch.optim.AdamW(other.parameters()), {})
    one_sentence(error, path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(WeightsError) as error:
        load_training(path, *trained(0), {})
    one_sentence(error, path)


def test_tensors_and_metadata_survive(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(7), "c": torch.zeros(0, 3)}
    tensors["a again"] = tensors["a"]  # shared memory, which the format itself refuses
    write_tensors(tmp_path / "t.safetensors", tensors, {"what": "é"})
    got, metadata = read_tensors(tmp_path / "t.safetensors")
    assert metadata == {"what": "é"}
    assert got.keys() == tensors.keys()
    assert all(torch.equal(got[k], tensors[k]) and got[k].dtype == tensors[k].dtype for k in tensors)


# --- configurations


def toml(folder: Path, text: str) -> Path:
    path = folder / "some.toml"
    path.write_text(text)
    return path


def test_nested_tables(tmp_path):
    text = """
        molecules = "m.npz"
        steps = 7
        learning_rate = 1
        [data]
        windows = [[32, 32], [32, 48]]
        noise = 0.5
        [model]
        channels = [8, 16]
        step = [0.1, 0.2]
    """
    assert config_from_toml(TrainConfig, toml(tmp_path, text)) == TrainConfig(
        molecules="m.npz",
        steps=7,
        learning_rate=1,
        data=DataConfig(windows=((32, 32), (32, 48)), noise=0.5),
        model=OnePassConfig(channels=(8, 16), step=(0.1, 0.2)),
    )


def test_a_configuration_survives_json():
    config = TrainConfig("m.npz", data=DataConfig(windows=((32, 48),)), model=TINY)
    assert config_from_dict(TrainConfig, json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("stepz = 3", "no field 'stepz'; its fields are molecules, "),
        ("[model]\nwidht = 3", r"some.toml.model has no field 'widht'; its fields are slices, "),
        ("steps = 'many'", "some.toml.steps must be of type int, not 'many'"),
        ("steps = 2.5", "steps must be of type int, not 2.5"),
        ("steps = true", "steps must be of type int, not True"),
        ("steps = [1]", "steps must be of type int"),
        ("learning_rate = '1e-3'", "learning_rate must be of type float"),
        ("out = 3", "out must be of type str, not 3"),
        ("[steps]\nfirst = 3", "steps is one value, not a table"),
        ("model = 3", "model is a table"),
        ("[model]\nchannels = 3", r"model.channels must be of type tuple\[int, ...\], not 3"),
        ("[model]\nchannels = [8, 'x']", r"model.channels must be of type tuple\[int, ...\]"),
        ("[model]\nstep = [0.1]", r"model.step must be of type tuple\[float, float\]"),
        ("[data]\nwindows = [64, 64]", r"windows must be of type tuple\[tuple\[int, int\], ...\]"),
        ("[data]\nwindows = [[64, 64, 64]]", r"windows must be of type"),
        ("steps = ", "cannot be read as a TOML"),
        ("steps = 3\nsteps = 4", "cannot be read as a TOML"),
    ],
)
def test_what_is_wrong_with_a_configuration(tmp_path, text, match):
    given = text if "=" in text and "cannot" in match else f"molecules = 'm.npz'\n{text}"
    with pytest.raises(ConfigError, match=match) as error:
        config_from_toml(TrainConfig, toml(tmp_path, given))
    one_sentence(error, "some.toml")


def test_a_field_that_must_be_given(tmp_path):
    with pytest.raises(ConfigError, match="must give the field 'molecules'") as error:
        config_from_toml(SetConfig, toml(tmp_path, "samples = 3"))
    one_sentence(error, "some.toml")


def test_a_field_that_is_one_of_several_words(tmp_path):
    config = config_from_toml(SetConfig, toml(tmp_path, 'molecules = "m.npz"\npart = "test"'))
    assert config.part == "test"
    with pytest.raises(ConfigError, match="part must be of type") as error:
        config_from_toml(SetConfig, toml(tmp_path, 'molecules = "m.npz"\npart = "all"'))
    one_sentence(error, "some.toml")


def test_configurations_that_cannot_be_read(tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "nowhere.toml", tmp_path, tmp_path / "binary.toml"):
        with pytest.raises(ConfigError, match="cannot be read as a TOML") as error:
            config_from_toml(TrainConfig, path)
        one_sentence(error, path)


@pytest.mark.parametrize("path", sorted((WEIGHTS.parents[2] / "configs").glob("*.toml")), ids=lambda p: p.name)
def test_configurations_of_published_runs(path):
    model = OnePassConfig()
    if path.name == "dataset.toml":  # stored samples, for any run of the usual model
        config = config_from_toml(SetConfig, path)
    else:
        config = config_from_toml(TrainConfig, path)
        model = config.model
        assert config.data.together % config.batch_size == 0
    assert config.data.slices == model.slices
    assert config.data.pixel == model.pixel


# --- what is shipped


@pytest.mark.parametrize("name", shipped_models() if WEIGHTS.is_dir() else [])
def test_shipped_weights(name):
    path = WEIGHTS / f"{name}.safetensors"
    made, own = load_model(name)
    assert own == name
    assert path.stat().st_size < 12e6
    images = torch.randn(1, made.config.slices, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert made.posnet(images)[1].isfinite().all()
    assert all(p.isfinite().all() for p in made.state_dict().values())


@pytest.mark.parametrize("name", shipped_models() if WEIGHTS.is_dir() else [])
def test_shipped_weights_have_a_model_card(name):
    assert len((WEIGHTS / f"{name}.md").read_text()) > 200


def test_there_is_a_model_to_begin_with():
    if not WEIGHTS.is_dir() or not shipped_models():
        pytest.skip("no weights are shipped yet")
    assert "base" in shipped_models()
