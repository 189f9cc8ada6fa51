import pytest
import torch

from auxin.data import ImageData, load


@pytest.fixture(autouse=True)
def one_thread() -> None:
    # These networks are tiny: a second thread only waits, above all where tests run side by side.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return load("digits")
