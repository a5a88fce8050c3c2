"""``torch.export`` and AOTInductor: programs of any T and B, in a process that imports fastlstm."""

import subprocess
import sys

import pairwise
import pytest
import torch
from torch import nn
from torch.export import Dim

import fastlstm

TIME_AND_BATCH = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}


class _Model(nn.Module):
    """A model with one input; with lengths it has two."""

    def __init__(self, **options):
        super().__init__()
        self.lstm = fastlstm.LSTM(4, 6, 2, **options)

    def forward(self, x, lengths=None):
        return self.lstm(x, lengths=lengths)


def _inputs(T, B, lengths):
    x = torch.randn(T, B, 4)
    return (x, torch.randint(1, T + 1, (B,))) if lengths else (x,)


def _export(model, lengths, strict=False):
    shapes = (TIME_AND_BATCH, {0: Dim.DYNAMIC}) if lengths else (TIME_AND_BATCH,)
    return torch.export.export(model, _inputs(5, 3, lengths), dynamic_shapes=shapes, strict=strict)


@pairwise.parametrize(
    {"peephole": [False, True], "lengths": [False, True], "strict": [False, True]}
)
def test_any_number_of_steps_and_rows(peephole, lengths, strict):
    model = _Model(peephole=peephole, bidirectional=True, backend="cpu").eval()
    program = _export(model, lengths, strict)
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert calls.count(torch.ops.fastlstm.lstm_sequence.default) == 2
    for T, B in ((5, 3), (9, 7), (2, 2)):
        inputs = _inputs(T, B, lengths)
        torch.testing.assert_close(program.module()(*inputs), model(*inputs))


@pytest.mark.parametrize("peephole", [False, True])
def test_cell(peephole):
    cell = fastlstm.LSTMCell(4, 6, peephole=peephole)
    program = torch.export.export(cell, (torch.randn(3, 4),), dynamic_shapes=({0: Dim.DYNAMIC},))
    x = torch.randn(8, 4)
    torch.testing.assert_close(program.module()(x), cell(x))


def test_video_model():
    model = fastlstm.CompositeLSTM(4, 6, 2, conditional_reconstruction=True)
    program = torch.export.export(model, (torch.rand(5, 3, 4),), dynamic_shapes=(TIME_AND_BATCH,))
    frames = torch.rand(7, 2, 4)
    torch.testing.assert_close(program.module()(frames), model(frames))


# A process that has not seen the model; its arguments are the folder and the expression to load.
_OTHER_PROCESS = """
import sys
import torch
import fastlstm

folder = sys.argv[1]
inputs, expected = torch.load(f"{folder}/case.pt")
run = eval(sys.argv[2])
torch.testing.assert_close(run(*inputs), expected)
"""


def _check_in_another_process(folder, model, load):
    inputs = _inputs(9, 7, lengths=True)
    torch.save((inputs, model(*inputs)), folder / "case.pt")
    command = [sys.executable, "-c", _OTHER_PROCESS, str(folder), load]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_saved_program_runs_in_another_process(tmp_path):
    model = _Model(peephole=True).eval().requires_grad_(False)
    torch.export.save(_export(model, lengths=True), tmp_path / "model.pt2")
    _check_in_another_process(tmp_path, model, 'torch.export.load(f"{folder}/model.pt2").module()')


@pytest.mark.slow  # 10 s of g++ on 2 cores
def test_aot_inductor_package_runs_in_another_process(tmp_path):
    model = _Model(peephole=True, bidirectional=True).eval().requires_grad_(False)
    torch._inductor.aoti_compile_and_package(
        _export(model, lengths=True), package_path=str(tmp_path / "model.pt2")
    )
    _check_in_another_process(
        tmp_path, model, 'torch._inductor.aoti_load_package(f"{folder}/model.pt2")'
    )
