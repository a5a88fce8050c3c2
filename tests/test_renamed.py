"""Names of version 0.1: modules, and pickles and class paths that contain them."""

import importlib
import pickle
import sys

import pytest
import torch

import fastlstm
from fastlstm.renamed import RENAMED


@pytest.mark.parametrize("old", sorted(RENAMED))
def test_an_old_module_has_what_the_new_one_has(old):
    for new in RENAMED[old].split():
        module = importlib.import_module(f"fastlstm.{new}")
        for name, value in vars(module).items():
            if isinstance(value, type) and value.__module__ == module.__name__:
                assert getattr(importlib.import_module(f"fastlstm.{old}"), name) is value


def test_old_modules_are_attributes_of_the_package(monkeypatch):
    for name in ("modules", "interop", "types"):  # as in a process that has not imported them
        monkeypatch.delattr(fastlstm, name, raising=False)
        monkeypatch.delitem(sys.modules, f"fastlstm.{name}", raising=False)
    assert fastlstm.modules.LSTM is fastlstm.LSTM
    assert fastlstm.interop.from_kernels is fastlstm.nn.convert.from_kernels
    assert fastlstm.types.Problem and fastlstm.PackedWeights
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        fastlstm.nonsense  # noqa: B018


def test_an_unknown_name_of_an_old_module_is_an_attribute_error():
    import fastlstm.modules

    with pytest.raises(AttributeError, match=r"fastlstm\.modules.*nonsense"):
        fastlstm.modules.nonsense  # noqa: B018


def test_an_unknown_module_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("fastlstm.nonsense")


OLD_HOMES = {
    fastlstm.LSTM: "fastlstm.modules",
    fastlstm.LSTMCell: "fastlstm.cell",
    fastlstm.CompositeLSTM: "fastlstm.video_models",
}


def old_pickle(module):
    """The module as version 0.1 pickled it: protocol 0 has names of classes in plain text."""
    data = pickle.dumps(module, protocol=0)
    homes = OLD_HOMES | {
        "fastlstm.models.encoder_decoder": "fastlstm.stack",
        "fastlstm.backends.cpu.prepacked": "fastlstm.backends.packed",
    }
    for new, old in homes.items():
        name = new if isinstance(new, str) else new.__module__
        data = data.replace(f"c{name}\n".encode(), f"c{old}\n".encode())
    assert b"cfastlstm.nn" not in data and b"cfastlstm.models" not in data
    return data


@pytest.mark.parametrize(
    "module",
    [
        fastlstm.LSTM(3, 4, peephole=True),
        fastlstm.LSTM(3, 4).freeze(),
        fastlstm.LSTMCell(3, 4),
        fastlstm.CompositeLSTM(3, 4),
    ],
    ids=lambda module: type(module).__name__,
)
def test_pickles_of_version_0_1(module):
    loaded = pickle.loads(old_pickle(module))
    assert type(loaded) is type(module)
    assert all(map(torch.equal, loaded.parameters(), module.parameters()))
