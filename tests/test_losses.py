"""The loss of binary frames: its kernel on the CPU against torch's functions and float64."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_as_close_as_torch

from fastlstm import _C
from fastlstm.backends.cpu import bernoulli_loss
from fastlstm.models import losses
from fastlstm.models.losses import frame_loss

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
DTYPES = [(F32, F32), (BF16, F32), (BF16, BF16), (F32, BF16), (F64, F64)]
# Less than a vector; one and a bit; several runs; several blocks; more than 2^1024 as a product.
SIZES = [(1, 1, 1), (2, 3, 5), (1, 2, 64), (3, 1, 259), (5, 7, 1031), (2, 3, 17001)]
VALUES = (float("nan"), float("inf"), -float("inf"), 1e4, -1e4, 100.0, -100.0, 25.0, -25.0, 0.0)


def formula(readout, target, threshold=20):
    """The loss in torch's functions, differentiable."""
    dtype = torch.promote_types(readout.dtype, F32)
    readout, target = readout.to(dtype), target.to(dtype)
    softplus = F.softplus(readout, threshold=threshold)
    total = softplus.sum() - readout.flatten().dot(target.flatten())
    return total / (target.shape[0] * target.shape[1])


def videos(size=(5, 7, 1031), dtypes=(F32, F32), scale=4.0):
    readout = (scale * torch.randn(*size)).to(dtypes[0])
    return readout.requires_grad_(), torch.rand(*size).to(dtypes[1])


def results(loss, readout):
    return {"loss": loss.detach(), "gradient": torch.autograd.grad(loss, readout)[0]}


def run(readout, target, isa="auto"):
    scale = 1 / (target.shape[0] * target.shape[1])
    loss, in_range, gradient = bernoulli_loss.run(readout, target, scale, True, isa)
    assert in_range
    dtype = torch.promote_types(readout.dtype, F32)
    return {"loss": torch.tensor(loss * scale, dtype=dtype), "gradient": gradient}


@pytest.fixture
def uses_kernel(monkeypatch):
    """Whether the kernel ran, as a list of its calls."""
    calls = []

    def recorded(*arguments):
        calls.append(arguments)
        return original(*arguments)

    original = bernoulli_loss.run
    monkeypatch.setattr(bernoulli_loss, "run", recorded)
    return calls


@pytest.mark.parametrize("isa", _C.isas())
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.01, 4.0, 40.0])
def test_is_as_exact_as_torch(isa, dtypes, scale):
    for size in SIZES:
        readout, target = videos(size, dtypes, scale)
        wide = readout.detach().double().requires_grad_()
        truth = results(formula(wide, target.double(), threshold=700), wide)
        torchs = results(formula(readout, target), readout)
        assert_as_close_as_torch(run(readout, target, isa), torchs, truth)


@pytest.mark.parametrize("isa", _C.isas())
def test_a_small_loss_keeps_its_relative_precision(isa):
    # Each term is e^-20: 1 + e^-20 is 1 in float32.
    readout, target = torch.full((2, 3, 1000), -20.0), torch.zeros(2, 3, 1000)
    expected = 1000 * F.softplus(torch.tensor(-20.0, dtype=F64))
    found = run(readout, target, isa)["loss"].double()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    # The loss of a probability near 1 is not a difference of two large numbers.
    found = run(-readout, torch.ones(2, 3, 1000), isa)["loss"].double()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("isa", _C.isas())
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_nan_and_infinity_are_those_of_torch(isa, dtypes):
    for value in VALUES:
        for target in (0.0, 0.5, 1.0):
            for size, place in (((1, 1, 1), 0), ((1, 1, 40), 3), ((1, 1, 40), 39)):
                readout, targets = torch.zeros(size, dtype=dtypes[0]), torch.full(size, 0.5)
                readout[0, 0, place], targets[0, 0, place] = value, target
                targets = targets.to(dtypes[1])
                readout.requires_grad_()
                expected = results(formula(readout.double(), targets.double()), readout)
                loss, in_range, gradient = bernoulli_loss.run(readout, targets, 1.0, True, isa)
                assert in_range
                close = {"equal_nan": True, "rtol": 1e-6 if dtypes[0] != BF16 else 8e-3}
                torch.testing.assert_close(
                    torch.tensor(loss, dtype=F64), expected["loss"], atol=1e-5, **close
                )
                torch.testing.assert_close(gradient, expected["gradient"], atol=1e-8, **close)


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(2, 3, 5), (4, 8, 8001)])
def test_is_equal_for_any_number_of_threads(dtypes, size):
    readout, target = videos(size, dtypes)
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(run(readout, target))
    assert not found[0]["gradient"].isnan().any()
    for other in found[1:]:
        assert torch.equal(found[0]["loss"], other["loss"])
        assert torch.equal(found[0]["gradient"], other["gradient"])


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_only_targets_in_0_to_1_are_accepted(dtypes, uses_kernel):
    readout, target = videos((2, 3, 19), dtypes)
    wide = torch.promote_types(dtypes[0], F32)
    for index in (0, 20, 113):
        for value in (-0.25, 1.25, -1e-30, float("nan"), float("inf"), -float("inf")):
            bad = target.clone()
            bad.view(-1)[index] = value
            low, high = (float(extreme) for extreme in bad.to(wide).aminmax())
            with pytest.raises(
                ValueError, match=r"frames: expected binary values in \[0, 1\]"
            ) as error:
                frame_loss(readout, bad, "binary")
            assert str(error.value).endswith(f"in [0, 1], got {low}..{high}")
        good = target.clone()
        for value in (0.0, 1.0, -0.0):
            good.view(-1)[index] = value
            assert frame_loss(readout, good, "binary").isfinite()
    logits = torch.full_like(readout, float("nan"))
    assert frame_loss(logits, target, "binary").isnan()  # no mistake of the targets
    assert len(uses_kernel) == 3 * 9 + 1


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_dtype_and_gradient_of_the_loss(dtypes, uses_kernel):
    readout, target = videos((3, 4, 50), dtypes)
    expected = formula(readout, target)
    loss = frame_loss(readout, target, "binary")
    assert loss.dtype == expected.dtype and loss.shape == () and loss.grad_fn is not None
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtypes[0] != BF16 else {"rtol": 1e-2, "atol": 1e-3}
    for factor in (1.0, 3.0):
        (found,) = torch.autograd.grad(factor * frame_loss(readout, target, "binary"), readout)
        (truth,) = torch.autograd.grad(factor * formula(readout, target), readout)
        assert found.dtype == readout.dtype
        torch.testing.assert_close(found, truth, **tolerance)
    with torch.no_grad():
        plain = frame_loss(readout, target, "binary")
    assert torch.equal(plain, loss) and plain.grad_fn is None
    assert [call[3] for call in uses_kernel] == [True, True, True, False]


def test_derivatives_of_every_order():
    readout, target = videos((2, 3, 7), (F64, F64))

    def loss(readout):
        return frame_loss(readout, target, "binary")

    assert torch.autograd.gradcheck(loss, (readout,))
    assert torch.autograd.gradgradcheck(loss, (readout,))
    for function in (loss, lambda readout: formula(readout, target)):
        (first,) = torch.autograd.grad(function(readout), readout, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), readout)
        if function is loss:
            expected = first.detach(), second
    torch.testing.assert_close((first.detach(), second), expected)


def test_a_kept_graph_gives_the_same_gradient_each_time():
    leaf, target = videos((4, 5, 6))
    loss = frame_loss(leaf.transpose(0, 1), target.transpose(0, 1), "binary")
    (expected,) = torch.autograd.grad(formula(leaf, target), leaf)
    for times in (1, 2, 3):
        loss.backward(retain_graph=True)
        torch.testing.assert_close(leaf.grad, times * expected)


def test_a_changed_gradient_changes_no_later_one():
    readout, target = videos((2, 2, 8))
    loss = frame_loss(readout, target, "binary")
    (first,) = torch.autograd.grad(loss, readout, retain_graph=True)
    expected = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(loss, readout)
    assert torch.equal(second, expected)


def test_layouts_of_memory(uses_kernel):
    readout, target = videos((4, 6, 10))
    expected = results(formula(readout, target), readout)
    with torch.no_grad():
        wide = torch.empty(4, 6, 20)[..., ::2].copy_(target)
        flipped = target.flip(0)
    for change in (
        lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
        lambda t: t[None].expand(2, -1, -1, -1)[1],
    ):
        found = results(frame_loss(change(readout), change(target), "binary"), readout)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    found = results(frame_loss(readout, wide, "binary"), readout)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    found = results(frame_loss(readout.flip(0), flipped, "binary"), readout)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert len(uses_kernel) == 4


def test_what_the_kernel_cannot_compute_is_computed_by_torch(uses_kernel):
    readout, target = videos((2, 3, 8))
    for change in (
        lambda: (readout, target.double()),
        lambda: (readout.double(), target),
        lambda: (readout, target.half()),
        lambda: (readout, (target > 0.5).to(torch.uint8)),
        lambda: (readout, target.clone().requires_grad_()),
        lambda: (readout, target.view(3, 2, 8)),
        lambda: (readout, torch.complex(target, -target).conj().imag),  # negated when it is read
        lambda: (readout, torch._efficientzerotensor(2, 3, 8)),
    ):
        a, t = change()
        found = results(frame_loss(a, t, "binary"), readout)
        torch.testing.assert_close(found, results(formula(a, t), readout))
    assert not uses_kernel


def test_observers_see_torch_functions(uses_kernel):
    readout, target = videos((2, 3, 8))

    def loss(readout):
        return frame_loss(readout, target, "binary")

    expected = results(formula(readout, target), readout)
    gradient = expected["gradient"]
    plain = readout.detach()
    torch.testing.assert_close(torch.func.grad(loss)(plain), gradient)
    value, tangent = torch.func.jvp(loss, (plain,), (torch.ones_like(plain),))
    torch.testing.assert_close((value, tangent), (expected["loss"], gradient.sum()))
    hessian = torch.func.hessian(loss)(plain).view(48, 48)
    assert hessian.diagonal().min() > 0
    traced = torch.jit.trace(loss, (plain,), check_trace=False)
    torch.testing.assert_close(traced(plain + 1), formula(plain + 1, target))
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    found = results(compiled(readout), readout)
    torch.testing.assert_close(found, expected)
    meta = frame_loss(plain.to("meta"), target.to("meta"), "binary")
    assert meta.is_meta and meta.shape == ()
    assert not uses_kernel


def test_batches_of_output_gradients(uses_kernel):
    readout, target = videos((2, 3, 8))
    factors = torch.tensor([1.0, 2.0, -3.0])
    (expected,) = torch.autograd.grad(formula(readout, target), readout)
    loss = frame_loss(readout, target, "binary")
    for _ in range(2):
        (found,) = torch.autograd.grad(
            loss, readout, factors, is_grads_batched=True, retain_graph=True
        )
        torch.testing.assert_close(found, factors.view(3, 1, 1, 1) * expected)
    loss = frame_loss(readout, target, "binary")
    pull = torch.func.vmap(lambda g: torch.autograd.grad(loss, readout, g, retain_graph=True)[0])
    torch.testing.assert_close(pull(factors), factors.view(3, 1, 1, 1) * expected)
    assert len(uses_kernel) == 2


def test_no_frames_are_an_error():
    with pytest.raises(ValueError, match="expected at least one"):
        frame_loss(torch.empty(0, 3, 4), torch.empty(0, 3, 4), "binary")
    nothing = torch.empty(2, 3, 0, requires_grad=True)
    assert results(frame_loss(nothing, torch.empty(2, 3, 0), "binary"), nothing)["loss"] == 0


@pytest.mark.parametrize("change", [{"num_threads": 0}, {"logits_dtype": "float16"}, {"isa": "x"}])
def test_the_binding_refuses_what_no_kernel_survives(change):
    arguments = {"logits_dtype": "float32", "targets_dtype": "float32", "logits": 0, "targets": 0}
    arguments |= {"gradient": 0, "count": 0, "scale": 1.0, "num_threads": 1, "isa": "auto"}
    assert _C.bernoulli_loss(**arguments) == (0.0, True)
    with pytest.raises(ValueError, match="expected"):
        _C.bernoulli_loss(**(arguments | change))
    with pytest.raises(ValueError, match="targets_dtype"):
        _C.bernoulli_loss(**(arguments | {"targets_dtype": "float64"}))


def test_the_loss_of_real_frames_is_as_before():
    readout, target = videos((2, 3, 8), (BF16, F32))
    expected = 0.5 * (readout.float() - target).square().sum() / 6
    torch.testing.assert_close(frame_loss(readout, target, "real"), expected)
    assert losses.frame_loss(readout, target.double(), "real").dtype == F32
