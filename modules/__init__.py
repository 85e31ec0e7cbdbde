"""What is minimized: LightningModules and their networks."""

from modules.classifier import Classifier
from modules.dense import MLP, ResidualMLP
from modules.function import FunctionTask
from modules.lenet import LeNet, LeNet5
from modules.pinn import PINN, Poisson, SineProduct
from modules.ratio import LikelihoodRatio
from modules.resnet import PreActResNet, ResNet
from modules.task import Task
from modules.wide_resnet import WideResNet

__all__ = [
    "MLP",
    "PINN",
    "Classifier",
    "FunctionTask",
    "LeNet",
    "LeNet5",
    "LikelihoodRatio",
    "Poisson",
    "PreActResNet",
    "ResNet",
    "ResidualMLP",
    "SineProduct",
    "Task",
    "WideResNet",
]
