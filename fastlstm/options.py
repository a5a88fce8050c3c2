"""Options of an LSTM beyond its equations: as a module has them, and as the data of one call.

A module has probabilities. For each call they are drawn into masks (``fastlstm.masks``), which
enter the kernels as data, so that every backend computes the same from the same masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

EPSILON = 1e-5
"""What a layer norm adds to the variance, as ``torch.nn.LayerNorm`` does."""


class LayerNorm(NamedTuple):
    """The parameters of the layer norms of one layer in one direction (Ba, Kiros, Hinton, 2016).

    The biases of the norms of W_ih x and W_hh h are ``bias_ih`` and ``bias_hh``.

    Example:
        >>> norm = fastlstm.LayerNorm(torch.ones(16), torch.ones(16), torch.zeros(2, 4))
        >>> norm.norm_c[0] = 1  # the gain; the bias stays 0
        >>> lstm, options = fastlstm.LSTM(3, 4), fastlstm.LSTMOptions(norms=[norm])
        >>> y, _ = fastlstm.lstm(torch.randn(5, 2, 3), None, lstm.weights(), options=options)
        >>> y.shape
        torch.Size([5, 2, 4])
    """

    norm_ih: Tensor
    """(4H) gain of the norm of W_ih x"""
    norm_hh: Tensor
    """(4H) gain of the norm of W_hh h"""
    norm_c: Tensor
    """(2, H) gain and bias of the norm of c"""


class LSTMOptions(NamedTuple):
    """Regularisation and limits of an LSTM; see docs/options.md.

    Attributes:
        recurrent_dropout: probability with which a unit of h is dropped in W_hh h, by one mask for
            each sequence (Gal and Ghahramani, 2016). Default: 0.
        weight_dropout: probability with which a number of W_hh is dropped, by one mask for each
            call (DropConnect; Merity, Keskar and Socher, 2018). Default: 0.
        zoneout: probabilities (p_h, p_c) with which a unit of h and of c keeps its value of the
            step before (Krueger et al., 2017). Default: (0, 0).
        variational_dropout: probability with which an output of any layer but the last is dropped,
            by one mask for each sequence. Default: 0.
        cell_clip: the largest magnitude of c, which is clipped in every step; None for no limit.
            Default: None.
        norms: a :class:`LayerNorm` for each layer and direction, in the order of the weights.
            Default: None, no layer norm.

    Example:
        >>> lstm, options = fastlstm.LSTM(3, 4), fastlstm.LSTMOptions(zoneout=(0.1, 0.2))
        >>> y, _ = fastlstm.lstm(torch.randn(5, 2, 3), None, lstm.weights(), options=options)
        >>> y.shape
        torch.Size([5, 2, 4])
    """

    recurrent_dropout: float = 0.0
    weight_dropout: float = 0.0
    zoneout: tuple[float, float] = (0.0, 0.0)
    variational_dropout: float = 0.0
    cell_clip: float | None = None
    norms: Sequence[LayerNorm] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The options that are on, by the names that a module has for them."""
        pairs = zip(self._fields, self, PLAIN[:-1], strict=False)
        on = [name for name, value, off in pairs if value != off]
        return tuple(on) if self.norms is None else (*on, "layer_norm")

    def in_mode(self, training: bool) -> LSTMOptions:
        """The options of that mode: in evaluation nothing is dropped."""
        if training:
            return self
        rest = self._replace(recurrent_dropout=0.0, weight_dropout=0.0, variational_dropout=0.0)
        return PLAIN if rest == PLAIN else rest


PLAIN = LSTMOptions()


class CellOptions(NamedTuple):
    """What the cells of a call compute beyond the equations of an LSTM; see the reference.

    Masks have no gradient. ``keep_h`` and ``keep_c`` may have any stride but in the last dimension.
    """

    hidden_mask: Tensor | None = None
    """(G, B, P) a factor of h' in W_hh h'; None: 1"""
    keep_h: Tensor | None = None
    """(T, B, G, P), packed (N, G, P): the share of h' in h; None: 0"""
    keep_c: Tensor | None = None
    """(T, B, G, H), packed (N, G, H): the share of c' in c; None: 0"""
    norm_hh: Tensor | None = None
    """(G, 4H) the gain of the layer norm of W_hh h'; None: it is not normalised"""
    norm_c: Tensor | None = None
    """(G, 2, H) gain and bias of the layer norm of c in h = o * tanh(c); None: none. Only beside
    norm_hh"""
    cell_clip: float = 0.0
    """the largest magnitude of c; 0: there is no limit"""

    @property
    def names(self) -> tuple[str, ...]:
        """The options that are on, by the names that a module has for them."""
        there = {
            "recurrent_dropout": self.hidden_mask is not None,
            "zoneout": self.keep_h is not None or self.keep_c is not None,
            "cell_clip": self.cell_clip > 0,
            "layer_norm": self.norm_hh is not None,
        }
        return tuple(name for name, is_on in there.items() if is_on)

    @property
    def gains(self) -> list[Tensor]:
        """The tensors that have gradients."""
        return [tensor for tensor in (self.norm_hh, self.norm_c) if tensor is not None]

    def map(self, change: Callable[[str, Tensor], Tensor]) -> CellOptions:
        """The same options with ``change(name, tensor)`` in the place of every tensor."""
        items: list[Any] = [
            change(name, value) if isinstance(value, Tensor) else value
            for name, value in zip(self._fields, self, strict=True)
        ]
        return CellOptions(*items)

    def at(self, t: int, group: int) -> CellOptions:
        """The options of one step of one group."""
        return self.map(lambda name, x: x[t, :, group] if name in STEPWISE else x[group])

    def of(self, groups: slice) -> CellOptions:
        """The options of some of the groups."""
        return self.map(lambda name, t: t[..., groups, :] if name in STEPWISE else t[groups])

    def within(self, rows: slice, B: int) -> CellOptions:
        """The options of some steps, which are those rows of the sequences, and of B rows."""
        return self.map(
            lambda name, t: (
                t[rows] if name in STEPWISE else t[:, :B] if name == "hidden_mask" else t
            )
        )


STEPWISE = ("keep_h", "keep_c")
"""The options that have a value for each step."""


PLAIN_CELLS = CellOptions()
OUTSIDE_OF_CELLS = ("weight_dropout", "variational_dropout")
"""The options of a module that only change weights and inputs."""
