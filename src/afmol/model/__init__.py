"""From images to molecules: posnet (maps) -> peaks (candidate atoms) -> gnn (graph), put together in ours."""

from .ours import ModelConfig, Ours

__all__ = ["ModelConfig", "Ours"]
