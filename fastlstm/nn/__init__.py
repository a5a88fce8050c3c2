"""The modules of fastlstm: what ``torch.nn`` is to PyTorch."""
