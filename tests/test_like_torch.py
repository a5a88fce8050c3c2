"""Methods, ``_flat_weights`` and pickles that other code finds in an nn.LSTM."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_sequence

import fastlstm

T, B, I, H = 5, 4, 3, 6


def _pair(**options):
    torchs = nn.LSTM(I, H, **options)
    return fastlstm.LSTM.from_torch(torchs), torchs


@pytest.mark.parametrize("cls", ["LSTM", "LSTMCell"])
def test_all_names_of_torchs_class_are_there(cls):
    ours, torchs = getattr(fastlstm, cls)(I, H), getattr(nn, cls)(I, H)
    assert set(dir(torchs)) <= set(dir(ours))
    # all methods are torch's own, except those that are ours on purpose
    own = {name for name in vars(type(torchs)) if callable(getattr(torchs, name))}
    differ = {n for n in own if getattr(type(ours), n) is not getattr(type(torchs), n)}
    assert differ == {"__init__", "forward"}


OPTIONS = {
    "plain": {},
    "stack": {"num_layers": 2, "bidirectional": True},
    "projected": {"proj_size": 2, "batch_first": True},
}


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_subclass_that_copies_torchs_forward(options):
    class Copied(fastlstm.LSTM):
        forward = nn.LSTM.forward

    torchs = nn.LSTM(I, H, **options)
    ours, x = Copied.from_torch(torchs), torch.randn(B, B, I)  # T and B alike: for batch_first too
    state = torchs(x)[1]
    packed = pack_sequence([torch.randn(n, I) for n in (2, 5, 3, 1)], enforce_sorted=False)
    for arguments in ((x,), (x, state), (packed,), (packed, state)):
        torch.testing.assert_close(ours(*arguments), torchs(*arguments))


def test_states_in_another_order():
    ours, _ = _pair()
    hx, order = (torch.randn(1, B, H), torch.randn(1, B, H)), torch.tensor([2, 0, 3, 1])
    found = ours.permute_hidden(hx, order)
    assert torch.equal(found[0], hx[0][:, order]) and torch.equal(found[1], hx[1][:, order])
    assert ours.permute_hidden(hx, None) is hx


def test_sizes_of_states():
    ours, torchs = _pair(num_layers=2, proj_size=2)
    x, sizes = torch.randn(T, B, I), torch.tensor([3, 2])
    for batch_sizes in (None, sizes):
        assert ours.get_expected_cell_size(x, batch_sizes) == (
            2,
            3 if batch_sizes is sizes else B,
            H,
        )
    h, c = torch.zeros(2, B, 2), torch.zeros(2, B, H)
    ours.check_forward_args(x, (h, c), None)
    for hidden in ((c, c), (h, h), (h[:1], c), (h, c[:, 1:])):
        with pytest.raises(RuntimeError) as expected:
            torchs.check_forward_args(x, hidden, None)
        with pytest.raises(RuntimeError) as found:
            ours.check_forward_args(x, hidden, None)
        assert str(found.value) == str(expected.value)


def _put_there(module):
    """Assign other tensors to ``_flat_weights``, as public code does for recurrent dropout."""
    module._flat_weights = [w * 2 if w.dim() == 2 else w for w in module._flat_weights]


def _change_one(module):
    module._flat_weights[1] = module._flat_weights[1] * 2


@pytest.mark.parametrize("change", [_put_there, _change_one])
@pytest.mark.parametrize("backend", ["auto", "cpu", "torch", "reference"])
def test_flat_weights_that_were_put_there_are_used(change, backend):
    torchs, x = nn.LSTM(I, H, 2, bidirectional=True), torch.randn(T, B, I)
    ours = fastlstm.LSTM.from_torch(torchs, backend=backend)
    before = ours(x)[0]
    for module in (ours, torchs):
        change(module)
    torch.testing.assert_close(ours(x)[0], torchs(x)[0])
    assert not torch.allclose(ours(x)[0], before)
    gradients = [
        torch.autograd.grad(m(x)[0].sin().sum(), list(m.parameters())) for m in (ours, torchs)
    ]
    torch.testing.assert_close(*gradients)


def test_flat_weights_of_a_swapped_module():
    model, x = nn.Sequential(nn.LSTM(I, H)), torch.randn(T, B, I)
    _put_there(model[0])
    expected = model(x)[0]
    fastlstm.replace(model)
    torch.testing.assert_close(model(x)[0], expected)


@pytest.mark.parametrize("change", [_put_there, _change_one])
def test_flat_weights_of_a_scripted_module(change):
    module, x = fastlstm.LSTM(I, H), torch.randn(T, B, I)
    before = module(x)[0]
    change(module)
    found = torch.jit.script(nn.Sequential(module))(x)[0]
    torch.testing.assert_close(found, module(x)[0])
    assert not torch.allclose(found, before)


def test_flat_weights_of_a_compiled_module(compiled):
    module, x = fastlstm.LSTM(I, H), torch.randn(T, B, I)
    run = compiled(module)
    torch.testing.assert_close(run(x), module(x))
    before = module(x)[0]
    for change in (_put_there, _change_one):
        change(module)
        assert not torch.allclose(module(x)[0], before)
        torch.testing.assert_close(run(x), module(x))


def _set(module):
    module.weight_hh_l0 = nn.Parameter(torch.ones(4 * H, H))


def _register(module):
    module.weight_hh_l0 = None
    module.register_parameter("weight_hh_l0", nn.Parameter(torch.ones(4 * H, H)))


def _write_to_the_dict(module):
    module._parameters["weight_hh_l0"] = nn.Parameter(torch.ones(4 * H, H))


def _assign_a_state(module):
    module.load_state_dict(
        module.state_dict() | {"weight_hh_l0": torch.ones(4 * H, H)}, assign=True
    )


def _delete_and_set(module):
    del module.weight_hh_l0
    module.weight_hh_l0 = torch.ones(4 * H, H)


def _convert(module):
    with torch.no_grad():
        module.weight_hh_l0.fill_(1)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        module.double().float()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def _parametrize(module):
    class Ones(nn.Module):
        def forward(self, weight):
            return torch.ones_like(weight)

    nn.utils.parametrize.register_parametrization(module, "weight_hh_l0", Ones())


REPLACED = [
    _set,
    _register,
    _write_to_the_dict,
    _assign_a_state,
    _delete_and_set,
    _convert,
    _parametrize,
]


def _with_ones(module, x):
    """The output of an LSTM whose weight_hh_l0 is all ones, with the other weights unchanged."""
    ones = nn.LSTM(I, H)
    ones.load_state_dict({n: getattr(module, n) for n in module._flat_weights_names})
    nn.init.ones_(ones.weight_hh_l0)
    return ones(x)[0]


@pytest.mark.parametrize("replace", REPLACED)
@pytest.mark.parametrize("first", [None, _put_there, _change_one])
def test_a_parameter_that_was_replaced_wins(replace, first):
    module, x = fastlstm.LSTM(I, H), torch.randn(T, B, I)
    if first:
        first(module)
    replace(module)
    torch.testing.assert_close(module(x)[0], _with_ones(module, x))
    if replace is _parametrize:  # after which nn.LSTM too goes by the names
        if not first:  # what _put_there makes cannot be copied
            torch.testing.assert_close(copy.deepcopy(module)(x)[0], module(x)[0])
        return
    torch.testing.assert_close(copy.deepcopy(module)(x)[0], module(x)[0])
    module._flat_weights = [torch.zeros_like(w) for w in module._flat_weights]
    assert not module(x)[0].any()


@pytest.mark.parametrize("replace", REPLACED)
def test_a_parameter_that_was_replaced_wins_in_a_compiled_module(compiled, replace):
    module, x = fastlstm.LSTM(I, H), torch.randn(T, B, I)
    run = compiled(module)
    run(x)
    replace(module)
    torch.testing.assert_close(run(x)[0], _with_ones(module, x))
    ones = {"weight_ih_l0": torch.ones(4 * H, I)}
    call = compiled(lambda x: torch.func.functional_call(module, ones, (x,))[0])
    if replace is not _parametrize:
        torch.testing.assert_close(call(x), torch.func.functional_call(module, ones, (x,))[0])


@pytest.mark.parametrize("first", [None, _put_there])
def test_functional_call_goes_by_the_names_and_leaves_nothing(first):
    module, x = fastlstm.LSTM(I, H), torch.randn(T, B, I)
    if first:
        first(module)
    before, ones = module(x)[0], {"weight_hh_l0": torch.ones(4 * H, H)}
    found = torch.func.functional_call(module, ones, (x,))[0]
    torch.testing.assert_close(found, _with_ones(module, x))
    torch.testing.assert_close(module(x)[0], before)
    many = {"weight_hh_l0": torch.ones(2, 4 * H, H)}
    call = torch.func.vmap(lambda w: torch.func.functional_call(module, w, (x,))[0])
    torch.testing.assert_close(call(many)[1], _with_ones(module, x))
    torch.testing.assert_close(module(x)[0], before)


def test_weights_computed_before_every_call():
    ours, torchs = _pair()
    x = torch.randn(T, B, I)
    for module in (ours, torchs):
        parametrizations.weight_norm(module, "weight_hh_l0")
        for _ in range(2):
            module(x)[0].sum().backward()
            with torch.no_grad():
                module.parametrizations.weight_hh_l0.original0.mul_(2)
    torch.testing.assert_close(ours(x)[0], torchs(x)[0])


@pytest.mark.parametrize("count", [0, 3, 5])
def test_another_number_of_flat_weights(count):
    module = fastlstm.LSTM(I, H)
    module._flat_weights = (module._flat_weights * 2)[:count]
    message = f"_flat_weights: expected 4 tensors, one for each of weight_ih_l0, .*, got {count}"
    with pytest.raises(RuntimeError, match=message):
        module(torch.randn(T, B, I))


def test_flat_weights_of_wrong_sizes():
    module = fastlstm.LSTM(I, H)
    module._flat_weights[1] = torch.zeros(4 * H, H + 1)
    with pytest.raises(RuntimeError, match=r"weight_hh_l0: expected size \(24, 6\).*\(24, 7\)"):
        module(torch.randn(T, B, I))


class Model(nn.Module):
    """An LSTM and a cell inside a model, as users have them."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(I, H)
        self.cell = nn.LSTMCell(H, H)

    def forward(self, x):
        return self.cell(self.lstm(x)[0][-1])[0]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("peephole", [False, True])
def test_a_whole_model_loads_where_known_classes_only_may(frozen, peephole):
    """For programs that allow torch's classes only."""
    model = Model()
    fastlstm.replace(model)
    if peephole:
        model.lstm = fastlstm.LSTM(I, H, peephole=True, learn_initial_state=True)
    if frozen:
        model.lstm.freeze()
    file, x = io.BytesIO(), torch.randn(T, B, I)
    torch.save(model, file)
    file.seek(0)
    with torch.serialization.safe_globals([Model, nn.LSTM, nn.LSTMCell]):
        again = torch.load(file, weights_only=True)
    assert type(again.lstm) is fastlstm.LSTM and type(again.cell) is fastlstm.LSTMCell
    assert (again.lstm._packed is not None) == frozen
    torch.testing.assert_close(again(x), model(x))
    file.seek(0)
    with pytest.raises(pickle.UnpicklingError, match="Model"):
        torch.load(file, weights_only=True)
