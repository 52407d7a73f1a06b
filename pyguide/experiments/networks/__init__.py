"""The networks of the experiments: targets and guides."""

from pyguide.experiments.networks.fcn import DeepFCN
from pyguide.experiments.networks.resnet1d import ResNet1D

__all__ = ["DeepFCN", "ResNet1D"]
