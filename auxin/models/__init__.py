"""Models to grow: plain ``nn.Module`` classes without any growth code, and their table by name."""

from auxin.models.mobilenet import MobileNetV1, mobilenet_v1
from auxin.models.resnet import ResNet20, resnet20
from auxin.models.secnn import SECNN, secnn
from auxin.models.small_cnn import SmallCNN, small_cnn
from auxin.models.table import MODELS, build
from auxin.models.vgg import VGG16, vgg16
from auxin.models.vit import ViT, vit

__all__ = [
    "MODELS",
    "SECNN",
    "VGG16",
    "MobileNetV1",
    "ResNet20",
    "SmallCNN",
    "ViT",
    "build",
    "mobilenet_v1",
    "resnet20",
    "secnn",
    "small_cnn",
    "vgg16",
    "vit",
]
