"""Triton kernels of the LSTM; the folder ``kernels/`` is installed as ``fastlstm.kernels``."""
