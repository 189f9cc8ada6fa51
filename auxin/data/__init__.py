"""Image sets as whole uint8 tensors, and batches made from them on the device."""

from auxin.data.dataset import ImageData
from auxin.data.loader import Loader
from auxin.data.sources import load

__all__ = ["ImageData", "Loader", "load"]
