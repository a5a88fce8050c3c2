"""The models of Srivastava, Mansimov and Salakhutdinov (ICML 2015) by their names."""

from __future__ import annotations

from typing import Any

from fastlstm.models.video import VideoLSTM


class LSTMAutoencoder(VideoLSTM):
    """Encoder and reconstructing decoder; other arguments as in :class:`VideoLSTM`.

    Args:
        conditional: the decoder reads the frame before. Default: False.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        conditional: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            reconstruction=conditional,
            future=None,
            **options,
        )
        self.config["conditional"] = conditional


class LSTMFuturePredictor(VideoLSTM):
    """Encoder and predicting decoder; other arguments as in :class:`VideoLSTM`.

    Args:
        conditional: the decoder reads the frame before. Default: False.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        conditional: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            reconstruction=None,
            future=conditional,
            **options,
        )
        self.config["conditional"] = conditional


class CompositeLSTM(VideoLSTM):
    """Encoder, reconstructing and predicting decoder; other arguments as in :class:`VideoLSTM`.

    Args:
        conditional_reconstruction: the reconstructing decoder reads the frame before.
            Default: False.
        conditional_future: the predicting decoder does. Default: False.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        conditional_reconstruction: bool = False,
        conditional_future: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            reconstruction=conditional_reconstruction,
            future=conditional_future,
            **options,
        )
        self.config["conditional_reconstruction"] = conditional_reconstruction
        self.config["conditional_future"] = conditional_future
