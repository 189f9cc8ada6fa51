"""What methods measure on a few batches: the model is only read, gradients never reach the user's parameters."""

from auxin.statistics.batches import Batch, take_batches
from auxin.statistics.units import Units

__all__ = ["Batch", "Units", "take_batches"]
