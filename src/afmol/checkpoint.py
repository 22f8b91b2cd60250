"""Weights and training checkpoints: one .safetensors file that carries its configuration. No pickle."""

import dataclasses
import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import ConfigError, WeightsError
from .files import write_file
from .model import OnePass, OnePassConfig

T = TypeVar("T")

FORMAT = "afmol-weights"
VERSION = 2
DEFAULT_MODEL = "base"


def config_from_dict(kind: type[T], values: dict[str, Any], where: str = "configuration") -> T:
    """A frozen config dataclass (nested ones too) from plain values, lists becoming tuples.

    Raises:
        ConfigError: a name that the configuration does not have, a value of another type, a field left out.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # pyrefly: ignore[bad-argument-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(f"{where} has no field '{unknown[0]}'; its fields are {', '.join(fields)}.")
    none = dataclasses.MISSING
    left_out = [f.name for f in fields.values() if f.default is f.default_factory is none and f.name not in values]
    if left_out:
        raise ConfigError(f"{where} must give the field '{left_out[0]}'.")
    return kind(**{name: _value(fields[name].type, value, f"{where}.{name}") for name, value in values.items()})


def _value(kind: Any, value: Any, where: str) -> Any:
    """A field's value; ConfigError if it is not of the field's type."""
    if dataclasses.is_dataclass(kind) != isinstance(value, dict):
        raise ConfigError(f"{where} is one value, not a table." if isinstance(value, dict) else f"{where} is a table.")
    if isinstance(kind, type) and isinstance(value, dict):
        return config_from_dict(kind, value, where)
    value = _tuples(value)
    if not _fits(kind, value):
        name = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
        raise ConfigError(f"{where} must be of type {name}, not {value!r}.")
    return value


def _fits(kind: Any, value: Any) -> bool:
    """Whether a value is of a type: str, int, float (an int will do), some words, tuples; a bool is no number."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        kinds = kinds[:1] * len(value) if isinstance(value, tuple) and kinds[-1] is ... else kinds
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, kinds, value))
    return isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)


def config_from_toml(kind: type[T], path: str | Path) -> T:
    """A config dataclass from a TOML file; ConfigError if it cannot be read."""
    try:
        values = tomllib.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a TOML configuration: {error}.") from error
    return config_from_dict(kind, values, Path(path).name)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a .safetensors file at once or not at all."""
    write_file(path, save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, metadata))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a .safetensors file; WeightsError if it is none."""
    try:
        with safe_open(path, "pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError as error:
        raise WeightsError(f"There is no weight file {path}.") from error
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a weight file of afmol (.safetensors): {error}.") from error


def save_model(model: OnePass, path: str | Path, name: str, half: bool = True) -> None:
    """Weights with their configuration; 16-bit floats by default (batch norm statistics stay 32-bit)."""
    tensors = {
        k: v.half() if half and v.dtype == torch.float32 and "running" not in k else v
        for k, v in model.state_dict().items()
    }
    metadata = {"format": FORMAT, "version": str(VERSION), "name": name}
    write_tensors(path, tensors, metadata | {"config": json.dumps(dataclasses.asdict(model.config))})


def load_model(name_or_path: str | Path = DEFAULT_MODEL) -> tuple[OnePass, str]:
    """A model ready to predict, and its name, from a shipped name or a weight file.

    Raises:
        WeightsError: no such model, not a weight file, of a newer format, or damaged.
    """
    path = Path(name_or_path)
    if path.suffix != ".safetensors" and not path.exists():
        shipped = resources.files("afmol") / "weights" / f"{name_or_path}.safetensors"
        if not shipped.is_file():
            raise WeightsError(f"There is no model '{name_or_path}'; shipped: {', '.join(shipped_models())}.")
        path = Path(str(shipped))
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise WeightsError(f"{path} holds tensors but no afmol weights.")
    try:
        version = int(metadata["version"])
        if version > VERSION:
            raise WeightsError(f"{path} has format {version}, newer than this afmol reads ({VERSION}); update.")
        model = OnePass(config_from_dict(OnePassConfig, json.loads(metadata["config"])))
        tensors = _from_1(tensors, model.config) if version == 1 else tensors
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError, ConfigError) as error:
        raise WeightsError(f"{path} is damaged: its weights do not fit its configuration.") from error
    return model.eval(), metadata.get("name", path.stem)


def _from_1(tensors: dict[str, Tensor], config: OnePassConfig) -> dict[str, Tensor]:
    """Format 2 has a graph network that reads and corrects depths; zeros leave that out."""
    node, width = tensors["bondnet.node.weight"], config.width
    return tensors | {
        "bondnet.node.weight": torch.cat([node, node.new_zeros(width, 1)], dim=1),
        "bondnet.depth.weight": torch.zeros(1, width),
        "bondnet.depth.bias": torch.zeros(1),
    }


def shipped_models() -> list[str]:
    """Names of the models in the package."""
    folder = resources.files("afmol") / "weights"
    return sorted(f.name.removesuffix(".safetensors") for f in folder.iterdir() if f.name.endswith(".safetensors"))


def save_training(
    path: str | Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int, config: dict[str, Any]
) -> None:
    """Everything that an exact resume needs."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
    metadata = {"format": "afmol-training", "version": str(VERSION), "step": str(step), "config": json.dumps(config)}
    write_tensors(path, tensors, metadata)


SAMPLES = ("batch_size", "devices", "stored", "data")
"""Fields of a run that decide which samples a step sees."""


def load_training(
    path: str | Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]
) -> int:
    """Put a checkpoint back into model and optimizer; returns the step to go on from.

    Raises:
        WeightsError: not a training checkpoint, or one of another model.
        ConfigError: one of a run whose steps see other samples than those of `config`.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != "afmol-training":
        raise WeightsError(f"{path} is not a training checkpoint.")
    before, now = (json.loads(text) for text in (metadata.get("config", "{}"), json.dumps(config)))
    for name in SAMPLES:
        a, b = before.get(name), now.get(name)
        same = all(b.get(k) == v for k, v in a.items()) if isinstance(a, dict) and isinstance(b, dict) else a == b
        if a is not None and not same:
            what = f"{name} {a}, not {b}" if not isinstance(a, dict) else f"another [{name}]"
            raise ConfigError(f"{path} is of a run with {what}; go on with the same, or in another folder.")
    try:
        model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    except RuntimeError as error:
        raise WeightsError(
            f"{path} is the checkpoint of another model; remove it or train into another folder."
        ) from error
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, i, name = key.split(".")
            state.setdefault(int(i), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return int(metadata["step"])
