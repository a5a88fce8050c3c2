"""Decoders that read the frames which they emit: values and gradients, on every backend."""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers import skip_unless_supported
from torch.autograd import gradcheck, gradgradcheck

from fastlstm import CompositeLSTM, LSTMFuturePredictor
from fastlstm.backends import select
from fastlstm.backends.reference import lstm_step
from fastlstm.call import LSTMWeights
from fastlstm.models.basis import FrameBasis
from fastlstm.op.closed_loop import run_closed_loop
from fastlstm.op.closed_loop_steps import ClosedLoop, ClosedLoopOptions
from fastlstm.problem import Problem

STEPS, B, H, SIDE = 4, 3, 5, 4
I, K = SIDE * SIDE, 9
CASES = list(itertools.product([1, 2], [False, True], ["binary", "real"], [False, True]))


def random_loop(
    num_layers=1,
    peephole=True,
    frame_type="binary",
    masked=False,
    feedback_gradient=1.0,
    basis=None,
    steps=STEPS,
    dtype=torch.float64,
):
    torch.manual_seed(0)

    def tensor(*sizes):
        return (torch.randn(*sizes, dtype=torch.float64) / 2).to(dtype).requires_grad_()

    reads = I if basis is None else K
    weights = [
        LSTMWeights(
            tensor(4 * H, H if layer else reads),
            tensor(4 * H, H),
            bias_ih=tensor(4 * H),
            weight_ch=tensor(3 * H) if peephole else None,
        )
        for layer in range(num_layers)
    ]
    return ClosedLoop(
        tensor(num_layers, B, H),
        tensor(num_layers, B, H),
        weights,
        tensor(reads, H),
        tensor(I),
        tensor(steps, B, I) if masked else None,
        torch.rand(steps, B, 1) < 0.5 if masked else None,
        ClosedLoopOptions(steps, frame_type == "binary", feedback_gradient, basis),
    )


def by_hand(loop):
    """The read-outs, step by step in plain torch; a hook scales the gradient of a frame."""
    options, readouts, x = loop.options, [], None
    states = list(zip(loop.hx, loop.cx, strict=True))
    for t in range(options.steps):
        for layer, w in enumerate(loop.weights):
            igates = w.bias_ih.expand(B, -1) if x is None else F.linear(x, w.weight_ih, w.bias_ih)
            states[layer] = lstm_step(igates, w.weight_hh, *states[layer], w.weight_ch)
            x = states[layer][0]
        r = x @ loop.readout_weight.T
        r = (r if options.basis is None else options.basis.pixels(r)) + loop.readout_bias
        readouts.append(r)
        x = r.sigmoid() if options.is_binary else r * 1
        x.register_hook(lambda grad: grad * options.feedback_gradient)
        if loop.own is not None:
            x = torch.where(loop.own[t], x, loop.true_frames[t])
        x = x if options.basis is None else options.basis.coefficients(x)
    return torch.stack(readouts)


def gradients(run, loop):
    tensors = [tensor for tensor in loop.tensors if tensor is not None]
    readouts = run(loop)
    target = torch.linspace(-1, 1, readouts.numel(), dtype=readouts.dtype).view_as(readouts)
    found = torch.autograd.grad((readouts * target).sum(), tensors, materialize_grads=True)
    return readouts, *found


def assert_equal(ours, expected, dtype=torch.float64):
    tolerance = {"rtol": 1e-9, "atol": 1e-10} if dtype == torch.float64 else {}
    if dtype == torch.float32:
        tolerance = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(list(ours), list(expected), **tolerance)


def test_values_and_gradients_are_those_of_a_loop_in_torch(fused_backend):
    dtype = torch.float64 if fused_backend == "cpu" else torch.float32
    small = Problem(torch.get_default_device().type, dtype, 1, B, 1, H, has_peepholes=True)
    skip_unless_supported(fused_backend, small)
    for n, case in enumerate(CASES):
        loop = random_loop(*case, feedback_gradient=(0.0, 0.5, 1.0)[n % 3], dtype=dtype)
        ours = gradients(functools.partial(run_closed_loop, backend=fused_backend), loop)
        assert_equal(ours, gradients(by_hand, loop), dtype)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_basis_stands_between_frames_and_weights(backend):
    basis = FrameBasis((SIDE, SIDE), 3).in_dtype(torch.float64)
    for frame_type, masked in itertools.product(["binary", "real"], [False, True]):
        for feedback_gradient in (0.0, 0.5):
            loop = random_loop(1, True, frame_type, masked, feedback_gradient, basis)
            ours = gradients(functools.partial(run_closed_loop, backend=backend), loop)
            assert_equal(ours, gradients(by_hand, loop))


@pytest.mark.parametrize(("check", "steps"), [(gradcheck, 4), (gradgradcheck, 2)])
def test_derivatives_are_those_of_differences(check, steps):
    loop = random_loop(2, masked=True, steps=steps)
    there = [n for n, tensor in enumerate(loop.tensors) if tensor is not None]

    def run(*tensors):
        every = list(loop.tensors)
        for n, tensor in zip(there, tensors, strict=True):
            every[n] = tensor
        return run_closed_loop(loop.with_tensors(every), "cpu")

    tensors = [tensor for tensor in loop.tensors if tensor is not None]
    assert check(run, tensors, fast_mode=True)


@pytest.mark.parametrize("feedback_gradient", [0.0, 0.5])
def test_create_graph_gives_the_same_gradients(feedback_gradient):
    loop = random_loop(2, feedback_gradient=feedback_gradient, masked=True)
    tensors = [tensor for tensor in loop.tensors if tensor is not None]
    readouts = run_closed_loop(loop, "cpu")
    first = torch.autograd.grad(readouts.square().sum(), tensors, create_graph=True)
    plain = torch.autograd.grad(run_closed_loop(loop, "cpu").square().sum(), tensors)
    assert_equal(first, plain)
    assert first[0].requires_grad


def test_batched_gradients():
    loop = random_loop()
    readouts = run_closed_loop(loop, "cpu")
    grads = torch.randn(2, *readouts.shape, dtype=torch.float64)
    batched = torch.autograd.grad(
        readouts, [loop.hx, loop.readout_weight], grads, is_grads_batched=True, retain_graph=True
    )
    for n, grad in enumerate(grads):
        one = torch.autograd.grad(readouts, [loop.hx, loop.readout_weight], grad, retain_graph=True)
        assert_equal([part[n] for part in batched], one)


@pytest.mark.parametrize(("feedback_gradient", "steps", "calls"), [(0, 4, 2), (1, 4, 8), (1, 1, 2)])
def test_without_its_gradient_the_feedback_costs_no_steps(
    monkeypatch, feedback_gradient, steps, calls
):
    cpu, seen = select.get("cpu"), []
    backward = cpu.backward
    monkeypatch.setattr(cpu, "backward", lambda *a: seen.append(a[0].T) or backward(*a))
    loop = random_loop(2, feedback_gradient=feedback_gradient, steps=steps)
    ours = gradients(functools.partial(run_closed_loop, backend="cpu"), loop)
    assert_equal(ours, gradients(by_hand, loop))
    assert len(seen) == calls and sum(seen) == 2 * steps


def test_only_what_is_asked_for_has_a_gradient():
    loop = random_loop(2, feedback_gradient=0.5, masked=True)
    expected = dict(enumerate(gradients(by_hand, loop)[1:]))
    for wanted in range(len(loop.tensors)):
        tensors = [
            tensor if n == wanted else tensor.detach() for n, tensor in enumerate(loop.tensors)
        ]
        one = loop.with_tensors(tensors)
        readouts = run_closed_loop(one, "cpu")
        target = torch.linspace(-1, 1, readouts.numel(), dtype=readouts.dtype).view_as(readouts)
        (grad,) = torch.autograd.grad((readouts * target).sum(), [tensors[wanted]])
        assert_equal([grad], [expected[wanted]])


# The models


def tiny(kind=CompositeLSTM, **options):
    torch.manual_seed(0)
    options = {"dtype": torch.float64, "conditional_future": True} | options
    if kind is LSTMFuturePredictor:
        options["conditional"] = options.pop("conditional_future")
    return kind(I, H, **options)


def videos(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    video = torch.rand(3 + STEPS, B, I, dtype=torch.float64, generator=generator).to(dtype)
    return video[:3], video[3:]


def model_gradients(model, **options):
    torch.manual_seed(2)  # of the sampling
    model.zero_grad()
    loss = model.loss(*videos(next(model.parameters()).dtype), **options).total
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


@pytest.mark.parametrize("sampling", [0.5, 1.0])
@pytest.mark.parametrize("basis", ["pixels", "dct"])
def test_models_have_the_gradients_of_the_reference(sampling, basis):
    models = [tiny(num_layers=2, basis=basis, backend=b) for b in ("auto", "reference")]
    found = []
    for feedback_gradient in (0.0, 1.0):
        options = {"sampling": sampling, "feedback_gradient": feedback_gradient}
        ours, expected = (model_gradients(model, **options) for model in models)
        assert_equal(ours, expected)
        found.append(ours)
    assert found[0][0] == found[1][0] and not torch.allclose(found[0][1], found[1][1])


def test_without_feedback_the_frames_that_were_read_are_constants():
    model = tiny(LSTMFuturePredictor)
    frames, future = videos()
    torch.manual_seed(3)
    sampled = model(frames, future, sampling=0.5).future
    torch.manual_seed(3)
    own = torch.rand(STEPS, B, 1) < 0.5
    read = torch.where(own, sampled.detach().sigmoid(), future)
    forced = model(frames, read).future
    torch.testing.assert_close(sampled, forced)
    pairs = (torch.autograd.grad(y.square().sum(), model.parameters()) for y in (sampled, forced))
    assert_equal(*pairs)


@pytest.mark.parametrize("sampling", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("basis", ["pixels", "dct"])
def test_autocast(sampling, basis):
    """As close to float32 as the plain loop is, and in the dtype of teacher forcing."""
    options = {"dtype": torch.float32, "basis": basis}
    models = [tiny(LSTMFuturePredictor, backend=b, **options) for b in ("auto", "reference")]
    keywords = {"sampling": sampling, "feedback_gradient": 1.0}
    truth = model_gradients(models[0], **keywords)
    with torch.autocast("cpu", torch.bfloat16):
        found = [model_gradients(model, **keywords) for model in models]
        video = videos(torch.float32)
        dtype = models[0](*video).future.dtype
        assert models[0](*video, **keywords).future.dtype == dtype
        with torch.no_grad():
            assert models[0](*video, sampling=1.0).future.dtype == dtype
    errors = [
        [((a - b).norm() / b.norm()).item() for a, b in zip(each, truth, strict=True)]
        for each in found
    ]
    for ours, plain in zip(*errors, strict=True):
        assert ours <= 2 * plain + 0.01
    assert all(p.grad.dtype == torch.float32 for p in models[0].parameters())


def test_backward_may_run_outside_of_autocast():
    for basis, again in itertools.product(["pixels", "dct"], [False, True]):
        model = tiny(LSTMFuturePredictor, basis=basis, dtype=torch.float32)
        frames, future = videos(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(frames, future, sampling=1.0, feedback_gradient=1.0).total
        first = torch.autograd.grad(loss, list(model.parameters()), create_graph=again)
        if again:
            torch.autograd.grad(first[0].square().sum(), list(model.parameters()))


def test_compiled(compiled):
    model = tiny(LSTMFuturePredictor, basis="dct")
    options = {"sampling": 1.0, "feedback_gradient": 0.5}
    expected = model_gradients(model, **options)
    run = compiled(lambda *video: model.loss(*video, **options).total)
    model.zero_grad()
    run(*videos()).backward()
    assert_equal([p.grad for p in model.parameters()], expected[1:])


@pytest.mark.parametrize("feedback_gradient", [0.0, 0.5])
def test_functions_of_torch_func(feedback_gradient):
    model = tiny(LSTMFuturePredictor)
    options = {"sampling": 1.0, "feedback_gradient": feedback_gradient}
    expected = model_gradients(model, **options)[1:]
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    frames, future = videos()

    def of(parameters, frames, future):
        output = torch.func.functional_call(model, parameters, (frames, future), options)
        return (F.softplus(output.future).sum() - (output.future * future).sum()) / (STEPS * B)

    found = torch.func.grad(of)(parameters, frames, future)
    assert_equal(found.values(), expected)
    rows = torch.func.vmap(torch.func.grad(of), (None, 1, 1))(
        parameters, frames.unsqueeze(2), future.unsqueeze(2)
    )
    assert_equal([row.mean(0) for row in rows.values()], [g / B for g in expected])
    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}
    _, directional = torch.func.jvp(lambda p: of(p, frames, future), (parameters,), (tangents,))
    sums = [(g * t).sum() for g, t in zip(expected, tangents.values(), strict=True)]
    torch.testing.assert_close(directional, torch.stack(sums).sum())


def test_a_read_out_with_hooks_is_called():
    model = tiny(LSTMFuturePredictor)
    options, calls = {"sampling": 1.0, "feedback_gradient": 0.5}, []
    expected = model_gradients(model, **options)
    model.future_decoder.readout.register_forward_hook(lambda *_: calls.append(1))
    assert_equal(model_gradients(model, **options), expected)
    assert len(calls) == STEPS


@pytest.mark.parametrize("feedback_gradient", [-0.1, 1.5, float("nan")])
def test_a_factor_outside_0_to_1_is_refused(feedback_gradient):
    model = tiny()
    for call in (model, model.loss):
        with pytest.raises(
            ValueError, match=r"feedback_gradient: expected a factor in 0\.\.1, got"
        ):
            call(*videos(), feedback_gradient=feedback_gradient)
