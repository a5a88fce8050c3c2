"""Run an nn.LSTM with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn


def graph(module: nn.LSTM, has_states: bool = False) -> bytes:
    """Convert an nn.LSTM to an ONNX model with one LSTM node per layer.

    ONNX orders the gates i, o, f, g and returns (T, D, B, H). With ``has_states`` the module has
    one layer and one direction, and the model is this node alone: from x, h and c to Y0
    (T, 1, B, H), h_n and c_n.
    """
    import onnx
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
            *(["", "h", "c"] if has_states else []),
        ]
        outputs = [f"Y{layer}", *(["h_n", "c_n"] if has_states else [])]
        direction = "bidirectional" if D == 2 else "forward"
        nodes += [
            helper.make_node("LSTM", inputs, outputs, hidden_size=H, direction=direction),
            helper.make_node("Transpose", [f"Y{layer}"], [f"Z{layer}"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"Z{layer}", shape], [f"y{layer}"]),
        ]
        x = f"y{layer}"

    def tensor(name: str, *shape: str | int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    given, returned = [tensor("x", "T", "B", module.input_size)], [tensor(x, "T", "B", D * H)]
    if has_states:
        nodes, constants = nodes[:1], constants[1:]
        given += [tensor(name, 1, "B", H) for name in ("h", "c")]
        returned = [tensor("Y0", "T", 1, "B", H)]
        returned += [tensor(name, 1, "B", H) for name in ("h_n", "c_n")]
    graph = helper.make_graph(nodes, "lstm", given, returned, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    return model.SerializeToString()


class Session:
    """An nn.LSTM in ONNX Runtime: a function from x (T, B, I) to y (T, B, D * H).

    Between :meth:`open` and :meth:`close` its own threads exist, which spin for a while after each
    call and would slow down anything else that is timed.
    """

    def __init__(self, module: nn.LSTM, has_states: bool = False) -> None:
        import onnxruntime

        self._graph = graph(module, has_states)
        self._options = onnxruntime.SessionOptions()
        self._session: Any = None

    def open(self, threads: int) -> None:
        """Load the model and start the threads."""
        import onnxruntime

        self._options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            self._graph, self._options, providers=["CPUExecutionProvider"]
        )

    def close(self) -> None:
        """End the threads."""
        self._session = None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self._session.run(None, {"x": x})[0]


class StateSession(Session):
    """An nn.LSTM in ONNX Runtime that takes and returns h and c.

    Args:
        module: of one layer and one direction.
        inputs: x (T, B, I), h and c (1, B, H), which every call reads.
        is_bound: use an IoBinding: inputs and outputs lie in memory that is bound once, before the
            calls.
    """

    def __init__(self, module: nn.LSTM, inputs: Mapping[str, np.ndarray], is_bound: bool) -> None:
        super().__init__(module, has_states=True)
        self._inputs, self._is_bound = dict(inputs), is_bound

    def open(self, threads: int) -> None:
        """Load the model, start the threads, and bind inputs and outputs."""
        super().open(threads)
        if not self._is_bound:
            return
        from onnxruntime import OrtValue

        self._binding = self._session.io_binding()
        for name, array in self._inputs.items():
            self._binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(array))
        state = self._inputs["h"].shape
        shapes = {"Y0": (len(self._inputs["x"]), *state), "h_n": state, "c_n": state}
        for name, shape in shapes.items():
            output = OrtValue.ortvalue_from_shape_and_type(shape, np.float32)
            self._binding.bind_ortvalue_output(name, output)

    def close(self) -> None:
        """End the threads."""
        self._binding = None
        super().close()

    def step(self) -> list[np.ndarray] | None:
        """Return y (T, 1, B, H), h_n and c_n; None with an IoBinding."""
        if self._is_bound:
            return self._session.run_with_iobinding(self._binding)
        return self._session.run(None, self._inputs)

    def result(self) -> np.ndarray:
        """Return y (T, B, H) of a call."""
        outputs = self.step() or self._binding.copy_outputs_to_cpu()
        return outputs[0][:, 0]
