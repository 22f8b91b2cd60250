"""Force models: how the molecule pulls at the probe. One file each, named here; nothing else knows them.

Evaluated directly, pixel by pixel; no grid. `force.py` says what a model provides.
"""

from .exponential import EXPONENTIAL, EXPONENTIAL_10
from .force import ForceModel
from .lennard_jones import LENNARD_JONES

FORCES = {force.name: force for force in (LENNARD_JONES, EXPONENTIAL, EXPONENTIAL_10)}

__all__ = ["EXPONENTIAL", "EXPONENTIAL_10", "FORCES", "LENNARD_JONES", "ForceModel"]
