from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from auxin.data import ImageData
from auxin.models import build
from auxin.training import RunConfig, Trainer
from auxin.training.depthwise import DepthwiseInFloat32, depthwise_in_float32


def gradients(convolution: nn.Conv2d, images: Tensor, mode: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Output, input gradient and weight gradient under bf16 autocast."""
    images = images.clone().requires_grad_()
    convolution.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        if mode:
            with DepthwiseInFloat32():
                out = convolution(images)
        else:
            out = convolution(images)
    out.float().square().sum().backward()
    assert images.grad is not None and convolution.weight.grad is not None
    return out, images.grad, convolution.weight.grad


class Watch(TorchDispatchMode):
    """Notes what the kernels of the backward pass get: (groups, stride, type of the images)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, int, torch.dtype]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.seen.add((args[9], max(args[4]), args[1].dtype))
        return func(*args, **(kwargs or {}))


def dtypes_of_convolutions(convolution: nn.Conv2d, images: Tensor) -> set[torch.dtype]:
    with Watch() as watch:
        gradients(convolution, images, mode=True)
    return {dtype for _, _, dtype in watch.seen}


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1},
        {"stride": (1, 2), "bias": False},
        {"dilation": 2, "padding": "same"},
        {"out_channels": 16},
    ],
    ids=str,
)
def test_slow_depthwise_gradients_are_computed_in_float32(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(**{"in_channels": 8, "out_channels": 8, "kernel_size": 3, "groups": 8, **options})
    images = torch.randn(4, 8, 9, 9)
    assert dtypes_of_convolutions(convolution, images) == {torch.float32}
    out, *ours = gradients(convolution, images, mode=True)
    assert out.dtype == torch.bfloat16
    exact = images.clone().requires_grad_()
    expected = torch.autograd.grad(convolution(exact).square().sum(), (exact, convolution.weight))
    for gradient, reference in zip(ours, expected, strict=True):
        # Only the output, and so the gradient that arrives, is rounded to bf16 (8 bits).
        torch.testing.assert_close(gradient, reference, rtol=0, atol=float(reference.abs().max()) / 2**7)


@pytest.mark.parametrize(
    "options",
    [{"groups": 8, "padding": 1}, {"groups": 1, "stride": 2}, {"groups": 4, "stride": 2}],
    ids=["depthwise, stride 1", "dense, stride 2", "grouped, stride 2"],
)
def test_other_convolutions_stay_in_bf16_bit_for_bit(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(8, 8, 3, **options)
    images = torch.randn(4, 8, 9, 9)
    assert dtypes_of_convolutions(convolution, images) == {torch.bfloat16}
    for with_mode, without in zip(
        gradients(convolution, images, True), gradients(convolution, images, False), strict=True
    ):
        assert torch.equal(with_mode, without)


def test_a_run_uses_it_where_it_trains(digits: ImageData, tmp_path: Path) -> None:
    config = RunConfig.from_dict(
        {
            "model": {"name": "mobilenet_v1", "kwargs": {"width": 4}},
            "train": {"epochs": 1, "batch_size": 512, "precision": "bf16-mixed"},
            "growth": {"method": None},
        }
    )
    with Watch() as watch:
        Trainer(config, tmp_path / "run", data=digits, console=Console(quiet=True)).fit()
    in_bf16 = {(groups, stride) for groups, stride, dtype in watch.seen if dtype == torch.bfloat16}
    assert (4, 1) in in_bf16
    assert (4, 2) not in in_bf16


def test_without_autocast_nothing_changes() -> None:
    torch.manual_seed(0)
    model = build("mobilenet_v1", width=8).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = model.eval()(images)
    with DepthwiseInFloat32():
        assert torch.equal(model(images), expected)


def test_a_model_without_such_a_convolution_is_not_watched() -> None:
    assert isinstance(depthwise_in_float32(build("mobilenet_v1", width=4)), DepthwiseInFloat32)
    assert not isinstance(depthwise_in_float32(build("vgg16", width=4)), DepthwiseInFloat32)
