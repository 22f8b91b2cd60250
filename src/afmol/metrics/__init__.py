"""How good a prediction is: atoms, classes, bonds and whole graphs, by our definitions and the original paper's.

`compare` counts one molecule, counts add up (`total`), `summary` divides them, `table` makes text of them.
"""

from .comparison import Comparison, compare, matching, total
from .figures import summary, table
from .spectra import SpectrumErrors, count_spectra, spectrum_summary
from .steps import Steps, count_steps, step_summary, step_table

__all__ = [
    "Comparison",
    "SpectrumErrors",
    "Steps",
    "compare",
    "count_spectra",
    "count_steps",
    "matching",
    "spectrum_summary",
    "step_summary",
    "step_table",
    "summary",
    "table",
    "total",
]
