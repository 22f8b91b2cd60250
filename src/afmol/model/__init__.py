"""From images to molecules: a folder a model, and the one table of them.

A model that trains is a `torch.nn.Module` with a frozen `config`, whose field `kind` names it here, and
`forward(batch, generator) -> losses`. One that reads images has `predict(images, threshold) -> molecules` besides, and
its configuration says what images it takes. One that can start from the weights of a model of its class with another
configuration has `take(other)`. A further model is its own file or folder, a line in `MODELS` and a member
of `ModelConfig`.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ..errors import ConfigError
from ..limits import check_claim
from ..structures import Molecule
from .asd import Asd, AsdConfig
from .one_pass import OnePass, OnePassConfig
from .soap_predictor import SoapPredictor, SoapPredictorConfig
from .stack_check import StackCheck, StackCheckConfig

__all__ = [
    "MODELS",
    "Asd",
    "AsdConfig",
    "ImageModel",
    "Model",
    "ModelConfig",
    "OnePass",
    "OnePassConfig",
    "SoapPredictor",
    "SoapPredictorConfig",
    "StackCheck",
    "StackCheckConfig",
    "build",
    "deepest",
]


@runtime_checkable
class Model(Protocol):
    """What training needs; always a `torch.nn.Module`."""

    config: Any
    """A frozen dataclass with the field `kind`, from which the model can be built again."""

    def forward(self, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of a batch, each a scalar by its name; their sum is minimised."""
        ...


@runtime_checkable
class ImageModel(Model, Protocol):
    """What prediction and evaluation need besides: `config` has `slices`, `pixel`, `widest_step`, `depth` (A), and
    `deepest` if it can be asked for deeper atoms."""

    def predict(
        self, images: Float[Tensor, "batch slices nx ny"], threshold: float = 0.5, depth: float | None = None
    ) -> list[Molecule]:
        """The molecule in each stack, image frame, A; atoms with less confidence than the threshold are left out, those
        deeper than `depth` too. None: down to where the labels that it learned from went, the configuration's depth."""
        ...


def deepest(model: ImageModel) -> float:
    """Largest depth below the topmost atom down to which a model can be asked for atoms, A."""
    return max(model.config.depth, getattr(model.config, "deepest", 0.0))


MODELS: dict[str, tuple[type, type[nn.Module]]] = {
    "one-pass": (OnePassConfig, OnePass),
    "asd": (AsdConfig, Asd),
    "soap-predictor": (SoapPredictorConfig, SoapPredictor),
    "stack-check": (StackCheckConfig, StackCheck),
}
"""Kind: its configuration and its class."""
ModelConfig = OnePassConfig | AsdConfig
"""What a training run on images may name: the configurations of those of MODELS that read them (`A | B`)."""


def build(config: Any, most: int | None = None) -> nn.Module:
    """The model of a configuration, with random weights.

    Args:
        config: of one of MODELS.
        most: numbers that its parameters may hold together, such as those of a file that is to fill them; as many as
            the limit on memory allows (limits.py) if None.

    Raises:
        ConfigError: a larger model, before it is there as a whole.
    """
    _, model = MODELS[config.kind]
    count = 0

    def counted(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        count += 0 if parameter is None else parameter.numel()
        check_claim(4 * count, "A model of this configuration", ConfigError)
        if most is not None and count > most:
            raise ConfigError(f"A model of this configuration holds more than {most} numbers.")

    hook = register_module_parameter_registration_hook(counted)
    try:
        return model(config)
    finally:
        hook.remove()
