"""A checked call on its way to the backend: as an op, with gradients, or as a plain function."""

from __future__ import annotations

from functools import partial
from types import ModuleType

import torch

from fastlstm import backends
from fastlstm.autocast import cast_call
from fastlstm.backends import select
from fastlstm.backends.cpu.prepacked import PrepackedWeights
from fastlstm.call import NOTHING, Call, GroupWeights, Layers, Results, Wanted
from fastlstm.masks import draw_options, drop_between_layers, normalized
from fastlstm.op import autograd, checkpointing, schema, wavefront
from fastlstm.options import PLAIN
from fastlstm.tracing import Mode, records_gradients


def run_layers(backend: ModuleType, layers: Layers, wanted: Wanted, mode: Mode) -> Results:
    """Run all layers of an LSTM, one after the other, the directions of each as its groups.

    Returns:
        y (T, B, G * P), or (N, G * P) of a PackedSequence, hy (L * G, B, P), cy (L * G, B, H) and
        cells (T, B, G * H) of the last layer.
    """
    if backend is backends.torch:
        return backends.torch.forward_layers(layers)
    G, L = len(layers.layout.reverse), len(layers.weights)
    x, hy, cy = layers.input, [], []
    cells = NOTHING
    for layer, weights in enumerate(layers.weights):
        if layer and (layers.dropout or layers.options is not PLAIN):
            p, batch_sizes = layers.options.variational_dropout, layers.layout.batch_sizes
            x = drop_between_layers(x, layers.dropout, p, batch_sizes, layers.hx.shape[1])
        own, is_last = slice(layer * G, (layer + 1) * G), layer == L - 1
        h, c = (layers.hx, layers.cx) if L == 1 else (layers.hx[own], layers.cx[own])
        call, of_layer = Call(x, weights, h, c, layers.layout), wanted
        if layers.options is not PLAIN:
            call = draw_options(call, layers.options, layers.training)
        if L > 1:
            train = wanted.train and records_gradients(mode, call.tensors)
            of_layer = wanted._replace(train=train)
        uncast = None
        if layers.autocast is not None:
            uncast, call = call.weights, cast_call(call, layers.autocast, mode)
        if layers.options.norms is not None:
            call = normalized(call, layers.options.norms[own])
            uncast = None
        if not is_last:
            of_layer = of_layer._replace(y=True, cells=False)
        prepacked = None if layers.prepacked is None else layers.prepacked[layer]
        results = run(backend, call, of_layer, mode, prepacked, uncast)
        if of_layer.y:
            x = results.y.flatten(-2)
        hy.append(results.hy)
        cy.append(results.cy)
        if of_layer.cells:
            cells = results.cells.flatten(-2)
    y = x if wanted.y else NOTHING
    if L == 1:
        return Results(y, hy[0], cy[0], cells)
    return Results(y, torch.cat(hy), torch.cat(cy), cells)


def run_stacked(backend: ModuleType, layers: Layers, wanted: Wanted, mode: Mode) -> Results:
    """Run all layers of an LSTM in one call of a backend that can do so."""
    call = wavefront.stacked_call(layers)
    if layers.autocast is not None:
        call = cast_call(call, layers.autocast, mode)
    return wavefront.run_stacked(backend, call, wanted.train)


def run(
    backend: ModuleType,
    call: Call,
    wanted: Wanted,
    mode: Mode,
    prepacked: PrepackedWeights | None = None,
    uncast: GroupWeights | None = None,
) -> Results:
    """Run one call of the sequence op. Outputs that are not wanted may be there nevertheless.

    Where nothing watches the op, neither a compiler nor a tracer nor a mode, its kernels are called
    without it: that saves a quarter of the time of a short call (15 of 60 us), more in training.

    Args:
        backend: the one that was selected.
        call: checked, and in the dtype that is computed in.
        wanted: the outputs, and whether gradients are recorded.
        mode: what the call must be visible to.
        prepacked: where the cpu backend keeps prepacked weights.
        uncast: the weights before autocast cast them. The cpu backend's gradients, which are sums
            in float32, go to these directly: rounding 8 million of them to bfloat16 and widening
            them again takes 30 ms, a tenth of a training step.
    """
    if mode is Mode.ONNX:
        return backends.onnx.forward(call)
    train, every = wanted.train, wanted.checkpoint_every * wanted.train
    checkpoints = backend.CHECKPOINTS and call.options is None
    if every and not checkpoints:
        if mode in (Mode.AUTOGRAD, Mode.TRACED) and not torch.jit.is_tracing():
            segment = partial(run, backend, wanted=wanted._replace(checkpoint_every=0), mode=mode)
            return checkpointing.run_segments(segment, call, wanted)
        every = 0  # nothing is kept, or torch.func, which cannot recompute saved tensors
    watched = mode is Mode.FUNCTORCH and call.options is not None
    if backend is backends.reference or mode is Mode.FORWARD_AD or watched:
        return backends.reference.forward(call)
    needs_y = (train or mode is Mode.FUNCTORCH) and not every
    returns_y = wanted.y or needs_y or not checkpoints
    wanted = Wanted(train, returns_y, wanted.cells, every)
    if mode is Mode.FUNCTORCH:
        return autograd.transformed_lstm_sequence(call, wanted, select.name(backend))
    if mode is Mode.TRACED:
        return schema.lstm_sequence(call, wanted, select.name(backend))
    if train:
        takes_sums = backend is backends.cpu
        return autograd.lstm_sequence(backend, call, wanted, uncast if takes_sums else None)
    if prepacked is not None and backend is backends.cpu and call.options is None:
        return backends.cpu.forward(call, wanted, prepacked)
    return backend.forward(call, wanted)
