"""The ops of ``torch.library``, and ``explain``."""

from typing import ClassVar

import pairwise
import pytest
import torch
from helpers import Case, weights_of
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import fastlstm
from fastlstm import _C, backends, lstm_sequence
from fastlstm.backends import select

LAYOUTS = [{}, {"lengths": True}, {"packed": True}, {"reset": True, "proj_size": 2}]
OPTIONS = [
    {"peephole": peephole, "I": I, **layout}
    for peephole, I, layout in pairwise.combinations([False, True], [0, 3], LAYOUTS)
]

EVERY_STEP = (0, True)
# (options, (checkpoint_every, return_sequence)): every option, and one kind of cell and input with
# checkpoints.
CHECKED = [(options, EVERY_STEP) for options in OPTIONS] + [
    ({"peephole": True, "I": 3, **layout}, (2, return_sequence))
    for layout in LAYOUTS
    for return_sequence in (True, False)
]


def _forward_arguments(
    options, *, train=True, differentiable=True, return_all_cells=True, kept=EVERY_STEP
):
    case = Case(T=3, B=2, H=4, reverse=(False, True), **options)
    inputs = {name: value.requires_grad_(differentiable) for name, value in case.inputs().items()}
    weights = ("weight_ih", "bias_ih", "bias_hh", "weight_hh", "weight_ch", "weight_hr")
    layout = case.layout()
    return (
        inputs["x" if case.I else "igates"],
        *(weights_of(case, inputs, name) for name in weights),
        inputs["hx"],
        inputs["cx"],
        list(layout.pop("reverse")),
        *layout.values(),
        train,
        return_all_cells,
        *kept,
        "cpu",
    )


def _backward_arguments(options, *, needs=True, kept=EVERY_STEP):
    forward = _forward_arguments(options, differentiable=False, kept=kept)
    y, hy, cy, cells, reserve = torch.ops.fastlstm.lstm_sequence(*forward)
    outputs = (y, hy, cy, cells)
    gradients = [torch.randn_like(out) if out.numel() else None for out in outputs]
    asked = [needs] + [needs and bool(parameter) for parameter in forward[1:7]]
    del asked[2]  # bias_ih, whose gradient is that of bias_hh
    return (*gradients, y, reserve, *forward[:13], asked, forward[-3], "cpu")


@pytest.mark.parametrize("options, kept", CHECKED, ids=str)
def test_opcheck_forward(options, kept):
    operator = torch.ops.fastlstm.lstm_sequence.default
    # Rows of the reserve past a length are never written: NaN here, and no two NaN are equal.
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if not options.get("lengths"):
        tests.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(operator, _forward_arguments(options, kept=kept), test_utils=tests)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_opcheck_without_gradients(options):
    operator = torch.ops.fastlstm.lstm_sequence.default
    arguments = _forward_arguments(options, train=False, differentiable=False)
    torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("needs", [False, True])
@pytest.mark.parametrize("options, kept", CHECKED, ids=str)
def test_opcheck_backward(options, needs, kept):
    operator = torch.ops.fastlstm.lstm_sequence_backward.default
    arguments = _backward_arguments(options, needs=needs, kept=kept)
    torch.library.opcheck(operator, arguments)
    tests = ["test_schema", "test_faketensor"]
    torch.library.opcheck(operator, (None, *arguments[1:]), test_utils=tests)
    torch.library.opcheck(operator, (arguments[0], *[None] * 3, *arguments[4:]), test_utils=tests)


@pytest.mark.parametrize("options, kept", CHECKED, ids=str)
@pytest.mark.parametrize("flag", [False, True])
def test_fake_outputs_have_the_real_sizes(options, flag, kept):
    """``flag`` is ``train`` of the forward op and the needs of the backward op."""
    for operator, arguments in (
        (torch.ops.fastlstm.lstm_sequence, _forward_arguments(options, train=flag, kept=kept)),
        (
            torch.ops.fastlstm.lstm_sequence_backward,
            _backward_arguments(options, needs=flag, kept=kept),
        ),
    ):
        with FakeTensorMode(allow_non_fake_inputs=False) as mode:
            fakes = torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, arguments)
            fake = operator(*fakes)
        for one, other in zip(fake, operator(*arguments), strict=True):
            assert (one.shape, one.stride(), one.dtype) == (
                other.shape,
                other.stride(),
                other.dtype,
            )


def test_backward_without_a_reserve_is_refused():
    arguments = _forward_arguments({"peephole": True, "I": 3}, train=False)
    y, *_ = torch.ops.fastlstm.lstm_sequence(*arguments)
    with pytest.raises(RuntimeError, match="train=True"):
        y.sum().backward()


def test_what_records_operators_sees_the_op():
    """Eager calls skip the op, unless something watches ops."""
    module = fastlstm.LSTM(3, 4, backend="cpu").requires_grad_(False)
    x = torch.randn(6, 2, 3)
    op = torch.ops.fastlstm.lstm_sequence.default
    traced = make_fx(lambda x: module(x)[0])(x)
    assert op in [node.target for node in traced.graph.nodes]
    torch.testing.assert_close(traced(x + 1), module(x + 1)[0])

    class Listener(TorchDispatchMode):
        heard: ClassVar[list[object]] = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.heard.append(function)
            return function(*args, **kwargs or {})

    with Listener():
        module(x)
    assert op in Listener.heard


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("H, B", [(8, 1), (256, 1), (256, 64)])
def test_single_steps_run_in_our_kernels(H, B, train):
    for peephole in (False, True):
        cell = fastlstm.LSTMCell(H, H, peephole=peephole).requires_grad_(train)
        assert "runs on 'cpu'" in fastlstm.explain(cell, torch.randn(B, H))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    "T, I, H, few",
    [
        (3, 910, 8, True),
        (30, 910, 8, False),
        (30, 130, 2, True),
        (50, 130, 2, False),
        (3, 910, 30, False),
        (3, 91, 3, False),
    ],
)
def test_few_units_and_rows_of_a_wide_input_train_on_torch(T, I, H, few, train):
    lstm, x = fastlstm.LSTM(I, H).requires_grad_(train), torch.randn(T, 240, I)
    assert f"runs on {'torch' if few and train else 'cpu'!r}" in fastlstm.explain(lstm, x)
    assert "runs on 'cpu'" in fastlstm.explain(lstm.bfloat16(), x.bfloat16())


def test_explain_names_the_choice_and_every_reason():
    text = fastlstm.explain(fastlstm.LSTM(3, 4, device="meta"), torch.randn(7, 5, 3, device="meta"))
    assert "T=7 B=5 G=1 H=4 float32 on meta: runs on 'torch'" in text
    lines = {line.split()[0]: line for line in text.splitlines()[2:]}
    assert list(lines) == ["cpu", "torch", "cuda", "triton", "reference"]
    assert lines["cpu"].endswith("no: runs on the cpu, not on meta")
    assert lines["torch"].endswith("chosen")
    assert lines["cuda"].endswith("no: needs tensors on cuda, not on meta")
    assert "no: " in lines["triton"]
    assert lines["reference"].endswith("could run it")


def test_explain_what_was_asked_for():
    text = fastlstm.explain(fastlstm.LSTM(3, 4, 1, peephole=True, backend="reference"))
    assert "peepholes: runs on 'reference'" in text
    assert "chosen, as asked for" in text
    assert "no: has no peephole connections" in text


@pytest.mark.parametrize("inside", [False, True])
def test_explain_in_eval_mode_tells_of_gradients(inside):
    """Gradients are recorded in any mode, and a call that records them may run elsewhere."""
    lstm, x = fastlstm.LSTM(910, 8), torch.randn(3, 2, 910)
    module = nn.Sequential(lstm) if inside else lstm
    sentence = (
        "this call records gradients, which eval mode does not turn off; under torch.no_grad() it "
        "runs on 'cpu'"
    )
    for mode in (True, False):
        text = fastlstm.explain(module.train(mode), x)
        assert "runs on 'torch'" in text.splitlines()[1]
        assert (sentence in text) == (not mode)
        with torch.no_grad():
            text = fastlstm.explain(module, x)
        assert "runs on 'cpu'" in text.splitlines()[1] and sentence not in text
    assert sentence not in fastlstm.explain(module.eval().requires_grad_(False), x)


def test_explain_takes_tensors_and_packed_sequences():
    module = fastlstm.LSTM(3, 4)
    packed = nn.utils.rnn.pack_sequence([torch.randn(n, 3) for n in (5, 2)])
    assert "T=5 B=2 G=1 H=4" in fastlstm.explain(module, packed)
    with pytest.raises(TypeError, match=r"^input: expected a Tensor, got list$"):
        fastlstm.explain(module, [1.0])


def test_explain_every_lstm_inside():
    model = nn.Sequential()
    model.add_module("first", fastlstm.LSTM(3, 4, bidirectional=True))
    model.add_module("second", fastlstm.LSTMCell(8, 4))
    text = fastlstm.explain(model)
    assert "first: LSTM(3, 4, bidirectional=True)" in text
    assert "second: LSTMCell(8, 4)" in text
    assert text.count("runs on") == 2


@pytest.mark.parametrize(
    "module, x",
    [
        (fastlstm.LSTM(3, 4), torch.randn(6, 2, 3)),
        (fastlstm.LSTM(3, 4, peephole=True), torch.randn(6, 2, 3)),
        (fastlstm.LSTM(3, 4, batch_first=True, bidirectional=True), torch.randn(2, 6, 3)),
        (fastlstm.LSTM(3, 4, proj_size=2), torch.randn(6, 2, 3)),
        (fastlstm.LSTM(3, 4), torch.randn(1, 2, 3)),
        (fastlstm.LSTM(3, 4).bfloat16(), torch.randn(6, 2, 3).bfloat16()),
        (fastlstm.LSTM(3, 4, peephole=True).bfloat16(), torch.randn(6, 2, 3).bfloat16()),
    ],
    ids=lambda value: str(getattr(value, "shape", value)),
)
def test_what_explain_says_is_what_runs(monkeypatch, module, x):
    _C.set_direct("off")
    ran = []
    for name, function in (
        ("cpu", "forward"),
        ("torch", "forward_layers"),
        ("reference", "forward"),
    ):
        original = getattr(getattr(backends, name), function)

        def spy(*args, name=name, original=original, **kwargs):
            ran.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(getattr(backends, name), function, spy)
    module(x)
    assert f"runs on {ran[0]!r}" in fastlstm.explain(module, x)
    assert len(ran) == 1


def test_explain_asks_about_the_dtype_of_the_weights():
    assert "float32 on cpu" in fastlstm.explain(fastlstm.LSTM(3, 4), torch.zeros(5, 2, 3).long())
    assert "bfloat16 on" in fastlstm.explain(fastlstm.LSTM(3, 4).bfloat16(), torch.zeros(5, 2, 3))
    assert "bfloat16 on" in fastlstm.explain(fastlstm.LSTMCell(3, 4).bfloat16(), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="2D or 3D, got 1D"):
        fastlstm.explain(fastlstm.LSTM(3, 4), torch.zeros(5))


def test_auto_always_finds_a_backend():
    assert select.BACKENDS[-1] is backends.reference
    igates = torch.randn(2, 2, 1, 8, dtype=torch.float16)
    y, _, _ = lstm_sequence(igates, [torch.randn(8, 2, dtype=torch.float16)])
    assert y.dtype == torch.float16
