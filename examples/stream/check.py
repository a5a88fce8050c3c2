"""Write an LSTM and a sequence to a file, run the program on it, and check what it computed.

python examples/stream/check.py build/stream/stream
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import fastlstm

LIMITS = {"float32": 1e-6, "bfloat16": 0.006, "int8": 0.01}  # relative error


def write(path: Path, lstm: fastlstm.LSTM, x: torch.Tensor, weight_type: int) -> None:
    """Write the weights and x (T, B, I) as stream.c reads them."""
    T, B, I = x.shape
    sizes = (I, lstm.hidden_size, lstm.proj_size, lstm.num_layers)
    with path.open("wb") as file:
        np.array([weight_type, B, *sizes, T, lstm.peephole], dtype=np.int64).tofile(file)
        for weight_ih, weight_hh, bias_ih, bias_hh, weight_ch, weight_hr in lstm.weights():
            zeros = torch.zeros(4 * lstm.hidden_size)
            bias_ih = zeros if bias_ih is None else bias_ih
            bias_hh = zeros if bias_hh is None else bias_hh
            for weight in (weight_ih, weight_hh, bias_ih, bias_hh, weight_ch, weight_hr):
                if weight is not None:
                    weight.detach().float().numpy().tofile(file)
        x.numpy().tofile(file)


def main(program: str) -> None:
    """Check the program with weights of each type."""
    torch.manual_seed(0)
    lstm = fastlstm.LSTM(40, 100, num_layers=2, proj_size=60, peephole=True)
    x = torch.randn(50, 2, 40)
    with torch.no_grad():
        expected = lstm(x)[0]
    with tempfile.TemporaryDirectory() as folder:
        for weight_type, (name, limit) in enumerate(LIMITS.items()):
            source, target = Path(folder, "input"), Path(folder, "output")
            write(source, lstm, x, weight_type)
            subprocess.run([program, source, target], check=True)
            y = torch.from_numpy(np.fromfile(target, dtype=np.float32)).view_as(expected)
            error = float((y - expected).norm() / expected.norm())
            print(f"{name}: relative error {error:.1e}, at most {limit}")
            if not error <= limit:
                sys.exit("the program's output is wrong")


if __name__ == "__main__":
    main(*sys.argv[1:])
