"""``torch.func.vmap``, alone and around gradients, against loops.

In float64, where a transform differs from a loop by the order of sums only.
"""

from types import SimpleNamespace

import pytest
import torch
from torch.func import (
    functional_call,
    grad,
    jacfwd,
    jacrev,
    stack_module_state,
    vmap,
)
from torch.utils import _pytree as pytree

import fastlstm
from fastlstm import _C, backends, lstm_sequence
from fastlstm.call import Needs
from fastlstm.op import schema, second_order
from fastlstm.op import vmap as rules

N, T, B, I, H = 3, 4, 2, 3, 5
TOLERANCE = {"rtol": 1e-11, "atol": 1e-13}


def _randn(*size):
    return torch.randn(*size, dtype=torch.float64)


def _lstm(*args, **options):
    return fastlstm.LSTM(*(args or (I, H)), dtype=torch.float64, **{"backend": "cpu"} | options)


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


@pytest.fixture
def runs(monkeypatch):
    """The shapes (rows, groups) of every call of the cpu backend's forward and backward.

    An op may run as a direct call, which does not enter the backend's functions.
    """
    _C.set_direct("off")
    shapes = []
    for name in ("forward", "backward"):
        original = getattr(backends.cpu, name)

        def spy(*args, original=original, name=name):
            shapes.append((name, *args[0].cx.shape[:2]))
            return original(*args)

        monkeypatch.setattr(backends.cpu, name, spy)
    return shapes


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("in_dim, out_dim", [(0, 0), (1, 2), (-1, 1)])
def test_vmap_over_inputs(kind, in_dim, out_dim):
    module = _lstm(**kind)
    x = _randn(N, T, B, I)
    run = vmap(lambda x: module(x)[0], in_dims=in_dim, out_dims=out_dim)
    truth = torch.stack([module(row)[0] for row in x], out_dim)
    _close(run(x.movedim(0, in_dim)), truth)
    with torch.no_grad():
        _close(run(x.movedim(0, in_dim)), truth)


def test_vmap_over_inputs_is_one_call_with_more_rows(runs):
    module, x = _lstm(bidirectional=True), _randn(N, T, B, I)
    vmap(module)(x)
    assert runs == [("forward", 2, N * B)]
    vmap(vmap(module))(x.expand(2, N, T, B, I))
    assert runs[1:] == [("forward", 2, 2 * N * B)]


def test_vmap_over_the_first_state_only():
    module, x = _lstm(), _randn(T, B, I)
    h, c = _randn(N, 1, B, H), _randn(N, 1, B, H)
    run = vmap(lambda h, c: module(x, (h, c))[0])
    _close(run(h, c), torch.stack([module(x, state)[0] for state in zip(h, c, strict=True)]))


@pytest.mark.parametrize("differentiate", [False, True])
def test_vmap_over_lengths(differentiate):
    module, x = _lstm(peephole=True), _randn(N, T, B, I)
    lengths = torch.randint(1, T + 1, (N, B))

    def run(x, lengths):
        return _loss(module(x, lengths=lengths))

    if differentiate:
        run = grad(run)
    truth = [run(*arguments) for arguments in zip(x, lengths, strict=True)]
    _close(vmap(run)(x, lengths), torch.stack(truth))
    with pytest.raises(RuntimeError, match=r"lengths: expected integers in 1..4, got .*5"):
        vmap(run)(x, lengths + T)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("with_x", [False, True])
def test_vmap_of_the_sequence_over_everything_in_turn(with_x, shared):
    """Two groups, one reversed; one argument or all of them batched, in any dimension."""
    G, size = 2, I if with_x else 4 * H
    values = [_randn(T, B, size) if with_x and shared else _randn(T, B, G, size)]
    values += [_randn(G, B, H), _randn(G, B, H), _randn(4 * H, H), _randn(4 * H, H), _randn(3 * H)]
    values += [
        _randn(3 * H),
        *([_randn(4 * H, I), _randn(4 * H, I), _randn(4 * H)] if with_x else []),
    ]

    def run(backend, input, hx, cx, hh, hh_reverse, ch, ch_reverse, *rest):
        more = {"weight_ih": rest[:2], "bias_hh": [rest[2], rest[2] * 2]} if rest else {}
        y, hy, cy = lstm_sequence(
            input,
            [hh, hh_reverse],
            hx,
            cx,
            weight_ch=[ch, ch_reverse],
            reverse=[False, True],
            lengths=torch.tensor([T, 2]),
            backend=backend,
            **more,
        )
        return y.sin().sum() + (hy * cy).sum(), (y, hy, cy)

    derivatives = tuple(range(len(values)))

    def both(backend):
        return grad(lambda *values: run(backend, *values), argnums=derivatives, has_aux=True)

    for chosen in [*([index] for index in range(len(values))), range(len(values))]:
        dims = tuple(values[i].dim() if i in chosen else None for i in range(len(values)))
        arguments = [
            torch.stack([v, v.cos(), -v], -1) if i in chosen else v for i, v in enumerate(values)
        ]
        ours = vmap(both("cpu"), dims)(*arguments)
        loop = [
            both("reference")(*(a[..., n] if i in chosen else a for i, a in enumerate(arguments)))
            for n in range(N)
        ]
        flat = [pytree.tree_leaves(one) for one in loop]
        truth = [torch.stack(tensors) for tensors in zip(*flat, strict=True)]
        _close(pytree.tree_leaves(ours), truth)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gradients_of_each_sample(kind):
    module, x = _lstm(**kind), _randn(N, T, 1, I)
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def loss(parameters, x):
        return _loss(functional_call(module, parameters, (x,)))

    ours = vmap(grad(loss), (None, 0))(parameters, x)
    truth = [grad(loss)(parameters, row) for row in x]
    _close(ours, {name: torch.stack([one[name] for one in truth]) for name in ours})
    _close(vmap(grad(loss), (None, 0), chunk_size=2)(parameters, x), ours)
    plain = torch.autograd.grad(_loss(module(x[0])), list(module.parameters()))
    _close(tuple(truth[0].values()), plain)


def test_gradients_of_each_sample_are_one_call_with_more_groups(runs):
    module, x = _lstm(), _randn(N, T, B, I)
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    vmap(grad(lambda p, x: _loss(functional_call(module, p, (x,)))), (None, 0))(parameters, x)
    assert runs == [("forward", 1, N * B), ("backward", N, B)]
    module.requires_grad_(False)
    vmap(grad(lambda x: _loss(module(x))))(x)
    assert runs[2:] == [("forward", 1, N * B), ("backward", 1, N * B)]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_ensemble(kind):
    modules, x = [_lstm(**kind) for _ in range(N)], _randn(T, B, I)
    parameters, buffers = stack_module_state(modules)

    def run(parameters, buffers, x):
        return functional_call(modules[0], (parameters, buffers), (x,))[0]

    _close(vmap(run, (0, 0, None))(parameters, buffers, x), torch.stack([m(x)[0] for m in modules]))
    vmap(run, (0, 0, None))(parameters, buffers, x).sin().sum().backward()
    for index, module in enumerate(modules):
        module(x)[0].sin().sum().backward()
        for name, parameter in module.named_parameters():
            _close(parameters[name].grad[index], parameter.grad)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_dropout_between_layers(randomness, train):
    module = _lstm(I, H, 2, dropout=0.5)
    x = _randn(1, T, B, I).expand(N, T, B, I)
    run = vmap(lambda x: module(x)[0], randomness=randomness)
    with torch.set_grad_enabled(train):
        first, second = run(x)[:2]
    assert torch.equal(first, second) == (randomness == "same")
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(module)(x)


@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_cell(backend, peephole):
    cell = fastlstm.LSTMCell(I, H, peephole=peephole, backend=backend, dtype=torch.float64)
    x = _randn(N, B, I)
    _close(vmap(lambda x: cell(x)[0])(x), torch.stack([cell(row)[0] for row in x]))
    run = grad(lambda x: cell(x)[0].sin().sum())
    _close(vmap(run)(x), torch.stack([run(row) for row in x]))
    _close(vmap(lambda x: cell(x)[1])(x[:, 0]), cell(x[:, 0])[1])
    jacobians = [transform(lambda x: cell(x)[1])(x[0]) for transform in (jacfwd, jacrev)]
    _close(*jacobians)


def test_the_ops_themselves_have_vmap_rules():
    igates, weight, state = _randn(N, T, B, 1, 4 * H), _randn(4 * H, H), _randn(1, B, H)

    def run(igates):
        empty = [[]] * 3
        call = (igates, *empty, [weight], [], [], state, state, [False], None, None, None)
        y, _, _, _, reserve = torch.ops.fastlstm.lstm_sequence(*call, True, False, 0, True, "cpu")
        backward = torch.ops.fastlstm.lstm_sequence_backward.default
        needs = [True, False, False, True, False, False]
        return y, *backward(y, None, None, None, y, reserve, *call, needs, 0, "cpu")

    ours = vmap(run)(igates)
    truth = [torch.stack(tensors) for tensors in zip(*map(run, igates), strict=True)]
    asked = [index for index, tensor in enumerate(truth) if tensor.numel()]
    assert len(asked) == 5
    _close([ours[i] for i in asked], [truth[i] for i in asked])


def _reference_forward(*args):
    """The forward op, by the reference."""
    outputs = backends.reference.forward(schema.unflatten_forward(args)[0])
    return *outputs[:4], torch.empty_like(outputs.y)


def _reference_backward(*args):
    call, _, grads, needs, _ = schema.unflatten_backward(args)
    return tuple(second_order.gradients(call, grads, Needs(*needs)))[:8]


@pytest.mark.parametrize("weights", ["one", "own"])
@pytest.mark.parametrize("layout", ["lengths", "reset", "own lengths and reset", "batch_sizes"])
@pytest.mark.parametrize("needs", [(True,) + (False,) * 5, (True, True, False, True, True, True)])
def test_rules_of_every_option(needs, layout, weights):
    """With projections and all cell states; the reference runs the ops, a loop is the truth."""
    G, P, own = 2, 4, "own" in layout
    sizes = torch.tensor([2, 2, 1])
    packed = layout == "batch_sizes"
    rows = (5,) if packed else (T, B)
    lengths = torch.randint(1, T + 1, (N, B) if own else (B,)) if "lengths" in layout else None
    reset = torch.rand(*([N] if own else []), T, B) < 0.3 if "reset" in layout else None
    each, dim = ((N,), 0) if weights == "own" else ((), None)
    groups = [
        [_randn(*each, *size) for _ in range(G)]
        for size in ((4 * H, I), (4 * H, P), (3 * H,), (P, H))
    ]
    ih, hh, ch, hr = groups
    dims = [[dim] * G] * 4
    states = _randn(N, G, B, P), _randn(G, B, H)
    call = (_randn(*rows, I), ih, [], [], hh, ch, hr, *states, [False, True], lengths)
    call += (sizes if packed else None, reset)
    own_dim = 0 if own else None
    call_dims = (None, dims[0], [], [], *dims[1:], 0, None, [None] * G, own_dim, None, own_dim)
    dy = _randn(*rows, G, P, N)
    grads = (dy, None, _randn(G, B, H), _randn(*rows, G, H))
    dummies = (_randn(N, *rows, G, P), _randn(*rows, G, 5 * H))
    forward = (*call, True, True, 0, True, "cpu"), (*call_dims, *[None] * 5)
    backward = (
        (*grads, *dummies, *call, list(needs), 0, "cpu"),
        (dy.dim() - 1, None, None, None, 0, None, *call_dims, [None] * 6, None, None),
    )
    for rule, op, (args, in_dims) in (
        (rules.forward, _reference_forward, forward),
        (rules.backward, _reference_backward, backward),
    ):
        info = SimpleNamespace(batch_size=N)
        outputs, out_dims = rule(op, info, in_dims, *args)
        leaves, spec = pytree.tree_flatten(args)
        places = pytree.tree_leaves(in_dims)
        for n in range(N):
            one = (
                leaf if place is None else leaf.select(place, n)
                for leaf, place in zip(leaves, places, strict=True)
            )
            truth = op(*pytree.tree_unflatten(list(one), spec))
            for index, expected in enumerate(truth):
                if rule is rules.forward and index == 4:
                    continue
                place = out_dims[index]
                found = outputs[index] if place is None else outputs[index].select(place, n)
                _close(found, expected)
