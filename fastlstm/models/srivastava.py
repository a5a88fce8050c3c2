"""The models of Srivastava, Mansimov and Salakhutdinov (ICML 2015, arXiv:1502.04681)."""

from __future__ import annotations

import torch

from fastlstm.models.basis import Basis
from fastlstm.models.losses import FrameType
from fastlstm.models.video import VideoLSTM


class LSTMAutoencoder(VideoLSTM):
    """A video model that reconstructs: an LSTM encoder reads frames, an LSTM decoder emits them.

    The autoencoder of Srivastava, Mansimov and Salakhutdinov (ICML 2015, arXiv:1502.04681). The
    decoder starts from the encoder's final state, and emits the frames in reverse order.

    Args:
        input_size: I, number of values in a frame.
        hidden_size: H, number of units in each layer.
        num_layers: L, number of layers in the encoder and in the decoder. Default: 1.
        conditional: the decoder reads, from its second step on, the true frame before the one that
            it emits. Default: False, it reads no frames.
        frame_type: "binary" for values in [0, 1], trained on the cross-entropy in nats; "real" for
            any values, trained on half the squared error. Default: "binary".
        peephole: connections from the cell states to the gates. Default: True, as in the paper.
        batch_first: frames are (B, T, I), not (T, B, I), for T frames of B videos. Default: False.
        readout_bias: initial value of the read-out layer's bias; for binary frames the log-odds
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
        ValueError: a size below 1, an unknown backend, frame type or basis, or a ``basis_size`` or
            ``frame_shape`` that does not fit.

    Example:
        >>> import torch, fastlstm
        >>> model = fastlstm.LSTMAutoencoder(16, 8)
        >>> frames = torch.rand(5, 2, 16)
        >>> h, c = model.encode(frames)
        >>> h.shape
        torch.Size([1, 2, 8])
        >>> model.reconstruct(frames).flip(0).shape
        torch.Size([5, 2, 16])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        conditional: bool = False,
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
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            reconstruction=conditional,
            future="none",
            frame_type=frame_type,
            peephole=peephole,
            batch_first=batch_first,
            readout_bias=readout_bias,
            backend=backend,
            checkpoint_every=checkpoint_every,
            basis=basis,
            basis_size=basis_size,
            frame_shape=frame_shape,
            device=device,
            dtype=dtype,
            frames=frames,
        )
        self.config["conditional"] = conditional


class LSTMFuturePredictor(VideoLSTM):
    """A video model that predicts: an LSTM encoder reads frames, an LSTM decoder continues them.

    The future predictor of Srivastava, Mansimov and Salakhutdinov (ICML 2015, arXiv:1502.04681).
    The decoder starts from the encoder's final state, and emits the frames that follow.

    Args:
        input_size: I, number of values in a frame.
        hidden_size: H, number of units in each layer.
        num_layers: L, number of layers in the encoder and in the decoder. Default: 1.
        conditional: the decoder reads, from its second step on, the frame before the one that it
            emits: in training the true frame (teacher forcing), in ``predict`` its own output
            (closed loop). Default: False, it reads no frames.
        frame_type: "binary" for values in [0, 1], trained on the cross-entropy in nats; "real" for
            any values, trained on half the squared error. Default: "binary".
        peephole: connections from the cell states to the gates. Default: True, as in the paper.
        batch_first: frames are (B, T, I), not (T, B, I), for T frames of B videos. Default: False.
        readout_bias: initial value of the read-out layer's bias; for binary frames the log-odds
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
        ValueError: a size below 1, an unknown backend, frame type or basis, or a ``basis_size`` or
            ``frame_shape`` that does not fit.

    Example:
        >>> import torch, fastlstm
        >>> model = fastlstm.LSTMFuturePredictor(16, 8, conditional=True)
        >>> frames, future = torch.rand(5, 2, 16), torch.rand(3, 2, 16)
        >>> model.loss(frames, future).total.backward()
        >>> model.predict(frames, steps=7).shape
        torch.Size([7, 2, 16])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        conditional: bool = False,
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
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            reconstruction="none",
            future=conditional,
            frame_type=frame_type,
            peephole=peephole,
            batch_first=batch_first,
            readout_bias=readout_bias,
            backend=backend,
            checkpoint_every=checkpoint_every,
            basis=basis,
            basis_size=basis_size,
            frame_shape=frame_shape,
            device=device,
            dtype=dtype,
            frames=frames,
        )
        self.config["conditional"] = conditional


class CompositeLSTM(VideoLSTM):
    """A video model that reconstructs and predicts: an LSTM encoder, and two LSTM decoders.

    The composite model of Srivastava, Mansimov and Salakhutdinov (ICML 2015, arXiv:1502.04681).
    Both decoders start from the encoder's final state. The reconstruction decoder emits the frames
    in reverse order, the future decoder emits the frames that follow.

    A decoder is conditional if it reads, from its second step on, the frame before the one that it
    emits. In training that is the true frame (teacher forcing). In ``predict`` the future
    decoder reads its own output (closed loop); in ``reconstruct`` the reconstruction decoder
    still reads the true frame, which the model has seen.

    Args:
        input_size: I, number of values in a frame.
        hidden_size: H, number of units in each layer.
        num_layers: L, number of layers in the encoder and in each decoder. Default: 1.
        conditional_reconstruction: the reconstruction decoder is conditional. Default: False.
        conditional_future: the future decoder is conditional. Default: False.
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
        ValueError: a size below 1, an unknown backend, frame type or basis, or a ``basis_size`` or
            ``frame_shape`` that does not fit.

    Example:
        >>> import torch, fastlstm
        >>> model = fastlstm.CompositeLSTM(16, 8, conditional_future=True)
        >>> frames, future = torch.rand(5, 2, 16), torch.rand(3, 2, 16)
        >>> loss = model.loss(frames, future)  # nats per frame: total, reconstruction, future
        >>> loss.total.backward()
        >>> model.predict(frames, steps=7).shape
        torch.Size([7, 2, 16])
        >>> smooth = fastlstm.CompositeLSTM(16, 8, basis="dct")  # 2 x 2 coefficients of a frame
        >>> smooth.encoder.weight_ih_l0.shape, smooth.predict(frames, steps=7).shape
        (torch.Size([32, 4]), torch.Size([7, 2, 16]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        conditional_reconstruction: bool = False,
        conditional_future: bool = False,
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
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            reconstruction=conditional_reconstruction,
            future=conditional_future,
            frame_type=frame_type,
            peephole=peephole,
            batch_first=batch_first,
            readout_bias=readout_bias,
            backend=backend,
            checkpoint_every=checkpoint_every,
            basis=basis,
            basis_size=basis_size,
            frame_shape=frame_shape,
            device=device,
            dtype=dtype,
            frames=frames,
        )
        self.config["conditional_reconstruction"] = conditional_reconstruction
        self.config["conditional_future"] = conditional_future
