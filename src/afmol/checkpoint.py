"""Weights and training checkpoints: one .safetensors file that carries its configuration. No pickle."""

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .config import config_from_dict, config_to_dict
from .errors import AfmolError, ConfigError, WeightsError
from .files import write_file
from .limits import check_claim
from .model import MODELS, ImageModel, build

FORMAT, TRAINING = "afmol-weights", "afmol-training"
VERSION = 3
DEFAULT_MODEL = "measured"
STACK_CHECK = "stack_check"
"""The weights that doubt stacks (doubts.py); no model to read them with."""
MOST_STEPS = 10**12
"""More than any training run has."""


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a .safetensors file at once or not at all: of equal tensors and metadata the same bytes."""
    content = save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, metadata)
    write_file(path, _in_order(content))


def _in_order(content: bytes) -> bytes:
    """A .safetensors file with its header sorted: the library writes metadata in another order in each process.

    The length of the header, 8 bytes, the header, JSON and spaces up to a multiple of 8 bytes, the tensors' bytes.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a .safetensors file; WeightsError if it is none, or holds values that are not finite."""
    try:
        check_claim(Path(path).stat().st_size, str(path), WeightsError)  # it holds whatever it claims
        with safe_open(path, "pt") as file:
            tensors, metadata = {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except AfmolError:
        raise
    except FileNotFoundError as error:
        raise WeightsError(f"There is no weight file {path}.") from error
    except Exception as error:  # SafetensorError, OSError, and what a damaged header makes of torch
        why = " ".join(str(error).split())
        raise WeightsError(f"{path} is not a weight file of afmol (.safetensors): {why}.") from error
    wrong = next((k for k, v in tensors.items() if v.is_floating_point() and not v.float().isfinite().all()), None)
    if wrong is not None:
        raise WeightsError(f"{path} holds values that are not finite ({wrong}); it is damaged, or training diverged.")
    return tensors, metadata


def save_model(model: nn.Module, path: str | Path, name: str, half: bool = True) -> None:
    """Weights with their configuration; 16-bit floats by default (batch norm statistics stay 32-bit).

    Raises:
        WeightsError: weights that are not finite; the file that is there stays. ConfigError: a file that cannot be
        written.
    """
    tensors = {
        k: v.half() if half and v.dtype == torch.float32 and "running" not in k else v
        for k, v in model.state_dict().items()
    }
    if not all(v.isfinite().all() for v in tensors.values()):
        raise WeightsError(f"The weights are too large for {path}, or no numbers: training diverged, or is about to.")
    metadata = {"format": FORMAT, "version": str(VERSION), "name": name}
    write_tensors(path, tensors, metadata | {"config": json.dumps(config_to_dict(model.config))})


def load_model(name_or_path: str | Path = DEFAULT_MODEL) -> tuple[Any, str]:
    """A model ready for use, and its name, from a shipped name or a weight file.

    Raises:
        WeightsError: no such model, not a weight file, of a newer format, or damaged.
    """
    path = Path(name_or_path)
    if path.suffix != ".safetensors" and not path.is_file():  # a folder may have a model's name
        shipped = resources.files("afmol") / "weights" / f"{name_or_path}.safetensors"
        if not shipped.is_file():
            raise WeightsError(f"There is no model '{name_or_path}'; shipped: {', '.join(shipped_models())}.")
        path = Path(str(shipped))
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise WeightsError(f"{path} holds tensors but no afmol weights.")
    try:
        version = int(metadata["version"])
        if version < 1:
            raise ValueError("formats count from 1")
        if version > VERSION:
            raise WeightsError(f"{path} has format {version}, newer than this afmol reads ({VERSION}); update.")
        config = json.loads(metadata["config"])
        for upgrade in UPGRADES[version - 1 :]:
            tensors, config = upgrade(tensors, config)
        if config["kind"] not in MODELS:
            raise WeightsError(f"{path} holds a model {config['kind']!r}, which this afmol does not know; update.")
        held = sum(v.numel() for v in tensors.values())
        model = build(config_from_dict(MODELS[config["kind"]][0], config), held)
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    except WeightsError:
        raise
    except Exception as error:  # a configuration of anything may make torch raise anything
        raise WeightsError(
            f"{path} is damaged, or of another version: its weights do not fit its configuration."
        ) from error
    return model.eval(), metadata.get("name", path.stem)


def load_image_model(name_or_path: str | Path = DEFAULT_MODEL) -> tuple[Any, str]:
    """As `load_model`, for prediction and evaluation.

    Raises:
        WeightsError: as there; a model that reads no images.
    """
    model, name = load_model(name_or_path)
    if not isinstance(model, ImageModel):
        raise WeightsError(f"{name_or_path} is a model of kind {model.config.kind!r}, which reads no images.")
    return model, name


_File = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors and configuration of a weight file."""


def _from_1(tensors: dict[str, Tensor], config: dict[str, Any]) -> _File:
    """Format 2 has a graph network that reads and corrects depths; zeros leave that out."""
    node, width = tensors["bondnet.node.weight"], config["width"]
    further = {
        "bondnet.node.weight": torch.cat([node, node.new_zeros(width, 1)], dim=1),
        "bondnet.depth.weight": torch.zeros(1, width),
        "bondnet.depth.bias": torch.zeros(1),
    }
    return tensors | further, config


def _from_2(tensors: dict[str, Tensor], config: dict[str, Any]) -> _File:
    """Format 3 names the kind of model; of the range of slice spacings only the upper end was ever used."""
    rest = {name: value for name, value in config.items() if name != "step"}
    return tensors, rest | {"kind": "one-pass", "widest_step": config["step"][1]}


UPGRADES = (_from_1, _from_2)
"""From each format to the next."""


def shipped_models() -> list[str]:
    """Names of the models in the package that read images."""
    folder = resources.files("afmol") / "weights"
    names = {f.name.removesuffix(".safetensors") for f in folder.iterdir() if f.name.endswith(".safetensors")}
    return sorted(names - {STACK_CHECK})


def save_training(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    step: int,
    origin: dict[str, Any],
    settings: dict[str, Any] | None = None,
) -> None:
    """Everything that an exact resume needs; `origin` says which samples the steps see, `settings` what they do."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
    metadata = {"format": TRAINING, "version": str(VERSION), "step": str(step), "origin": json.dumps(origin)}
    metadata |= {} if settings is None else {"settings": json.dumps(settings)}
    write_tensors(path, tensors, metadata)


def training_settings(path: str | Path) -> dict[str, Any] | None:
    """Those that a training checkpoint was saved with, as plain values; None: one from before they were stored.

    Raises:
        WeightsError: a file that cannot be read, or is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        settings = json.loads(metadata["settings"]) if "settings" in metadata else None
    except Exception as error:  # SafetensorError, OSError, and JSON of anything
        raise WeightsError(f"{path} is no training checkpoint, or damaged; remove it to train anew.") from error
    if not isinstance(settings, dict | None):
        raise WeightsError(f"{path} is damaged; remove it to train anew.")
    return settings


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()


def load_training(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    origin: dict[str, Any],
) -> int:
    """Put a checkpoint back into model, optimizer and average; returns the step to go on from.

    Raises:
        WeightsError: not a training checkpoint, one of another model or of an older afmol.
        ConfigError: one of a run whose steps see other samples than those of `origin`.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != TRAINING:
        raise WeightsError(f"{path} is not a training checkpoint.")
    if "origin" not in metadata:
        raise WeightsError(f"{path} is of an afmol before format 3; finish that run with it, or train anew.")
    try:
        before, step, parts = json.loads(metadata["origin"]), int(metadata["step"]), _parts(tensors)
        state = _optimizer_state(parts["optimizer"], optimizer)
        if not 0 <= step < MOST_STEPS:
            raise ValueError("not as many steps as a run has")
    except Exception as error:  # JSON and names of anything
        raise WeightsError(f"{path} is damaged; remove it and go on from an older one, or train anew.") from error
    now = json.loads(json.dumps(origin))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            what = f"another {name}" if isinstance(before.get(name), dict) else f"{name} {before.get(name)}"
            raise ConfigError(f"{path} is of a run with {what}; go on with the same, or in another folder.")
    if bool(parts["average"]) != (average is not None):
        raise ConfigError(f"{path} is of a run with{'' if average is None else 'out'} an average of the weights.")
    try:
        model.load_state_dict(parts["model"])
        if average is not None:
            average.load_state_dict(parts["average"])
    except RuntimeError as error:
        raise WeightsError(
            f"{path} is the checkpoint of another model; remove it or train into another folder."
        ) from error
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return step


def _parts(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of a training checkpoint by what they belong to. KeyError: none of these."""
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        parts[part][name] = value
    return parts


def _optimizer_state(tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """What an optimizer remembers of each parameter, alike for all of a group. ValueError: not of these parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        i, _, name = key.partition(".")
        state.setdefault(int(i), {})[name] = value
    of_group = [k for k, group in enumerate(optimizer.param_groups) for _ in group["params"]]
    if not state.keys() <= set(range(len(of_group))):
        raise ValueError("not of these parameters")
    kinds = {(of_group[i], frozenset(kept)) for i, kept in state.items()}
    if len(kinds) > len({group for group, _ in kinds}):
        raise ValueError("not what one optimizer keeps")
    counts = torch.tensor([float(kept["step"]) for kept in state.values() if "step" in kept])
    if not ((counts >= 0) & (counts < MOST_STEPS)).all():
        raise ValueError("not as many steps as an optimizer does")
    return state
