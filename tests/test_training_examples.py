"""The examples in the docstrings of `fastlstm.training` run and print what they say."""

import doctest

import pytest

import fastlstm.training

EXAMPLES = [
    example
    for name in fastlstm.training.__all__
    for example in doctest.DocTestFinder(recurse=False).find(
        getattr(fastlstm.training, name), name, globs=vars(fastlstm.training).copy()
    )
    if example.examples
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_the_example_prints_what_it_says(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = []
    doctest.DocTestRunner().run(example, out=said.append)
    assert not said, "".join(said)


def test_what_is_called_from_python_has_an_example():
    expected = {"ClassificationTask", "SequenceTask", "VideoTask", "MotionData", "MovingMNISTData"}
    expected |= {"FileSequenceData", "TextData", "SmoothImageWeights", "Windows", "window_loss"}
    assert expected <= {example.name for example in EXAMPLES}
