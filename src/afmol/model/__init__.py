"""From images to molecules: posnet (maps) -> peaks (candidate atoms) -> gnn (graph), put together in ours."""

from .one_pass.one_pass import OnePass, OnePassConfig

__all__ = ["OnePass", "OnePassConfig"]
