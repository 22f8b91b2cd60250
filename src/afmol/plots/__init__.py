"""Pictures: a stack, a prediction, a molecule, samples, training curves, a confusion; one function and one file each.

The suffix says the format (.png, .pdf, .svg). Only matplotlib's objects are used, never pyplot: nothing global changes.
"""

from .molecule import molecule_picture, prediction_picture
from .samples import contact_sheet
from .stack import stack_strip
from .training import confusion_picture, loss_plot

__all__ = ["confusion_picture", "contact_sheet", "loss_plot", "molecule_picture", "prediction_picture", "stack_strip"]
