"""What can be chosen in the ASD model: the original, the report's modification and what the report suggests."""

from dataclasses import dataclass
from typing import Literal

from ...errors import ConfigError


@dataclass(frozen=True)
class AsdConfig:
    """What a weight file needs to rebuild the model. The defaults are the original model (Oinonen et al., MRS Bulletin
    2022); "report" below is its modification with SOAP.

    Raises:
        ConfigError: values that do not fit together.
    """

    kind: Literal["asd"] = "asd"
    slices: int = 10
    """Slices that the network takes, at least 6."""
    pixel: float = 0.125
    """Pixel size that the network takes, A."""
    widest_step: float = 0.14
    """Widest slice spacing that it was trained for, A."""
    depth: float = 0.8
    """Atoms are asked for down to this far below the topmost one, A."""
    channels: tuple[int, int, int, int] = (4, 8, 16, 32)
    """Width of the U-Net's encoder and of the encoding blocks at 1, 1/2, 1/4, 1/8 of the image's pixels; its decoder
    has the same on the way back, its gates the last."""
    mean_one_gates: bool = False
    """The softmax that weighs the voxels of a skip connection, times their number. As published, a skip of n voxels
    passes 1 / n of itself, some 1e-5: the U-Net starts without skips and learns slowly."""
    soap: Literal["none", "report"] = "none"
    """How nodes are described: position and class through one layer; or SOAP with them, each of the 15 pairs of classes
    apart (report, figure 15)."""
    soap_scale: float = 1.0
    """SOAP's entries are divided by this. The report takes them as they are: up to 1500 beside ones and zeros."""
    soap_gradient: Literal["none", "plug-in", "expected"] = "none"
    """Of predicted atoms: SOAP of the most probable class, or of the class probabilities, with their gradient: that of
    the mean density or the mean over independently drawn classes."""
    soap_of_new: Literal["computed", "report", "invariant"] = "computed"
    """SOAP of the graph that holds the new node: computed from its predicted class; or what a network says, the SOAP
    predictor of the report (its figure 6) or ours, and then kept for the next step."""
    soap_weight: float = 0.0
    """Weight of the mean squared error of that SOAP, in units of 100, among the losses. Computed: against SOAP with the
    true class. Said by a network: against SOAP with the class that it was told."""
    new_node_soap: bool = True
    """Whether the new node's own SOAP is among its features for the bonds (report, 4.2.1, point 4)."""
    shared: bool = True
    """One set of parameters processes the nodes for classes and for bonds (original; report, appendix A), or two."""
    class_rounds: int = 3
    """Rounds of messages before the class; 0: none."""
    bond_rounds: int = 6
    """Rounds of messages before the bonds, counted from the start; the original's 3 and then 3 more."""
    symmetric_messages: bool = False
    """The message of a bond is the mean over both orders of its atoms (report, section 3), or one for each direction
    (published code)."""
    attention_layers: int = 2
    """Rounds of attention over the 15 pairs of classes (report)."""
    scaled_attention: bool = False
    """Divide the products of keys and queries by the root of their length."""
    coordinates: Literal["absolute", "relative"] = "absolute"
    """Positions in the image's frame; or, in the plane, from the new atom on, the attention over the image then weighed
    by the distance from it."""
    order: Literal["random", "x", "y", "z"] = "random"
    """The order in which atoms are added: at random or from the largest coordinate down."""
    removals: int = 1
    """Partial graphs an image and training step; they share the image's encoding."""
    crop: int = 0
    """Side, in pixels, of the part of each image that is trained on, around an atom at random; 0: whole images."""
    train: Literal["all", "cnn", "coarse", "classes", "graph", "builder", "bonds"] = "all"
    """What is trained; the rest is frozen. "cnn": what serves positions and classes, so that image encodings carry
    elements; "coarse", a first stage: the same with a grid half as fine, read from the decoder's last map but one, in a
    third of the time; "classes": what serves these alone, in a third of the time too, without the U-Net's decoder;
    "graph": all but the U-Net; "builder": the graph builder on the frozen CNN; "bonds": what serves bonds alone."""

    @property
    def needs_start(self) -> bool:
        """Whether training stands on weights that are not trained, which random ones are not worth."""
        return self.train in ("graph", "builder", "bonds")

    def __post_init__(self) -> None:
        if self.slices < 6 or not 0.05 <= self.pixel <= 0.5:
            raise ConfigError("The ASD model takes at least 6 slices and pixels of 0.05 to 0.5 A.")
        if min(self.class_rounds, self.bond_rounds, self.crop) < 0 or min(self.removals, self.attention_layers) < 1:
            raise ConfigError(
                "Rounds of messages and model.crop are 0 or more, model.removals and model.attention_layers 1 or more."
            )
        if min(self.channels) < 1 or not self.soap_scale > 0:
            raise ConfigError("model.channels and model.soap_scale must be positive.")
        if self.soap == "none" and self.soap_gradient != "none":
            raise ConfigError("model.soap_gradient needs a model with SOAP: model.soap = 'report'.")
        if self.soap_weight < 0 or (self.soap == "none" and (self.soap_weight or self.soap_of_new != "computed")):
            raise ConfigError(
                "model.soap_of_new and model.soap_weight need a model with SOAP, and the weight is not negative."
            )
        if self.soap_of_new != "computed" and self.soap_gradient != "none":
            raise ConfigError(
                "A network says SOAP of a class, not of class probabilities: model.soap_gradient = 'none'."
            )
