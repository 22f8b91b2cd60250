"""Packed rows that belong to groups (atoms of molecules, candidates of images)."""

import torch
from jaxtyping import Int
from torch import Tensor


def rank_within(group: Int[Tensor, " n"], key: Tensor) -> Int[Tensor, " n"]:
    """Place of each row in its own group, from 0, in ascending order of `key`; rows of one key stay as they are."""
    order = key.argsort(stable=True)
    order = order[group[order].argsort(stable=True)]
    ordered = group[order].contiguous()
    rank = torch.arange(len(group), device=group.device) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(rank).index_copy(0, order, rank)
