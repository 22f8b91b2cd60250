"""Readings tested by simulation: the molecule that explains a stack best, of those that the network thinks possible."""

from .search import Refined, refined

__all__ = ["Refined", "refined"]
