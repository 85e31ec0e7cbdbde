"""What is minimized: LightningModules and their networks."""

from modules.allcnn import AllCNN
from modules.classifier import Classifier
from modules.cnn import CNN, FC, ConvNet
from modules.dense import MLP, ResidualMLP
from modules.evaluation import Evaluation
from modules.function import FunctionTask
from modules.lenet import LeNet, LeNet5
from modules.meta import MetaTask
from modules.mnist import MnistConv, MnistFC
from modules.pinn import PINN, Poisson, SineProduct
from modules.problems import Classification, Quadratic
from modules.ratio import LikelihoodRatio
from modules.recurrent import (
    CharLSTM,
    LanguageModel,
    StreamLSTM,
    TokenNetwork,
    WordLSTM,
)
from modules.regression import Regression
from modules.resnet import PreActResNet, ResNet, ResNet8
from modules.small import SmallCharLSTM, SmallLeNet, SmallMnistFC
from modules.tangent import NTKConv2d, NTKLinear, ShallowNet, TorchvisionNet
from modules.task import Task
from modules.wide_resnet import WideResNet

__all__ = [
    "CNN",
    "FC",
    "MLP",
    "PINN",
    "AllCNN",
    "CharLSTM",
    "Classification",
    "Classifier",
    "ConvNet",
    "Evaluation",
    "FunctionTask",
    "LanguageModel",
    "LeNet",
    "LeNet5",
    "LikelihoodRatio",
    "MetaTask",
    "MnistConv",
    "MnistFC",
    "NTKConv2d",
    "NTKLinear",
    "Poisson",
    "PreActResNet",
    "Quadratic",
    "Regression",
    "ResNet",
    "ResNet8",
    "ResidualMLP",
    "ShallowNet",
    "SineProduct",
    "SmallCharLSTM",
    "SmallLeNet",
    "SmallMnistFC",
    "StreamLSTM",
    "Task",
    "TokenNetwork",
    "TorchvisionNet",
    "WideResNet",
    "WordLSTM",
]
