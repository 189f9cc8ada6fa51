import pytest
import torch
from torch import nn

from auxin.models import (
    MODELS,
    SECNN,
    VGG16,
    MobileNetV1,
    ResNet20,
    SmallCNN,
    ViT,
    mobilenet_v1,
    resnet20,
    secnn,
    small_cnn,
    vgg16,
    vit,
)

ANY_SIZE = sorted(set(MODELS) - {"secnn", "vit"})
"""Those that take images of any size; the sizes of the others are in their own tests."""


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (vgg16(), 28_666),  # the counts of the papers' tables
        (vgg16(num_classes=100), 30_196),
        (mobilenet_v1(), 19_978),
        (resnet20(), 272_474),  # 269,722 of option A plus two projections: 1·16·32 + 1·32·64 + 2·(32 + 64)
        (small_cnn(), 398),
        (secnn(), 9_024),
    ],
)
def test_parameter_counts(model: nn.Module, expected: int) -> None:
    assert num_parameters(model) == expected


@pytest.mark.parametrize(("width", "channels", "classes"), [(16, 3, 10), (7, 1, 3)])
def test_the_count_in_the_docstring_of_vgg(width: int, channels: int, classes: int) -> None:
    count = 9 * width * channels + 108 * width**2 + 26 * width + classes * (width + 1)
    assert num_parameters(vgg16(classes, width, channels)) == count


@pytest.mark.parametrize("name", ANY_SIZE)
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32), (33, 47), (64, 64)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_trains(name: str, size: tuple[int, int], channels: int) -> None:
    torch.manual_seed(0)
    model = MODELS[name](num_classes=5, width=4, in_channels=channels)
    logits = model(torch.randn(4, channels, *size))
    assert logits.shape == (4, 5)
    logits.logsumexp(1).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_activations_are_modules_called_once(name: str) -> None:
    model = MODELS[name]()
    calls: dict[str, int] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.ReLU | nn.LeakyReLU | nn.GELU):
            assert not getattr(module, "inplace", False)
            calls[path] = 0
            module.register_forward_hook(lambda *_, path=path: calls.update({path: calls[path] + 1}))
    model(torch.randn(2, 1 if name == "small_cnn" else 3, 32, 32))
    assert calls and set(calls.values()) == {1}


def test_mobilenet_halves_the_map_at_blocks_2_4_6_12() -> None:
    model, sizes = mobilenet_v1().eval(), []
    for block in model.features:
        block.register_forward_hook(lambda _module, _args, output: sizes.append(output.shape[-1]))
    model(torch.randn(1, 3, 32, 32))
    assert sizes == [32, 16, 16, 8, 8, 4, 4, 4, 4, 4, 4, 2, 2]


def test_vgg_names_and_stages() -> None:
    kinds = [type(layer).__name__ for layer in vgg16().features]
    stages = [stage.count("Conv2d") for stage in " ".join(kinds).split("MaxPool2d")]
    assert stages == [2, 2, 3, 3, 3, 0]
    assert kinds[:3] == ["Conv2d", "BatchNorm2d", "ReLU"]


@pytest.mark.parametrize("name", ANY_SIZE)
def test_initial_scale_keeps_the_signal(name: str) -> None:
    torch.manual_seed(0)
    channels = 1 if name == "small_cnn" else 3
    model = MODELS[name](width=64)
    logits = model(torch.randn(16, channels, 32, 32))
    assert 0.05 < logits.std().item() < 20
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.15), path


def test_factories_return_their_classes() -> None:
    made = [vgg16(), mobilenet_v1(), resnet20(), small_cnn(), secnn(), vit()]
    assert [type(model) for model in made] == [VGG16, MobileNetV1, ResNet20, SmallCNN, SECNN, ViT]
