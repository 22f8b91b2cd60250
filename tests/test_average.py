"""tools/average.py: the mean of two networks."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from afmol.checkpoint import load_model, save_model
from afmol.model import OnePass, OnePassConfig

TOOL = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "average.py"))
TINY = OnePassConfig(channels=(16, 24, 32), blocks=1, width=16, rounds=1)


@pytest.mark.parametrize("sizes", [False, True])
def test_weights_are_the_mean_and_what_the_first_lacks_is_the_seconds(sizes, tmp_path):
    for name, config in (("a", TINY), ("b", replace(TINY, sizes=sizes))):
        torch.manual_seed(ord(name))
        network = OnePass(config)
        torch.nn.init.normal_(network.posnet.head.bias)
        network.posnet.encoder[0][0].norm1.num_batches_tracked += 7
        save_model(network, tmp_path / f"{name}.safetensors", name)
    TOOL["main"](*(str(tmp_path / f"{name}.safetensors") for name in "abc"))
    (a, _), (b, _), (c, name) = (load_model(tmp_path / f"{name}.safetensors") for name in "abc")
    assert name == "b"
    assert c.config == b.config
    first, second = a.state_dict(), b.state_dict()
    for key, value in c.state_dict().items():
        wanted = (first[key] + second[key]) / 2 if key in first and value.is_floating_point() else second[key]
        torch.testing.assert_close(value, wanted, rtol=1e-3, atol=1e-3)  # stored in half precision
        if key == "posnet.head.bias":
            assert (value - second[key]).abs().max() > 0.1
