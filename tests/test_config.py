"""Configurations from TOML and JSON: nested, one of several kinds, renamed fields; mistakes in one sentence."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from afmol.config import config_from_dict, config_from_toml, config_to_dict, read_toml
from afmol.data.samples import DataConfig
from afmol.data.shards import SetConfig
from afmol.errors import ConfigError
from afmol.model import OnePassConfig
from afmol.study import StudyConfig
from afmol.training import CheckTrainConfig, PointsTrainConfig, TrainConfig
from strategies import one_sentence


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
        widest_step = 0.2
    """
    assert config_from_toml(TrainConfig, toml(tmp_path, text)) == TrainConfig(
        molecules="m.npz",
        steps=7,
        learning_rate=1,
        data=DataConfig(windows=((32, 32), (32, 48)), noise=0.5),
        model=OnePassConfig(channels=(8, 16), widest_step=0.2),
    )


def test_a_configuration_survives_json():
    config = TrainConfig(data=DataConfig(windows=((32, 48),)), model=OnePassConfig(channels=(8, 16)))
    assert config_from_dict(TrainConfig, json.loads(json.dumps(config_to_dict(config)))) == config


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("stepz = 3", "no field 'stepz'; its fields are out, "),
        ("[model]\nwidht = 3", r"some.toml.model has no field 'widht'; its fields are kind, "),
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


CONFIGS = Path(__file__).parents[1] / "configs"
STUDIES = [path for path in CONFIGS.rglob("*.toml") if "variants" in read_toml(path)]
RUNS = sorted({*CONFIGS.rglob("*.toml")} - {*STUDIES})


@pytest.mark.parametrize("path", RUNS, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_configurations_of_published_runs(path):
    model = OnePassConfig()
    if path.parent.name == "soap":
        assert config_from_toml(PointsTrainConfig, path).model.kind == "soap-predictor"
        return
    if "spoiled" in read_toml(path):
        assert config_from_toml(CheckTrainConfig, path).model.kind == "stack-check"
        return
    if path.name in ("dataset.toml", "samples.toml"):  # stored samples, for any run of the usual model
        config = config_from_toml(SetConfig, path)
    else:
        config = config_from_toml(TrainConfig, path)
        model = config.model
        assert config.data.shard_size % config.batch_size == 0
    assert config.data.slices == model.slices
    assert config.data.pixel == model.pixel


def test_a_variant_of_the_study_differs_in_what_it_is_about():
    """Each from one before it; absolute coordinates train the image encoder too."""
    variants = [v for path in STUDIES for v in config_from_toml(StudyConfig, path).variants]
    read = {v.name: config_from_toml(TrainConfig, CONFIGS / "asd" / v.config) for v in variants}
    wanted = {
        "soap_shared": ("original_graph", {"soap", "class_rounds", "bond_rounds"}),
        "soap_separate": ("soap_shared", {"shared"}),
        "soap_messages": ("soap_separate", {"class_rounds", "bond_rounds"}),
        "soap_symmetric": ("soap_messages", {"symmetric_messages"}),
        "soap_scaled_attention": ("soap_messages", {"scaled_attention"}),
        "soap_longer": ("soap_messages", set()),
        "soap_scaled": ("soap_messages", {"soap_scale"}),
        "soap_class_messages": ("soap_messages", {"bond_rounds"}),
        "soap_weight_decay": ("soap_messages", set()),
        "soap_bonds_alone": ("soap_messages", {"train"}),
        "soap_shallow": ("soap_messages", {"attention_layers"}),
        "soap_gradient": ("soap_messages", {"soap_gradient"}),
        "soap_absolute": ("soap_messages", {"coordinates", "train"}),
        "soap_absolute_scaled": ("soap_absolute", {"soap_scale"}),
        "soap_absolute_still": ("soap_absolute", {"class_rounds", "bond_rounds"}),
        "original_absolute": ("original_graph", {"coordinates", "train"}),
        "soap_predicted": ("soap_messages", {"soap_of_new", "soap_weight"}),
        "soap_predicted_ours": ("soap_predicted", {"soap_of_new"}),
        "soap_analytic": ("soap_gradient", {"soap_weight"}),
    }
    assert read.keys() == wanted.keys() | {"original_graph", "one_pass"}
    for name, (base, fields) in wanted.items():
        a, b = vars(read[name].model), vars(read[base].model)
        assert {k for k in a if a[k] != b[k]} == fields, name
        assert read[name].data == read[base].data
        assert (read[name].weight_decay != read[base].weight_decay) == (name == "soap_weight_decay")
        same = ("batch_size", "learning_rate", "warm_up", "clip", "average", "validation_samples", "precision")
        assert all(getattr(read[name], k) == getattr(read[base], k) for k in same)


@dataclass(frozen=True)
class Square:
    kind: Literal["square"] = "square"
    side: float = 1.0


@dataclass(frozen=True)
class Circle:
    kind: Literal["circle"] = "circle"
    radius: float = 1.0


@dataclass(frozen=True)
class Drawing:
    shape: Square | Circle = field(default_factory=Square)
    colour: str = field(default="red", metadata={"stored_as": "color"})
    rest: tuple[Circle, ...] = ()


@pytest.mark.parametrize(
    ("values", "drawing"),
    [
        ({}, Drawing()),
        ({"shape": {"side": 2}}, Drawing(Square(side=2))),
        ({"shape": {"kind": "circle", "radius": 3.0}}, Drawing(Circle(radius=3.0))),
        ({"color": "blue"}, Drawing(colour="blue")),
        ({"colour": "blue"}, Drawing(colour="blue")),
        ({"rest": [{"radius": 2}, {}]}, Drawing(rest=(Circle(radius=2), Circle()))),
    ],
)
def test_kinds_and_renamed_fields(values, drawing):
    assert config_from_dict(Drawing, values) == drawing
    plain = config_to_dict(drawing)
    assert set(plain) == {"shape", "color", "rest"}
    assert config_from_dict(Drawing, json.loads(json.dumps(plain))) == drawing


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"kind": "star"}, "one of square, circle"),
        ({"kind": "circle", "side": 1}, "no field 'side'"),
        (3, "is a table"),
    ],
)
def test_kinds_that_are_not_there(shape, words):
    with pytest.raises(ConfigError, match=words) as error:
        config_from_dict(Drawing, {"shape": shape}, "some.toml")
    one_sentence(error, "some.toml")


@pytest.mark.parametrize("rest", [3, [3], [{"side": 1}], {"radius": 1}])
def test_rows_that_are_none(rest):
    with pytest.raises(ConfigError, match=r"some\.toml\.rest") as error:
        config_from_dict(Drawing, {"rest": rest}, "some.toml")
    one_sentence(error, "some.toml")
