"""The training commands of ``fastlstm``, built on Lightning's command line."""
