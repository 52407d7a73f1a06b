"""The networks of the experiments: targets and guides."""

from pyguide.experiments.networks.fcn import DeepFCN, WideFCN
from pyguide.experiments.networks.resnet import ResNet, deep_convnet, resnet18, resnet50
from pyguide.experiments.networks.resnet1d import ResNet1D

__all__ = [
    "DeepFCN",
    "ResNet",
    "ResNet1D",
    "WideFCN",
    "deep_convnet",
    "resnet18",
    "resnet50",
]
