"""``torch.func``: gradients, Jacobians, Hessians and forward mode, against the reference.

In float64, where a transform differs from a loop by the order of sums only.
"""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

import fastlstm

N, T, B, I, H = 3, 4, 2, 3, 5
TOLERANCE = {"rtol": 1e-11, "atol": 1e-13}


def _randn(*size):
    return torch.randn(*size, dtype=torch.float64)


def _lstm(*args, **options):
    return fastlstm.LSTM(*(args or (I, H)), dtype=torch.float64, **{"backend": "cpu"} | options)


def _reference(module):
    """A module with the same parameters on the reference backend."""
    twin = fastlstm.LSTM(
        module.input_size,
        module.hidden_size,
        module.num_layers,
        bidirectional=module.bidirectional,
        peephole=module.peephole,
        dtype=torch.float64,
        backend="reference",
    )
    twin.load_state_dict(module.state_dict())
    return twin


def _close(ours, truth):
    torch.testing.assert_close(ours, truth, **TOLERANCE)


def _loss(output):
    y, (h, c) = output
    return y.sin().sum() + h.cos().sum() + (c * c).sum()


KINDS = [
    {},
    {"peephole": True},
    {"bidirectional": True, "peephole": True},
    {"num_layers": 2, "bidirectional": True},
]


def test_tied_weights():
    module, x = _lstm(bidirectional=True), _randn(T, B, I)
    tied = _lstm(bidirectional=True)
    for name, _ in list(module.named_parameters()):
        if name.endswith("_reverse"):
            setattr(tied, name, getattr(tied, name.removesuffix("_reverse")))
    parameters = dict(tied.named_parameters())

    def loss(parameters):
        return _loss(functional_call(tied, parameters, (x,), tie_weights=True))

    _close(
        tuple(grad(loss)(parameters).values()),
        torch.autograd.grad(_loss(tied(x)), list(parameters.values())),
    )


def test_gradient_through_vmap():
    """Inside vmap, a tensor does not show that an outer transform requires its gradient."""
    module, x = _lstm(), _randn(N, T, B, I)
    truth = grad(lambda x: sum(_loss(module(row)) for row in x))(x)
    _close(grad(lambda x: vmap(lambda row: _loss(module(row)))(x).sum())(x), truth)
    x.requires_grad_()
    total = vmap(lambda row: _loss(module(row)))(x).sum()
    found = torch.autograd.grad(total, [x, module.weight_hh_l0])
    _close(found[0], truth)
    plain = torch.autograd.grad(sum(_loss(module(row)) for row in x), module.weight_hh_l0)
    _close(found[1], plain[0])


def test_vmap_of_vjp_and_jacrev():
    module, x = _lstm(peephole=True), _randn(T, B, I)
    reference = _reference(module)
    _, pull = vjp(lambda x: module(x)[0], x)
    dy = _randn(N, T, B, H)
    _close(vmap(pull)(dy)[0], torch.stack([pull(one)[0] for one in dy]))
    truth = jacfwd(lambda x: reference(x)[0])(x)
    _close(jacrev(lambda x: module(x)[0])(x), truth)
    _close(jacrev(lambda x: module(x)[0], chunk_size=7)(x), truth)
    vectorized = torch.autograd.functional.jacobian(lambda x: module(x)[0], x, vectorize=True)
    _close(vectorized, truth)
    assert torch.autograd.gradcheck(
        lambda x: module(x)[0], x.requires_grad_(), check_batched_grad=True
    )
    weight = module.weight_hh_l0.detach()
    ours, theirs = (
        jacrev(lambda w, m=m: functional_call(m, {"weight_hh_l0": w}, (x,))[1][1])(weight)
        for m in (module, reference)
    )
    _close(ours, theirs)


@pytest.mark.parametrize("outer, inner", [(jacrev, jacrev), (jacfwd, jacrev), (jacfwd, jacfwd)])
def test_hessian(outer, inner):
    module, x = _lstm(2, 2, peephole=True), _randn(3, 1, 2)
    reference = _reference(module)
    truth = torch.autograd.functional.hessian(lambda x: _loss(reference(x)), x)
    _close(outer(inner(lambda x: _loss(module(x))))(x), truth)


def test_hessian_of_each_sample():
    module, x = _lstm(2, 2), _randn(N, 3, 1, 2)
    run = hessian(lambda x: _loss(module(x)))
    _close(vmap(run)(x), torch.stack([run(row) for row in x]))
    twice = grad(lambda x: grad(lambda x: _loss(module(x)))(x).square().sum())
    _close(vmap(twice)(x), torch.stack([twice(row) for row in x]))


@pytest.mark.parametrize("kind", [*KINDS, {"backend": "auto"}], ids=str)
def test_jvp(kind):
    module, x, v = _lstm(**kind), _randn(T, B, I), _randn(T, B, I)
    truth = jvp(lambda x: _reference(module)(x)[0], (x,), (v,))
    run = lambda x: module(x)[0]  # noqa: E731
    _close(jvp(run, (x,), (v,)), truth)
    _close(vmap(lambda v: jvp(run, (x,), (v,))[1])(torch.stack([v, 2 * v]))[1], 2 * truth[1])
    with forward_ad.dual_level():
        y = forward_ad.unpack_dual(run(forward_ad.make_dual(x, v)))
        _close((y.primal, y.tangent), truth)
    y, push = linearize(run, x)
    _close((y, push(v)), truth)


def test_tangent_of_a_gradient():
    """Forward mode over a backward pass whose forward pass had no tangents."""
    module, x, dy, v = _lstm(), _randn(T, B, I).requires_grad_(), _randn(T, B, H), _randn(T, B, H)
    y = module(x)[0]
    with forward_ad.dual_level():
        (dx,) = torch.autograd.grad(y, x, forward_ad.make_dual(dy, v), retain_graph=True)
        tangent = forward_ad.unpack_dual(dx).tangent
    _close(tangent, torch.autograd.grad(y, x, v)[0])
