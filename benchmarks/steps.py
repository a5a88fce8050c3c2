"""Training steps of models, as the parts that ``cost.py`` adds up."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import fastlstm
from fastlstm import configs
from fastlstm.layout_checks import steps_between_checkpoints
from fastlstm.models.basis import FrameBasis
from fastlstm.models.encoder_decoder import LSTMStack
from fastlstm.models.video import VideoLSTM

from .cost import OPTIMIZERS, How, Layer, Optimizer, Part, Step, linear, lstm, moved

_BYTES = 256  # the classes of a ByteLSTM


class Planned(NamedTuple):
    """A training step that is to be planned.

    Args:
        title: the model and its sizes, in words.
        T: steps of the longest sequence.
        parts: makes the parts of the step.
        batch: bytes of a batch.
        optimizer, fused, clips: as in ``Step``.
        checkpoint_every: k of the model as it is configured, 0 for none.
        precision: of ``PRECISIONS``, or "auto".
        notes: sentences about what is not in the plan.
    """

    title: str
    T: int
    parts: Callable[[How], list[Part]]
    batch: int
    optimizer: Optimizer = OPTIMIZERS["Adam"]
    fused: bool = True
    clips: bool = False
    checkpoint_every: int = 0
    precision: str = "32-true"
    notes: tuple[str, ...] = ()

    def step(self, how: How) -> Step:
        """Return the step, computed in one way."""
        return Step(self.parts(how), self.batch, self.optimizer, self.fused, self.clips)


def _layers(first: Layer, num_layers: int, how: How, name: str = "lstm") -> list[Part]:
    """Return the parts of LSTM layers; all but the first read the layer below."""
    D = first.G
    above = first._replace(I=D * first.H, needs_dx=True, wide_input=False)
    return [lstm(f"{name} {i}", above if i else first, how) for i in range(num_layers)]


def of_lstm(T: int, B: int, module: fastlstm.LSTM) -> Planned:
    """Return the step of an LSTM whose loss is the mean squared error of all its outputs."""
    D = 2 if module.bidirectional else 1
    biases = 2 if module.bias else 0
    layer = Layer(T, B, module.input_size, module.hidden_size, D, biases, module.peephole, False)
    layer = layer._replace(wide_input=True)
    outputs = T * B * D * module.hidden_size

    def parts(how: How) -> list[Part]:
        size = outputs * 4
        wide = outputs * 4 if how.precision.computed < 4 else 0
        moves = {"forward": 4 * size, "backward": 3 * size}
        loss = moved("loss", how, kept=wide, forward_bytes=size, **moves)
        return [*_layers(layer, module.num_layers, how), loss]

    layers = f"{module.num_layers} layer{'s' * (module.num_layers > 1)}"
    title = (
        f"LSTM, input {module.input_size}, {module.hidden_size} units, {layers}"
        f"{', both directions' * (D > 1)}; T={T}, batch size {B}"
    )
    batch = T * B * module.input_size * 4 + outputs * 4
    every = steps_between_checkpoints(module.checkpoint_every)
    return Planned(title, T, parts, batch, checkpoint_every=every)


def _stack(stack: LSTMStack, T: int, B: int, groups: int = 1) -> Layer:
    basis = stack.basis
    I = stack.input_size if basis is None or not stack.input_size else basis.num_coefficients
    sizes = (T, B, I, stack.hidden_size, groups)
    return Layer(*sizes, biases=1, peephole=stack.peephole, needs_dx=False)


def _basis(basis: FrameBasis, frames: int, how: How, to_pixels: bool) -> Part:
    """Return the part of a change between the pixels and the coefficients of frames."""
    size, K = how.precision.computed, basis.size
    between = frames * basis.height * K * basis.channels
    pixels, coefficients = frames * basis.frame_size, frames * basis.num_coefficients
    passes = 2 if to_pixels else 1
    seconds = 0.0
    if how.speeds is not None and how.constants is not None:
        seconds = 2.0 * (pixels * K + between * K) / how.speeds.matmul
        seconds += 2 * (pixels + between + coefficients) * size / how.constants.bandwidth
    kept = 0 if to_pixels else coefficients * size
    within = (between + (pixels if to_pixels or how.casts else 0)) * size
    backward = within if to_pixels else 0
    name = "pixels" if to_pixels else "coefficients"
    return Part(name, 0, kept, within, backward, seconds, (passes - 1) * seconds)


def of_video(model: VideoLSTM, T: int, future: int, B: int) -> Planned:
    """Return the step of a video model that reads T frames, and the ``future`` ones that follow."""
    encoder, I = model.encoder, model.input_size
    decoders = [(model.reconstruction_decoder, T), (model.future_decoder, future)]
    found = [(decoder, steps) for decoder, steps in decoders if decoder is not None]
    frames = (T + (future if model.future_decoder else 0)) * B

    def parts(how: How) -> list[Part]:
        size, basis = how.precision.computed, encoder.basis
        floats = frames * I * how.precision.stored
        flipped = T * B * I * how.precision.stored if model.reconstruction_decoder else 0
        moves = frames * I + 3 * floats + 2 * flipped
        made = [moved("frames", how, kept=floats + flipped, forward=moves)]
        if basis is not None:
            made.append(_basis(basis, T * B, how, False))
        first = _stack(encoder, T, B)._replace(wide_input=basis is None)
        made += _layers(first, encoder.num_layers, how, "encoder")
        together = len(found) == 2 and found[0][1] == found[1][1]
        for decoder, steps in found[: 1 if together else 2]:
            G = 2 if together else 1
            layer = _stack(decoder, steps, B, G)
            reads = [d for d, _ in (found if together else [(decoder, steps)]) if d.conditional]
            if reads and len(reads) < G:  # the op reads igates, made beforehand
                igates, reader = steps * B * 4 * decoder.hidden_size, _stack(reads[0], steps, B)
                made.append(linear("igates", steps * B, reader.I, 4 * reader.H, 0, how))
                made.append(moved("igates", how, kept=G * igates * size, forward=3 * igates * size))
                layer = layer._replace(I=0)
            layer = layer._replace(wide_input=basis is None)
            # Layers above the first read the layer below of their own decoder.
            made.append(lstm("decoders", layer, how))
            above = layer._replace(I=decoder.hidden_size, needs_dx=True, wide_input=False)
            made += [lstm("decoders", above, how)] * (decoder.num_layers - 1)
        for decoder, steps in found:
            rows, H, pixels = steps * B, decoder.hidden_size, steps * B * I
            outputs = I if basis is None else basis.num_coefficients
            readout = linear("read-out", rows, H, outputs, I, how)
            made.append(readout._replace(kept=readout.kept + rows * H * size * (len(found) > 1)))
            if basis is not None:
                made.append(_basis(basis, rows, how, True))
                wide = 4 if how.casts else size
                biased = {"kept": pixels * wide, "forward": 3 * pixels * wide}
                made.append(moved("bias", how, **biased, backward=pixels * wide))
            # its forward pass computes the gradient of the read-out too
            loss = {"kept": pixels * 4, "elements": pixels}
            made.append(moved("loss", how, **loss))
        return made

    name = f"{type(model).__name__}, input {I}, {encoder.hidden_size} units"
    title = f"{name}; {T} + {future} frames, batch size {B}"
    every = steps_between_checkpoints(encoder.checkpoint_every)
    return Planned(title, max(T, future), parts, frames * I, checkpoint_every=every)


def of_classifier(model: fastlstm.LSTMClassifier, T: int, B: int) -> Planned:
    """Return the step of a classifier of T frames."""
    encoder, C = model.encoder, model.num_classes
    I, H = encoder.input_size, encoder.hidden_size

    def parts(how: How) -> list[Part]:
        floats, h = T * B * I * how.precision.stored, T * B * H * how.precision.computed
        logits = T * B * C * 4
        dropped = 2 * h if model.dropout else 0
        layer = _stack(encoder, T, B)._replace(wide_input=True)
        return [
            moved("frames", how, kept=floats, forward=T * B * I + 3 * floats),
            *_layers(layer, encoder.num_layers, how),
            moved("dropout", how, kept=dropped, forward=2 * dropped, backward=dropped),
            linear("read-out", T * B, H, C, C, how),
            moved("loss", how, kept=2 * logits, backward_bytes=logits, elements=T * B * C),
        ]

    title = f"LSTMClassifier, input {I}, {H} units, {C} classes; T={T}, batch size {B}"
    every = steps_between_checkpoints(encoder.checkpoint_every)
    return Planned(title, T, parts, T * B * I, checkpoint_every=every)


def of_bytes(model: fastlstm.ByteLSTM, T: int, B: int) -> Planned:
    """Return the step of a language model of bytes on a window of T bytes."""
    module, E = model.lstm, model.embedding.embedding_dim
    if module.proj_size:
        raise ValueError(f"proj_size: expected 0 for a plan, got {module.proj_size}")
    H = module.hidden_size
    layer = Layer(T, B, E, H, 1, 2 if module.bias else 0, module.peephole, True, True)

    def parts(how: How) -> list[Part]:
        embedded, logits = T * B * E * how.precision.stored, T * B * _BYTES * 4
        table = {"kept": embedded, "backward_bytes": embedded, "forward": 2 * embedded}
        return [
            moved("embedding", how, **table, backward=3 * embedded)._replace(parameters=_BYTES * E),
            *_layers(layer, module.num_layers, how),
            linear("read-out", T * B, H, _BYTES, _BYTES, how),
            moved("loss", how, kept=logits, backward_bytes=2 * logits, elements=T * B * _BYTES),
        ]

    title = f"ByteLSTM, {H} units; windows of {T} bytes, batch size {B}"
    every = steps_between_checkpoints(module.checkpoint_every)
    return Planned(title, T, parts, T * B * 17, checkpoint_every=every)


def read_config(config: str) -> dict[str, Any]:
    """Read a training configuration.

    Raises:
        ValueError: there is none of this name, or it has no model or no data.
    """
    import yaml

    text = Path(configs.find(config)).read_text()
    try:
        read = yaml.safe_load(text)
        read = read.get("fit", read)
        _ = read["model"]["model"]["class_path"], read["data"]["class_path"]
    except (KeyError, TypeError, AttributeError, yaml.YAMLError):
        raise ValueError(
            "config: expected a model and data with a class_path each, as in `fastlstm configs"
            f" demo`, got none in {config!r}"
        ) from None
    return read


def configured_model(read: Mapping[str, Any]) -> nn.Module:
    """Make the model of a configuration that was read."""
    chosen = read["model"]["model"]
    model: nn.Module = _class(chosen["class_path"])(**chosen.get("init_args", {}))
    return model


def configured(config: str, T: int | None, batch_size: int | None) -> Planned:
    """Return the step of a training configuration.

    Args:
        config: a name in ``fastlstm configs``, or a file.
        T: steps, in place of the configuration's: of a video model the frames that it reads, and as
            many that follow.
        batch_size: in place of the configuration's.

    Raises:
        ValueError: no such configuration; or its model, data or optimiser cannot be planned.
        ModuleNotFoundError: a package of ``fastlstm[train]`` is not installed.
    """
    read = read_config(config)
    task, of_data, of_trainer = read["model"], read["data"], read.get("trainer", {})
    with torch.device("meta"):
        model = configured_model(read)
    data = _defaults(_class(of_data["class_path"])) | of_data.get("init_args", {})
    B = batch_size or data["batch_size"]
    planned = _of_model(model, T, B, data)
    optimizer, fused = _optimizer(task.get("optimizer", {}))
    notes = ()
    if task.get("sampling", 0) != 0:
        notes = (
            "A decoder that reads its own frames (sampling) takes longer than one that reads true"
            " frames, as planned here.",
        )
    return planned._replace(
        optimizer=optimizer,
        fused=fused,
        clips=of_trainer.get("gradient_clip_val") is not None,
        precision=str(of_trainer.get("precision") or "32-true"),
        notes=notes,
    )


def _of_model(model: nn.Module, T: int | None, B: int, data: Mapping[str, Any]) -> Planned:
    if isinstance(model, VideoLSTM) and "input_frames" in data:
        return of_video(model, T or data["input_frames"], T or data["future_frames"], B)
    if isinstance(model, fastlstm.LSTMClassifier) and (T or "num_frames" in data):
        return of_classifier(model, T or data["num_frames"], B)
    if isinstance(model, fastlstm.ByteLSTM) and (T or "k1" in data):
        return of_bytes(model, T or data["k2"] or data["k1"], B)
    raise ValueError(
        "config: expected a video model, an LSTMClassifier or a ByteLSTM, and data that have its"
        f" number of steps, or --T; got a {type(model).__name__}"
    )


def _class(path: str) -> type:
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name, None) if module else None
    if not isinstance(found, type):
        raise ValueError(f"class_path: expected a class, got {path!r}")
    return found


def _defaults(kind: type) -> dict[str, Any]:
    parameters = inspect.signature(kind).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _optimizer(chosen: Mapping[str, Any]) -> tuple[Optimizer, bool]:
    name = str(chosen.get("class_path", "torch.optim.Adam")).rpartition(".")[2]
    options = chosen.get("init_args", {})
    return named_optimizer(name, bool(options.get("momentum"))), bool(options.get("fused"))


def named_optimizer(name: str, momentum: bool = False) -> Optimizer:
    """Return an optimiser of torch by the name of its class.

    Raises:
        ValueError: it is not in ``OPTIMIZERS``.
    """
    name = "SGD with momentum" if name == "SGD" and momentum else name
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {name!r}")
    return OPTIMIZERS[name]
