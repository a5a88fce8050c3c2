"""The commands of ``fastlstm`` that train."""
