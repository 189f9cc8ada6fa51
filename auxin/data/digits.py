"""scikit-learn's handwritten digits: 1,797 grey images of 8×8 pixels that need no download."""

from dataclasses import asdict

import numpy as np
import sklearn
import torch
from PIL import Image
from sklearn.datasets import load_digits

from auxin.data.dataset import Decoded, Options
from auxin.data.decode import pixels
from auxin.errors import DataError

SIZE = (8, 8)
MAXIMUM = 16
"""Pixels of the original are counts from 0 to 16."""


class Digits:
    """The digits as a source; they are one split.

    Args:
        options: Image size and channels, where others than 8×8 and grey are wanted.

    Raises:
        DataError: If a column or configuration is asked for; the digits have none.

    Reference:
        Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository (1998).
    """

    def __init__(self, options: Options) -> None:
        if options.image_column or options.label_column or options.config:
            raise DataError("The digits have no columns or configurations: leave those options away.")
        self.options = options
        self.fingerprint = ["digits", sklearn.__version__, asdict(options)]

    def decode(self) -> Decoded:
        """Return the digits with pixels scaled from 0..16 to 0..255."""
        bunch = load_digits()
        grey = np.round(bunch.images * (255 / MAXIMUM)).astype(np.uint8)
        size, channels = self.options.image_size or SIZE, self.options.channels or 1
        images = np.stack([pixels(Image.fromarray(image), channels, size).transpose(2, 0, 1) for image in grey])
        return Decoded(
            splits={"train": (torch.from_numpy(images), torch.from_numpy(bunch.target).long())},
            classes=tuple(str(name) for name in bunch.target_names),
            facts={"origin": f"digits of scikit-learn {sklearn.__version__}", "formats": {"embedded": len(images)}},
        )


def open_source(name: str, options: Options) -> Digits:
    """Return the digits; ``name`` is only there for symmetry with the other sources."""
    return Digits(options)
