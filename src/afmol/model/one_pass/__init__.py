"""One pass: posnet (maps) -> peaks (candidate atoms) -> graph (existence, element, depth, bonds)."""

from .one_pass import OnePass, OnePassConfig

__all__ = ["OnePass", "OnePassConfig"]
