"""The mean of two networks that one run led to from the other: flatter, and so better on what they have not seen.

    python tools/average.py runs/measured_13/measured.safetensors runs/measured_14/measured.safetensors mean.safetensors

What the first lacks (such as model.sizes) is the second's. Source: Izmailov et al., Averaging weights leads to wider
optima and better generalization, UAI 2018.
"""

import sys

from afmol.checkpoint import load_model, save_model


def main(first: str, second: str, out: str) -> None:
    before, (network, name) = load_model(first)[0].state_dict(), load_model(second)
    for key, value in network.state_dict().items():
        if key in before and value.is_floating_point():
            value.copy_((value + before[key]) / 2)
    save_model(network, out, name)


if __name__ == "__main__":
    main(*sys.argv[1:])
