"""Tests that are allowed to pass with torch's classes only: pattern and reason."""

_CLASS = (
    "torch's quantisation looks for nn.LSTM and nn.LSTMCell by their exact class; "
    "to_torch() makes one, see tests/test_script_and_trace.py"
)
_SCRIPT_MODULE = (
    "torch.jit.ScriptModule as a base class compiles what is assigned to it without asking for "
    "__prepare_scriptable__, as torch.jit.script does; torch.jit.script of the module works"
)

KNOWN = {
    "test_jit.py::TestModels::test_time_sequence_prediction": _SCRIPT_MODULE,
    "test_jit.py::TestScript::test_nn_LSTM*": _SCRIPT_MODULE,
    "test_expanded_weights.py::*": (
        "torch.nn.utils._expanded_weights, a prototype, knows torch.lstm by name and no other op"
    ),
    "inductor/test_cpu_repro.py::CPUReproTests::test_lstm_packed*": (
        "asserts that the code calls torch's mkldnn_rnn_layer, and turns off Inductor's way to "
        "call any other library's op; where it is on ours runs, see tests/test_compile.py"
    ),
    "quantization/fx/test_numeric_suite_fx.py::*::test_compare_shadow_activations_lstm_dynamic": (
        "the numeric suite has no rule for a keyword whose default is None: our lengths"
    ),
    "quantization/core/test_quantized_op.py::*::test_custom_module_lstm": _CLASS,
    "quantization/eager/test_numeric_suite_eager.py::*_lstm_dynamic": _CLASS,
    "quantization/eager/test_quantize_eager_ptq.py::*::test_quantized_rnn*": _CLASS,
    "quantization/fx/test_quantize_fx.py::*::test_static_lstm*": _CLASS,
    "quantization/fx/test_quantize_fx.py::*::test_rnn*": _CLASS,
}
