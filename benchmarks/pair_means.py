"""The sum over pairs in attention, forward and backward: the compiled loop beside torch, one thread, in turns.

usage: python benchmarks/pair_means.py [ROUNDS]
"""

import sys
import time

import torch

from afmol.model.pair_means import mean_of_pairs, reference

ROWS, KEYS, QUERIES = 1000, 4, 4
WIDTHS = (16, 32, 64, 128)


def milliseconds(function, inputs, gradient):
    """Of one call and its gradient."""
    start = time.perf_counter()
    torch.autograd.grad(function(*inputs), inputs, gradient)
    return 1e3 * (time.perf_counter() - start)


def main(rounds="20"):
    """Print the table: the best of ROUNDS, after one that compiles."""
    torch.set_num_threads(1)
    print(f"{ROWS} rows of {KEYS} x {QUERIES} pairs    compiled    torch")
    for width in WIDTHS:
        shapes = ((KEYS, width), (QUERIES, width), (KEYS, QUERIES))
        inputs = [torch.randn(ROWS, *shape, requires_grad=True) for shape in shapes]
        gradient = torch.randn(ROWS, KEYS, width)
        times = [
            [milliseconds(f, inputs, gradient) for f in (mean_of_pairs, reference)] for _ in range(int(rounds) + 1)
        ]
        ours, theirs = (min(column) for column in zip(*times[1:], strict=True))
        print(f"width {width:3d}: {ours:.2f} ms, {theirs:.2f} ms, {theirs / ours:.1f} times")


if __name__ == "__main__":
    main(*sys.argv[1:])
