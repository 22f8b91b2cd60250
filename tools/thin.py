"""A smaller network from a trained one: fewer channels within the residual blocks of its U-Net.

usage: python tools/thin.py MODEL CONFIG.toml OUT.safetensors WIDTH WIDTH WIDTH

One width for each level (`model.inner`), and a training configuration, whose samples say what the channels carry. In
each block channels leave one after another, always the one whose loss costs what the block adds to its level least, and
the weights of the others make up for it as well as they can, by least squares over pixels: the optimal brain surgeon
(Hassibi & Stork, NIPS 1992) with a channel in place of a weight, the squared error of the second convolution's output
in place of the loss (He, Zhang & Sun, ICCV 2017). Blocks follow each other, so that each sees what those before it
became. What is still lost, training has to find again: `start = "OUT.safetensors"`.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from afmol.checkpoint import load_model, save_model
from afmol.config import config_from_toml
from afmol.data.loader import Simulated
from afmol.data.molecules import load_molecules
from afmol.model import OnePass
from afmol.model.one_pass.posnet import Block, PosNet
from afmol.training import TrainConfig

BATCHES, SEED = 10, 7000
ROWS = 20000
"""Pixels of a batch that count."""
RIDGE = 1e-6
"""Of the mean square of the inputs: channels may be the same."""


def by_level(net: PosNet) -> Iterator[tuple[int, str, Block]]:
    """Level, name and block, in the order in which an image meets them."""
    down = [(level, f"encoder.{level}", blocks) for level, blocks in enumerate(net.encoder)]
    up = [(level, f"decoder.{level}", blocks) for level, blocks in enumerate(net.decoder)][::-1]
    for level, name, blocks in (*down, *up):
        for k, block in enumerate(blocks):
            yield level, f"{name}.{k}", block


@torch.no_grad()
def gram(net: PosNet, block: Block, batches: list[Tensor]) -> Float[Tensor, "k k"]:
    """Mean products of the inputs of a block's second convolution, over pixels: k = channels x 9."""
    seen: list[Tensor] = []
    hook = block.conv2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    total, count = torch.zeros(()), 0
    for k, images in enumerate(batches):
        seen.clear()
        net(images)
        rows = F.unfold(seen[0], 3, padding=1).transpose(1, 2).flatten(0, 1)
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(k))[:ROWS]]
        total, count = total + (rows.T @ rows).double(), count + len(rows)
    hook.remove()
    return total / count


def eliminate(
    products: Float[Tensor, "k k"], weights: Float[Tensor, "out channels taps"], keep: int
) -> tuple[Int[Tensor, " keep"], Float[Tensor, "out keep taps"], float]:
    """Channels to keep, their new weights, and the share of the output's mean square that is lost.

    Taking a group g of inputs away from least-squares weights A costs tr(A_g^T (P^-1_gg)^-1 A_g), P being the products.
    """
    out, channels, taps = weights.shape
    a = weights.flatten(1).double().T  # -> k out
    p = products.double() + RIDGE * products.diagonal().mean() * torch.eye(len(products), dtype=torch.float64)
    inverse, whole, lost = torch.linalg.inv(p), float((a * (p @ a)).sum()), 0.0
    left = torch.arange(channels)
    while len(left) > keep:
        groups = left[:, None] * taps + torch.arange(taps)  # -> channels left, taps
        needed = torch.linalg.inv(inverse[groups[:, :, None], groups[:, None, :]])  # (P^-1_gg)^-1 of each
        cost = (a[groups] * (needed @ a[groups])).sum((1, 2))
        worst = int(cost.argmin())
        g, step = groups[worst], inverse[:, groups[worst]] @ needed[worst]
        a, inverse = a - step @ a[g], inverse - step @ inverse[g]
        lost += float(cost[worst])
        left = left[torch.arange(len(left)) != worst]
    return left, a.T.reshape(out, channels, taps)[:, left].to(weights.dtype), lost / whole


@torch.no_grad()
def thin(model: OnePass, batches: list[Tensor], inner: tuple[int, ...]) -> OnePass:
    """The model with `inner` channels within the blocks of each level; `model` itself has zeros for those that left."""
    smaller = OnePass(replace(model.config, inner=inner)).eval()
    state = model.state_dict()
    for level, name, block in by_level(model.posnet):
        weights = block.conv2.weight
        left, kept, lost = eliminate(gram(model.posnet, block, batches), weights.flatten(2), inner[level])
        block.conv2.weight.zero_()
        block.conv2.weight[:, left] = kept.unflatten(2, (3, 3))
        print(f"{name}: {len(left)} of {block.conv1.out_channels} channels, lost {lost:.4f}", flush=True)
        state[f"posnet.{name}.conv1.weight"] = block.conv1.weight[left]
        state[f"posnet.{name}.conv2.weight"] = block.conv2.weight[:, left]
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"posnet.{name}.norm2.{part}"] = getattr(block.norm2, part)[left]
    smaller.load_state_dict(state)
    return smaller


def main(model: str, config: str, out: str, *inner: str) -> None:
    network, name = load_model(model)
    run = config_from_toml(TrainConfig, config)
    data = replace(run.data, seed=SEED, shard_size=run.batch_size)
    source = Simulated(load_molecules(run.molecules, "train"), data, run.batch_size)
    batches = [source.batch(k).images for k in range(BATCHES)]
    save_model(thin(network, batches, tuple(map(int, inner))), out, name)


if __name__ == "__main__":
    main(*sys.argv[1:])
