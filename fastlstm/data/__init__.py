"""Video data: digit images and the Moving MNIST generator. Needs NumPy and torch only."""

from fastlstm.data.digits import load_digits
from fastlstm.data.moving_mnist import MovingMNIST

__all__ = ["MovingMNIST", "load_digits"]
