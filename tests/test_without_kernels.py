"""Without the compiled module everything works that needs no stream, and one warning says why."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastlstm
import fastlstm_command

PACKAGE = Path(fastlstm.__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a copy of the package that has no compiled module."""
    root = tmp_path_factory.mktemp("without_kernels")
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(PACKAGE, root / "fastlstm", ignore=ignored)
    shutil.copy(fastlstm_command.__file__, root)
    shutil.copytree(PACKAGE.parent / "kernels", root / "fastlstm" / "kernels", ignore=ignored)
    return root


PROGRAM = """
import contextlib, io, json, sys, traceback
import torch, fastlstm
assert not fastlstm.backends.cpu.isas()
answers = []
for code in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            torch.manual_seed(0)
            exec(code, {"torch": torch, "fastlstm": fastlstm})
        except BaseException:
            traceback.print_exc()
            failed = True
        else:
            failed = False
    answers.append((failed, out.getvalue(), err.getvalue()))
json.dump(answers, sys.stdout)
"""

CALLS = {
    "plain": "fastlstm.LSTM(5, 7, 2, bidirectional=True)",
    "peephole": "fastlstm.LSTM(5, 7, 2, peephole=True)",
    "projection": "fastlstm.LSTM(5, 7, proj_size=3)",
    "cell": "fastlstm.LSTMCell(5, 7)",
    "cell with peepholes": "fastlstm.LSTMCell(5, 7, peephole=True)",
    "frozen": "fastlstm.LSTM(5, 7).freeze()",
    "frozen with peepholes": "fastlstm.LSTM(5, 7, peephole=True).freeze()",
    "checkpoints": "fastlstm.LSTM(5, 7, checkpoint_every=2)",
}

COMPARED = """
import copy
mine = {module}.double()
truth = copy.deepcopy(mine)
truth.backend = "reference"
x = torch.randn(*((3, 5) if isinstance(mine, fastlstm.LSTMCell) else (4, 3, 5))).double()
results = []
for module in (mine, truth):
    with torch.no_grad():
        first = module(x)[0]
    loss = module(x)[0].sin().sum()
    results.append([first, *torch.autograd.grad(loss, list(module.parameters()))])
for a, b in zip(*results, strict=True):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
"""

REASONS = """
print(fastlstm.explain(fastlstm.LSTM(5, 7)))
from fastlstm.cli import info
print(info())
try:
    fastlstm.LSTM(5, 7).stream(1)
except RuntimeError as error:
    print("stream", error)
try:
    fastlstm.LSTM(5, 7, backend="cpu")(torch.randn(4, 3, 5))
except ValueError as error:
    print("backend", error)
"""

OTHERS = """
lstm, x = fastlstm.LSTM(5, 7).eval(), torch.randn(4, 3, 5)
with torch.no_grad():
    error = (lstm(x)[0] - lstm.freeze(dtype="int8")(x)[0]).abs().max()
assert 0 < error < 0.02
model = fastlstm.CompositeLSTM(16, 4)
model.loss(torch.rand(3, 2, 16), torch.rand(3, 2, 16)).total.backward()
net = torch.nn.Sequential(torch.nn.LSTM(3, 4))
fastlstm.replace(net)
net(torch.randn(2, 1, 3))
"""

PROGRAMS = {
    "call": "fastlstm.LSTM(5, 7)(torch.randn(4, 3, 5))",
    "reasons": REASONS,
    "others": OTHERS,
}
PROGRAMS |= {name: COMPARED.replace("{module}", module) for name, module in CALLS.items()}


@pytest.fixture(scope="module")
def answers(folder):
    """Whether each program failed, and what it wrote to stdout and stderr; "import" comes first.

    All run in one process, since importing torch takes seconds.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(list(PROGRAMS.values())),
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = dict(zip(PROGRAMS, json.loads(done.stdout), strict=True))
    return {"import": (False, "", done.stderr)} | found


def said(answers, name):
    failed, out, err = answers[name]
    assert not failed, err
    return out, err


@pytest.mark.parametrize("name", CALLS)
def test_modules_compute_what_the_reference_does(answers, name):
    said(answers, name)


def test_one_warning_says_why(answers):
    warned = said(answers, "import")[1] + said(answers, "call")[1]
    assert warned.count("UserWarning") == 1
    assert "install a C++ compiler" in warned


def test_explain_info_and_streams_say_why(answers):
    out, _ = said(answers, "reasons")
    told = {line.split()[0] for line in out.splitlines() if "_C was not compiled" in line}
    assert told == {"cpu", "cuda", "stream", "backend"}
    assert "runs on 'torch'" in out


def test_rounded_weights_video_models_and_replacement(answers):
    said(answers, "others")


OTHER_PROCESSOR = """
#include <cstdio>
#include <stdexcept>
#include "cpu/kernels.h"
int main() {
  try {
    fastlstm::cpu::kernels("auto");
  } catch (const std::runtime_error& error) {
    std::printf("%zu %s", fastlstm::cpu::isas().size(), error.what());
  }
}
"""


def test_kernels_for_another_processor_say_so(tmp_path):
    """As FASTLSTM_ISAS=native leaves them on a machine without those instructions."""
    source, program = tmp_path / "main.cpp", tmp_path / "main"
    source.write_text(OTHER_PROCESSOR)
    csrc = Path(__file__).parents[1] / "csrc"
    command = ["g++", "-std=c++17", "-DFASTLSTM_RECURRENCE", f"-I{csrc}", "-pthread"]
    subprocess.run([*command, source, csrc / "cpu" / "dispatch.cpp", "-o", program], check=True)
    said = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert said.startswith("0 ") and "FASTLSTM_ISAS=native" in said
