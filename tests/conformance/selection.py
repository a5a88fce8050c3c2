"""Which of torch's test files are run, and which of their tests: pytest's ``-k`` expression.

The expressions select all tests that make an LSTM, and few others, which only cost time. They were
found by running each file whole with torch's classes. An empty one selects all tests of a file.
"""

SELECTION = {
    "test_modules.py": "lstm",
    "test_nn.py": "lstm or rnn or sequence or cudnn",
    "nn/test_load_state_dict.py": "",
    "nn/test_pruning.py": "rnn",
    "test_autocast.py": "rnn",
    "test_autograd.py": "lstm or rnn",
    "test_mkldnn.py": "lstm",
    "test_jit.py": "lstm or models or profile or python_bindings or pack",
    "test_jit_fuser_te.py": "lstm",
    "test_expanded_weights.py": "lstm or rnn",
    "functorch/test_aotdispatch.py": "lstm",
    "dynamo/test_aot_autograd.py": "lstm",
    "inductor/test_cpu_repro.py": "lstm",
    "export/test_export.py": "config or lstm or rnn",
    "ao/sparsity/test_structured_sparsifier.py": "lstm",
    "quantization/core/test_quantized_module.py": "lstm or rnn or cell",
    "quantization/core/test_quantized_op.py": "lstm or rnn",
    "quantization/eager/test_numeric_suite_eager.py": "dynamic",
    "quantization/eager/test_quantize_eager_ptq.py": "rnn or dynamic",
    "quantization/fx/test_numeric_suite_fx.py": "lstm or mapping or coverage",
    "quantization/fx/test_quantize_fx.py": "lstm or rnn or tuple",
    "quantization/jit/test_deprecated_jit_quant.py": "rnn",
}
