"""A language model of bytes: what comes next in any file, read as 256 symbols."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlstm.nn.lstm import LSTM

_BYTES = 256
State = tuple[Tensor, Tensor]


class ByteLSTM(nn.Module):
    """Embedding, LSTM layers and a softmax over the next byte (Graves 2013, arXiv:1308.0850).

    Args:
        hidden_size: H, units in each layer.
        num_layers: L. Default: 1.
        embedding_size: numbers that stand for a byte. Default: 64.
        dropout: probability of zeroing an output of each layer, in training. Default: 0.
        peephole: see :class:`fastlstm.LSTM`. Default: True, as in the paper.
        options: others of :class:`fastlstm.LSTM`: backend, checkpoint_every, device, dtype.

    Raises:
        ValueError: a size below 1, and what :class:`fastlstm.LSTM` raises.
    """

    def __init__(
        self,
        hidden_size: int,
        num_layers: int = 1,
        embedding_size: int = 64,
        dropout: float = 0.0,
        peephole: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        if embedding_size < 1:
            raise ValueError(f"embedding_size: expected at least 1, got {embedding_size}")
        self.config: dict[str, Any] = {
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "embedding_size": embedding_size,
            "dropout": dropout,
            "peephole": peephole,
        }
        place = {name: options[name] for name in ("device", "dtype") if name in options}
        self.embedding = nn.Embedding(_BYTES, embedding_size, **place)
        between = dropout if num_layers > 1 else 0.0  # nn.LSTM warns of one that has no effect
        self.lstm = LSTM(
            embedding_size, hidden_size, num_layers, dropout=between, peephole=peephole, **options
        )
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Linear(hidden_size, _BYTES, **place)

    def forward(
        self, input: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Logits of the byte after each of `input`.

        Args:
            input: (T, B) integers in 0..255.
            state: (h, c), both (L, B, H), after the byte before. Default: zeros.
            reset: (T, B) booleans, true where a file begins.

        Returns:
            (T, B, 256), and the state after the last byte.

        Raises:
            ValueError: an input of another shape, or of no integers.
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
        """(T, B) nats of each byte of `target`, and the state after the last; else as `forward`."""
        logits, state = self(input, state, reset)
        nats = F.cross_entropy(
            logits.flatten(0, 1).float(), target.long().flatten(), reduction="none"
        )
        return nats.view(target.shape), state

    @torch.no_grad()
    def sample(self, prompt: bytes, length: int, temperature: float = 1.0, seed: int = 0) -> bytes:
        """`length` bytes that go on from `prompt`, drawn one after the other.

        Args:
            prompt: at least one byte.
            length: how many.
            temperature: divides the logits; near 0 the likeliest byte always wins.
            seed: of the draws.

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
        read = torch.tensor(list(prompt), device=device)[:, None]
        state, drawn = None, bytearray()
        for _ in range(length):
            logits, state = self(read, state)
            chances = (logits[-1, 0].double() / temperature).softmax(-1).cpu()
            byte = int(torch.multinomial(chances, 1, generator=generator))
            drawn.append(byte)
            read = torch.tensor([[byte]], device=device)
        return bytes(drawn)
