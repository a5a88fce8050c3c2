"""Modules and calls with options of their cells, and what a backend computes for them."""

import torch
from helpers import Case, assert_as_close_as_torch, assert_close

import fastlstm
from fastlstm.backends import reference
from fastlstm.call import Call, Needs, OutputGradients, Saved, Wanted
from fastlstm.op import second_order
from fastlstm.options import CellOptions

# Options of a module, and its other arguments that they may come together with.
T, B, I, H = 5, 3, 4, 6
OPTIONS = {
    "layer_norm": True,
    "recurrent_dropout": 0.3,
    "weight_dropout": 0.3,
    "zoneout": (0.2, 0.3),
    "variational_dropout": 0.3,
    "forget_bias": 1.0,
    "cell_clip": 0.4,
    "hidden_size": [6, 5],
}
OTHERS = {
    "peephole": True,
    "proj_size": 3,
    "bidirectional": True,
    "num_heads": 2,
    "checkpoint_every": 2,
    "bias": False,
    "learn_initial_state": True,
}


def make(names, **keywords):
    """An LSTM of two layers in float64 with the arguments of these names."""
    torch.manual_seed(0)
    chosen = {name: (OPTIONS | OTHERS)[name] for name in names}
    arguments = {"input_size": I, "hidden_size": H, "num_layers": 2, "dtype": torch.float64}
    return fastlstm.LSTM(**arguments | chosen | keywords)


def option_call(case: Case, names, dtype=torch.float64, expected=False) -> Call:
    """A call of ``case`` with the options of these names.

    With ``expected`` zoneout keeps the same share in every step and row, with strides of zero.
    """
    call = case.call({name: value.to(dtype) for name, value in case.inputs().items()})
    G, B, H, P = len(case.reverse), case.B, case.H, case.P
    if case.packed:  # batch sizes are on the CPU, whatever the default device is
        layout = call.layout._replace(batch_sizes=call.layout.batch_sizes.cpu())
        call = call._replace(layout=layout)

    def mask(p, *size):
        return (torch.rand(*size) < p).to(dtype)

    def keep(p, n):
        if expected:
            return torch.full((n,), p, dtype=dtype).expand(*case.rows, G, n)
        return mask(p, *case.rows, G, n)

    values = {
        "hidden_mask": mask(0.7, G, B, P) / 0.5,
        "keep_h": keep(0.25, P),
        "keep_c": keep(0.375, H),
        "norm_hh": 1 + torch.rand(G, 4 * H).to(dtype) / 4,
        "norm_c": torch.stack([1 + torch.rand(G, H) / 4, torch.rand(G, H)], 1).to(dtype),
        "cell_clip": 0.25,
    }
    return call._replace(options=CellOptions(**{name: values[name] for name in names}))


def to_dtype(call: Call, dtype) -> Call:
    """The call in another dtype."""
    tensors = [tensor.to(dtype) for tensor in call.tensors]
    cast = call.with_tensors(tensors)
    return cast._replace(options=cast.options.map(lambda name, tensor: tensor.to(dtype)))


def needs_of(call: Call) -> Needs:
    """All gradients that there are."""
    weights = call.weights
    flags = (weights.weight_hh, weights.weight_ch, weights.weight_hr)
    has_bias = bool(weights.bias_ih or weights.bias_hh)
    return Needs(True, bool(weights.weight_ih), has_bias, *map(bool, flags))


def results_of(backend, call: Call, case: Case, cotangents, **keywords):
    """Outputs and gradients by name, from the backend's own functions."""
    grads = OutputGradients(
        *[
            cotangents[name].to(call.input.dtype) if name in cotangents else None
            for name in ("y", "hy", "cy", "cells")
        ]
    )
    if backend is reference:
        outputs = reference.forward(call)
        found = second_order.gradients(call, grads, needs_of(call))
    else:
        cells = "cells" in case.uses
        outputs = backend.forward(call, Wanted(train=True, cells=cells), **keywords)
        inference = backend.forward(call, Wanted(cells=cells), **keywords)
        for output, same in zip(outputs[:4], inference, strict=False):
            assert torch.equal(output, same)
        saved = Saved(outputs.y, outputs.reserve)
        found = backend.backward(call, saved, grads, needs_of(call), **keywords)
    results = outputs._asdict() | {f"d{name}": d for name, d in found._asdict().items()}
    unused = ("reserve",) if "cells" in case.uses else ("reserve", "cells")
    return {name: t for name, t in results.items() if t.numel() and name not in unused}


def check_call(backend, call: Call, case: Case, cotangents):
    """Compare a backend with the reference: within ``case.tolerance`` in float64.

    In other dtypes it may err at most twice as much as the reference in that dtype.
    """
    exact = to_dtype(call, torch.float64)
    truth = results_of(reference, exact, case, cotangents)
    ours = results_of(backend, call, case, cotangents)
    if call.input.dtype == torch.float64:
        assert_close(ours, truth, case.tolerance)
    else:
        torchs = results_of(reference, call, case, cotangents)
        assert_as_close_as_torch(ours, torchs, truth)
    return ours
