"""Run an nn.LSTM with ONNX Runtime."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from importlib.util import find_spec

import numpy as np
from torch import nn


def is_installed() -> bool:
    """Return whether both ``onnx`` and ``onnxruntime`` are installed."""
    return all(find_spec(name) for name in ("onnx", "onnxruntime"))


def version() -> str | None:
    """Return the version of onnxruntime; None if it is not installed."""
    try:
        return version_of("onnxruntime")
    except PackageNotFoundError:
        return None


def _graph(module: nn.LSTM) -> bytes:
    """Convert an nn.LSTM to an ONNX model with one LSTM node per layer.

    ONNX orders the gates i, o, f, g and returns (T, D, B, H).
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    D, H = (2 if module.bidirectional else 1), module.hidden_size
    nodes, constants = [], []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def gates(kind: str, layer: int) -> np.ndarray:
        suffixes = ("", "_reverse")[:D]
        tensors = [getattr(module, f"{kind}_l{layer}{s}").detach().numpy() for s in suffixes]
        i, f, g, o = np.split(np.stack(tensors), 4, axis=1)
        return np.concatenate([i, o, f, g], axis=1)

    x = "x"
    shape = constant("shape", np.array([0, 0, -1], dtype=np.int64))
    for layer in range(module.num_layers):
        biases = np.concatenate([gates("bias_ih", layer), gates("bias_hh", layer)], axis=1)
        inputs = [
            x,
            constant(f"W{layer}", gates("weight_ih", layer)),
            constant(f"R{layer}", gates("weight_hh", layer)),
            constant(f"B{layer}", biases),
        ]
        direction = "bidirectional" if D == 2 else "forward"
        nodes += [
            helper.make_node("LSTM", inputs, [f"Y{layer}"], hidden_size=H, direction=direction),
            helper.make_node("Transpose", [f"Y{layer}"], [f"Z{layer}"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"Z{layer}", shape], [f"y{layer}"]),
        ]
        x = f"y{layer}"
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "lstm",
        [tensor("x", TensorProto.FLOAT, ["T", "B", module.input_size])],
        [tensor(x, TensorProto.FLOAT, ["T", "B", D * H])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    return model.SerializeToString()


class Session:
    """An nn.LSTM in ONNX Runtime: a function from x (T, B, I) to y (T, B, D * H).

    Between :meth:`open` and :meth:`close` its own threads exist, which spin for a while after each
    call and would slow down anything else that is timed.
    """

    def __init__(self, module: nn.LSTM, threads: int) -> None:
        import onnxruntime

        self._graph = _graph(module)
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._session: onnxruntime.InferenceSession | None = None

    def open(self) -> None:
        """Load the model and start the threads."""
        import onnxruntime

        self._session = onnxruntime.InferenceSession(
            self._graph, self._options, providers=["CPUExecutionProvider"]
        )

    def close(self) -> None:
        """End the threads."""
        self._session = None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self._session.run(None, {"x": x})[0]
