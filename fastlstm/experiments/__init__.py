"""The experiments of Srivastava, Mansimov and Salakhutdinov (ICML 2015), each by one command.

`fastlstm experiment NAME` trains what it needs, evaluates it, and leaves a table and pictures;
docs/experiments.md is the report. Needs the extra: pip install 'fastlstm[experiments]'.
"""
