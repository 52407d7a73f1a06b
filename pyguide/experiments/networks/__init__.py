"""The networks of the experiments: targets and guides."""

from pyguide.experiments.networks.fcn import DeepFCN, WideFCN
from pyguide.experiments.networks.recurrent import RNN, RNNClassifier
from pyguide.experiments.networks.resnet import ResNet, deep_convnet, resnet18, resnet50
from pyguide.experiments.networks.resnet1d import ResNet1D
from pyguide.experiments.networks.transformer import CausalTransformer, TransformerClassifier

__all__ = [
    "RNN",
    "CausalTransformer",
    "DeepFCN",
    "RNNClassifier",
    "ResNet",
    "ResNet1D",
    "TransformerClassifier",
    "WideFCN",
    "deep_convnet",
    "resnet18",
    "resnet50",
]
