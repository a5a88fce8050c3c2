"""The base class of the video models: encoding, reconstruction, prediction, losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from fastlstm.models import decoding, encoder_decoder, losses, saving
from fastlstm.models.basis import PIXELS, Basis, dense_weights, make_basis
from fastlstm.models.decoding import DecoderRun, VideoOutput, run_decoders
from fastlstm.models.encoder_decoder import DecoderType, Encoder, State, make_decoder, time_first
from fastlstm.models.losses import FrameType, VideoLoss, frame_loss, readout_to_frames, video_loss


class VideoLSTM(saving.SavedModel):
    """The base class of the video models: an LSTM encoder, and one or two LSTM decoders.

    :class:`fastlstm.CompositeLSTM` has both decoders, :class:`fastlstm.LSTMAutoencoder` and
    :class:`fastlstm.LSTMFuturePredictor` have one. The models are those of Srivastava, Mansimov
    and Salakhutdinov, "Unsupervised Learning of Video Representations using LSTMs" (ICML 2015,
    arXiv:1502.04681).

    The encoder reads T frames. Each decoder starts from the encoder's final state: the
    reconstruction decoder emits the same frames in reverse order, the future decoder the frames
    that follow. An unconditional decoder reads no frames. A conditional decoder reads, from its
    second step on, the frame before the one that it emits: in training the true frame (teacher
    forcing). In use the future decoder reads its own output (closed loop), and the reconstruction
    decoder still reads the true frame, which the model has seen.

    Args:
        input_size: I, number of values in a frame.
        hidden_size: H, number of units in each layer.
        num_layers: L, number of layers in the encoder and in each decoder. Default: 1.
        reconstruction: the reconstruction decoder: "none", "unconditional" or "conditional"; as in
            version 0.1 also None, False or True.
        future: the future decoder; takes the same values.
        frame_type: "binary" for values in [0, 1], trained on the cross-entropy in nats; "real" for
            any values, trained on half the squared error. Default: "binary".
        peephole: connections from the cell states to the gates. Default: True, as in the paper.
        batch_first: frames are (B, T, I), not (T, B, I), for T frames of B videos. Default: False.
        readout_bias: initial value of the read-out layers' biases; for binary frames the log-odds
            of the mean pixel saves the first hundred steps of training. Default: 0.
        backend: "auto" or the name of a backend; see :func:`fastlstm.explain`. Default: "auto".
        checkpoint_every: which steps' states training keeps, for long videos; see
            :class:`fastlstm.LSTM`. Default: None, all of them.
        basis: what the weights read and emit: "pixels", or "dct", the low frequencies of a frame.
            Default: "pixels".
        basis_size: K, the number of frequencies along each axis, for "dct". Default: None, half of
            the shorter side of a frame.
        frame_shape: (height, width) or (height, width, channels) of a frame, for "dct". Default:
            None, square, of one channel.
        device: of the parameters. Default: torch's default device.
        dtype: of the parameters. Default: torch's default dtype.
        frames: the name of ``frame_type`` in version 0.1. Default: None, not given.

    Raises:
        TypeError: a ``checkpoint_every`` that is neither None, an integer nor a string.
        ValueError: a size below 1, an unknown backend, frame type, basis or decoder, no decoder, or
            a ``basis_size`` or ``frame_shape`` that does not fit.

    Example:
        >>> import torch, fastlstm
        >>> model = fastlstm.VideoLSTM(16, 8, reconstruction="none", future="conditional")
        >>> model.predict(torch.rand(5, 2, 16), steps=3).shape
        torch.Size([3, 2, 16])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        reconstruction: DecoderType | bool | None,
        future: DecoderType | bool | None,
        frame_type: FrameType = "binary",
        peephole: bool = True,
        batch_first: bool = False,
        readout_bias: float = 0.0,
        backend: str = "auto",
        checkpoint_every: int | str | None = None,
        basis: Basis = "pixels",
        basis_size: int | None = None,
        frame_shape: tuple[int, int] | tuple[int, int, int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        frames: FrameType | None = None,
    ) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        encoder_decoder.check_sizes(sizes)
        frame_type = losses.check_frame_type(frame_type, frames)
        decoders = encoder_decoder.decoder_types(reconstruction, future)
        images = make_basis(basis, basis_size, frame_shape, input_size)
        self.config: dict[str, Any] = sizes | {
            "frame_type": frame_type,
            "peephole": peephole,
            "batch_first": batch_first,
            "readout_bias": readout_bias,
            "backend": backend,
            "checkpoint_every": checkpoint_every,
            **(PIXELS if images is None else images.options()),
        }
        if type(self) is VideoLSTM:  # a subclass adds its own arguments
            self.config |= decoders
        self.input_size = input_size
        self.frame_type: FrameType = frame_type
        self.batch_first = batch_first
        self.readout_bias = readout_bias
        stack = (input_size, hidden_size, num_layers)
        options = (*stack, peephole, backend, checkpoint_every, images)
        with torch.device(device or torch.get_default_device()):
            self.encoder = Encoder(*options)
            self.reconstruction_decoder = make_decoder(decoders["reconstruction"], *options)
            self.future_decoder = make_decoder(decoders["future"], *options)
        self.to(device=device, dtype=dtype)  # the basis was made outside of that block
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw weights as ``nn.LSTM`` and ``nn.Linear`` do, and set the biases.

        Biases of the LSTMs are 0, but 1 for forget gates; those of read-outs are ``readout_bias``.
        """
        for module in self.modules():
            if isinstance(module, encoder_decoder.LSTMStack):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                module.reset_parameters()
                module.bias.fill_(self.readout_bias)

    @torch.no_grad()
    def folded(self) -> Self:
        """Return a model with ``basis="pixels"`` that emits the same frames, up to rounding.

        Its input and read-out weights are dense: those of this model, multiplied by the basis. A
        model whose basis is "pixels" is returned itself, not a copy.

        Example:
            >>> import fastlstm
            >>> model = fastlstm.CompositeLSTM(16, 8, basis="dct")
            >>> model.encoder.weight_ih_l0.shape, model.folded().encoder.weight_ih_l0.shape
            (torch.Size([32, 4]), torch.Size([32, 16]))
        """
        if self.encoder.basis is None:
            return self
        with torch.device("meta"):
            model = type(self)(**(self.config | PIXELS), dtype=self.encoder.weight_hh_l0.dtype)
        weights = dense_weights(self.state_dict(), self.encoder.basis)
        model.load_state_dict(weights, assign=True)
        return model.train(self.training)

    def encode(self, frames: Tensor) -> State:
        """Return the representation of a video: the final (h, c) of every layer, each (L, B, H).

        Args:
            frames: (T, B, I).

        Raises:
            RuntimeError, ValueError: a wrong rank, size or dtype, as in ``nn.LSTM``.
        """
        return self.encoder(time_first("frames", frames, self.batch_first))

    def forward(
        self,
        frames: Tensor,
        future: Tensor | None = None,
        *,
        steps: int | None = None,
        sampling: float = 0.0,
        feedback_gradient: float = 0.0,
    ) -> VideoOutput:
        """Encode frames and run the decoders.

        Args:
            frames: (T, B, I).
            future: (steps, B, I) the true frames that follow, which a conditional future decoder
                reads one step late (teacher forcing). Default: None, it reads its own output.
            steps: number of frames that the future decoder emits. Default: that of ``future``, or
                T without it.
            sampling: probability, per video and step, that a conditional decoder reads its own
                output in place of the true frame (scheduled sampling, Bengio et al. 2015).
                Default: 0.
            feedback_gradient: factor, from 0 to 1, on the gradient that goes back through each
                frame which a decoder emitted and then read. 1 is the gradient of the loss; 0 treats
                such frames as constants. Default: 0.

        Returns:
            See :class:`fastlstm.VideoOutput`.

        Raises:
            RuntimeError, ValueError: a wrong rank, size or dtype, as in ``nn.LSTM``.
            ValueError: a number out of range, or ``steps`` other than the length of ``future``.
        """
        frames, future = encoder_decoder.videos_time_first(frames, future, self.batch_first)
        if future is not None and steps not in (None, future.shape[0]):
            raise ValueError(f"steps: expected {future.shape[0]}, as future has, got {steps}")
        state = self.encoder(frames)
        if steps is None:
            steps = (frames if future is None else future).shape[0]
        decoding.check_steps(steps)
        decoder = self.reconstruction_decoder
        reads_frames = decoder is not None and decoder.conditional
        runs = (
            DecoderRun(decoder, frames.flip(0) if reads_frames else None, frames.shape[0]),
            DecoderRun(self.future_decoder, future, steps),
        )
        readouts = run_decoders(runs, state, self.frame_type, sampling, feedback_gradient)
        if self.batch_first:
            readouts = [y if y is None else y.transpose(0, 1) for y in readouts]
        return VideoOutput(readouts[0], readouts[1], state)

    def reconstruct(self, frames: Tensor) -> Tensor:
        """Return the frames that the reconstruction decoder emits, (T, B, I), the last one first.

        A conditional decoder reads the true frames, which the model has seen.

        Args:
            frames: (T, B, I).

        Raises:
            RuntimeError, ValueError: a wrong rank, size or dtype, as in ``nn.LSTM``.
            ValueError: a model without the reconstruction decoder.
        """
        decoder = self.reconstruction_decoder
        if decoder is None:
            name = type(self).__name__
            raise ValueError(f"reconstruct: expected a reconstruction decoder, {name} has none")
        frames = time_first("frames", frames, self.batch_first)
        run = DecoderRun(decoder, frames.flip(0) if decoder.conditional else None, frames.shape[0])
        (readout,) = run_decoders([run], self.encoder(frames), self.frame_type)
        assert readout is not None
        emitted = readout_to_frames(readout, self.frame_type)
        return emitted.transpose(0, 1) if self.batch_first else emitted

    def predict(self, frames: Tensor, steps: int) -> Tensor:
        """Predict the frames that follow, (steps, B, I).

        A conditional decoder runs in closed loop: it reads the frame that it emitted last.

        Args:
            frames: (T, B, I).
            steps: number of frames to predict; may differ from what the model was trained on.

        Raises:
            RuntimeError, ValueError: a wrong rank, size or dtype, as in ``nn.LSTM``.
            ValueError: ``steps`` below 1, or a model without the future decoder.
        """
        emitted = readout_to_frames(self._predict(frames, steps), self.frame_type)
        return emitted.transpose(0, 1) if self.batch_first else emitted

    def closed_loop_loss(self, frames: Tensor, future: Tensor) -> Tensor:
        """Return the loss per frame of what :meth:`predict` emits, in the unit of :meth:`loss`.

        It is computed from the logits: rounded to bfloat16, a probability of 0.999 would be 1.

        Args:
            frames: (T, B, I).
            future: (steps, B, I) the frames that follow.

        Raises:
            ValueError: as :meth:`predict` and :meth:`loss` do.
        """
        future = time_first("future", future, self.batch_first)
        return frame_loss(self._predict(frames, future.shape[0]), future, self.frame_type)

    def loss(
        self,
        frames: Tensor,
        future: Tensor | None = None,
        *,
        sampling: float = 0.0,
        feedback_gradient: float = 0.0,
    ) -> VideoLoss:
        """Return the training loss per frame, averaged over batch and frames.

        Its unit for binary frames is nats (cross-entropy with the natural logarithm, summed over
        the values of a frame), for real frames half the squared error (summed likewise).

        Args:
            frames: (T, B, I).
            future: (steps, B, I) the frames that follow; needed by a model with a future decoder.
            sampling: probability of scheduled sampling, as in :meth:`forward`. Default: 0.
            feedback_gradient: as in :meth:`forward`. Default: 0.

        Raises:
            RuntimeError, ValueError: as :meth:`forward` does.
            ValueError: ``future`` is missing, binary frames with values outside [0, 1], or no
                frames to average over.
        """
        if self.future_decoder is None:
            future = None
        elif future is None:
            raise ValueError("future: expected the frames that follow, got None")
        options = {"sampling": sampling, "feedback_gradient": feedback_gradient}
        output = self(frames, future, **options)  # not forward: hooks are to see it
        reversed_frames = None
        if self.reconstruction_decoder is not None:
            reversed_frames = frames.flip(1 if self.batch_first else 0)
        return video_loss(output[:2], (reversed_frames, future), self.frame_type)

    @property
    def frames(self) -> FrameType:
        """The name of ``frame_type`` in version 0.1."""
        return self.frame_type

    def _predict(self, frames: Tensor, steps: int) -> Tensor:
        """Run the future decoder in closed loop; return its read-outs, time first."""
        if self.future_decoder is None:
            raise ValueError(f"predict: expected a future decoder, {type(self).__name__} has none")
        decoding.check_steps(steps)
        run = DecoderRun(self.future_decoder, None, steps)
        readout: Any = run_decoders([run], self.encode(frames), self.frame_type)[0]
        return readout
