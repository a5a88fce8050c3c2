"""The language model of bytes: it predicts the next byte of a text or of any other file."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlstm.models.saving import SavedModel
from fastlstm.nn.lstm import LSTM

_BYTES = 256
State = tuple[Tensor, Tensor]
"""(h, c) of every layer, (L, B, P) and (L, B, H); P is H unless there is a projection."""


class ByteLSTM(SavedModel):
    """A language model of bytes: an embedding, LSTM layers, and a softmax over the next byte.

    A text prediction network like those of Graves, "Generating Sequences With Recurrent Neural
    Networks" (2013, arXiv:1308.0850), with an embedding in place of one-hot vectors.

    Args:
        hidden_size: H, number of units in each layer.
        num_layers: L, number of layers. Default: 1.
        embedding_size: size of the vector that stands for a byte. Default: 64.
        dropout: probability of zeroing an output of each layer, in training. Default: 0.
        peephole: connections from the cell states to the gates. Default: True, as in the paper.
        bias: LSTM layers have biases. Default: True.
        batch_first: input, reset, logits and losses are (B, T, ...) in place of (T, B, ...), T
            bytes of B texts. Default: False.
        proj_size: size of the LSTM layers' output, as in ``nn.LSTM``. Default: 0, no projection.
        learn_initial_state: the state before the first byte is a parameter. Default: False.
        backend: "auto" or the name of a backend; see :func:`fastlstm.explain`. Default: "auto".
        checkpoint_every: which steps' states training keeps; see :class:`fastlstm.LSTM`. Default:
            None, all of them.
        device: of the parameters. Default: torch's default device.
        dtype: of the parameters. Default: torch's default dtype.
        bidirectional: must be False; configurations written by version 0.1 contain it.

    Raises:
        TypeError, ValueError: as :class:`fastlstm.LSTM` does.
        ValueError: an ``embedding_size`` below 1, or ``bidirectional``.

    Example:
        >>> import torch, fastlstm
        >>> model = fastlstm.ByteLSTM(8)
        >>> text = torch.tensor(list(b"to be or not to be"))[:, None]  # (T, B) with B = 1
        >>> nats, state = model.losses(text[:-1], text[1:])
        >>> nats.mean().backward()
        >>> len(model.sample(b"to be ", 10))
        10
    """

    def __init__(
        self,
        hidden_size: int,
        num_layers: int = 1,
        embedding_size: int = 64,
        dropout: float = 0.0,
        peephole: bool = True,
        *,
        bias: bool = True,
        batch_first: bool = False,
        proj_size: int = 0,
        learn_initial_state: bool = False,
        backend: str = "auto",
        checkpoint_every: int | str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        if embedding_size < 1:
            raise ValueError(f"embedding_size: expected at least 1, got {embedding_size}")
        if bidirectional:
            raise ValueError(
                "bidirectional: expected False, a model of the next byte cannot read it, got True"
            )
        self.config: dict[str, Any] = {
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "embedding_size": embedding_size,
            "dropout": dropout,
            "peephole": peephole,
            "bias": bias,
            "batch_first": batch_first,
            "proj_size": proj_size,
            "learn_initial_state": learn_initial_state,
            "backend": backend,
            "checkpoint_every": checkpoint_every,
        }
        self.embedding = nn.Embedding(_BYTES, embedding_size, device=device, dtype=dtype)
        self.lstm = LSTM(
            embedding_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout if num_layers > 1 else 0.0,  # nn.LSTM warns of a dropout without effect
            proj_size=proj_size,
            device=device,
            dtype=dtype,
            peephole=peephole,
            learn_initial_state=learn_initial_state,
            checkpoint_every=checkpoint_every,
            backend=backend,
        )
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Linear(proj_size or hidden_size, _BYTES, device=device, dtype=dtype)

    def forward(
        self, input: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Compute the logits of the next byte, after each byte of the input.

        Args:
            input: (T, B) integers in 0..255.
            state: (h, c), (L, B, P) and (L, B, H), after the byte before; P is proj_size, or H
                without a projection. Default: zeros, or the learnt initial state.
            reset: (T, B) booleans, true where a file begins: the state of the byte before is
                dropped. Default: None, nowhere.

        Returns:
            Logits (T, B, 256), and the state after the last byte.

        Raises:
            RuntimeError, ValueError: a wrong size or dtype, as :class:`fastlstm.LSTM` raises.
            ValueError: an input of another rank, or not of integers.
        """
        if input.dim() != 2 or input.is_floating_point() or input.is_complex():
            raise ValueError(
                "input: expected bytes, (T, B) integers, got"
                f" {tuple(input.shape)} of {str(input.dtype).removeprefix('torch.')}"
            )
        y, state = self.lstm(self.embedding(input.int()), state, reset=reset)
        return self.readout(self.dropout(y)), state

    def losses(
        self,
        input: Tensor,
        target: Tensor,
        state: State | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Compute the cross-entropy of each byte of the target, in nats (natural logarithm).

        Args:
            input: (T, B) integers in 0..255.
            target: (T, B) integers, the byte that follows each of ``input``.
            state: as in :meth:`forward`.
            reset: as in :meth:`forward`.

        Returns:
            Losses (T, B) in float32, and the state after the last byte.

        Raises:
            RuntimeError, ValueError: as :meth:`forward` does.
        """
        logits, state = self(input, state, reset)
        nats = F.cross_entropy(
            logits.flatten(0, 1).float(), target.long().flatten(), reduction="none"
        )
        return nats.view(target.shape), state

    @torch.no_grad()
    def sample(self, prompt: bytes, length: int, temperature: float = 1.0, seed: int = 0) -> bytes:
        """Draw bytes one after the other, to continue a prompt.

        Args:
            prompt: at least one byte.
            length: number of bytes to draw.
            temperature: divides the logits; near 0 the most probable byte is always drawn.
                Default: 1.
            seed: of the random numbers; equal seeds give equal bytes. Default: 0.

        Returns:
            The bytes drawn, without the prompt.

        Raises:
            ValueError: an empty prompt, a negative length, or a temperature not above 0.
        """
        if not prompt:
            raise ValueError("prompt: expected at least 1 byte, got 0")
        if length < 0:
            raise ValueError(f"length: expected at least 0, got {length}")
        if not temperature > 0:
            raise ValueError(f"temperature: expected a number above 0, got {temperature}")
        generator = torch.Generator().manual_seed(seed)
        device = self.embedding.weight.device
        column = (1, -1) if self.lstm.batch_first else (-1, 1)
        read = torch.tensor(list(prompt), device=device).view(column)
        state, drawn = None, bytearray()
        for _ in range(length):
            logits, state = self(read, state)
            last = logits.flatten(0, 1)[-1].double()
            chances = (last / temperature).softmax(-1).cpu()
            byte = int(torch.multinomial(chances, 1, generator=generator))
            drawn.append(byte)
            read = torch.tensor([[byte]], device=device)
        return bytes(drawn)
