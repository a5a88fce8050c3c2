"""The experiments of Srivastava, Mansimov and Salakhutdinov (ICML 2015), one command for each.

``fastlstm experiment NAME`` trains and evaluates the models of an experiment, and writes its
numbers and figures; ``docs/experiments.md`` is the report. The experiments need
``pip install 'fastlstm[experiments]'``.
"""
