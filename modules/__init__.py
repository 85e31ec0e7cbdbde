"""What is minimized: LightningModules and their networks."""

from modules.classifier import Classifier
from modules.lenet import LeNet, LeNet5
from modules.task import Task

__all__ = ["Classifier", "LeNet", "LeNet5", "Task"]
