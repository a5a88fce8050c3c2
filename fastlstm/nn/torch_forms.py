"""``LSTM`` as a module of torch and back: ``to_torch``, ``from_torch``, ``torch.jit.script``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from fastlstm.layers import dense_weight
from fastlstm.nn.options import WithOptions, option_arguments, refuse_options
from fastlstm.nn.scripting import TorchLSTM, arguments_of, scriptable

if TYPE_CHECKING:
    from typing_extensions import Self


class TorchForms(WithOptions, nn.RNNBase):
    """What ``LSTM`` has to become an ``nn.LSTM`` and to be made of one."""

    num_heads: int

    def to_torch(self) -> nn.LSTM:
        """Make an ``nn.LSTM`` with copies of these parameters; heads become zeros in weight_hh.

        Raises:
            ValueError: with peepholes or learnt initial states, which ``nn.LSTM`` lacks.
        """
        refuse_options(self, "nn.LSTM has no such option")
        for name in ("peephole", "learn_initial_state"):
            if getattr(self, name):
                raise ValueError(f"{name}: expected False, nn.LSTM has no such option; got True")
        module = TorchLSTM(**arguments_of(self))
        state, n = self.state_dict(), self.num_heads
        module.load_state_dict(
            {name: dense_weight(w, n) if "weight_hh" in name else w for name, w in state.items()}
        )
        return module.train(self.training)

    def __prepare_scriptable__(self) -> nn.Module:
        """The module that torch.jit.script compiles: an nn.LSTM that shares these parameters."""
        return scriptable(self, arguments_of(self))

    @classmethod
    def from_torch(
        cls, module: nn.LSTM, backend: str = "auto", checkpoint_every: int | str | None = None
    ) -> Self:
        """Make an LSTM with copies of the parameters of an ``nn.LSTM``.

        Args:
            module: an ``nn.LSTM`` or a fastlstm one.
            backend, checkpoint_every: as in the constructor.

        Raises:
            TypeError: the module is no LSTM.
            ValueError: there is no backend of that name.

        Example:
            >>> theirs = torch.nn.LSTM(3, 4)
            >>> ours, x = fastlstm.LSTM.from_torch(theirs), torch.randn(5, 2, 3)
            >>> torch.allclose(ours(x)[0], theirs(x)[0], atol=1e-6)
            True
        """
        if not isinstance(module, (TorchLSTM, TorchForms)):
            raise TypeError(f"module: expected an nn.LSTM, got {type(module).__name__}")
        options: dict[str, Any] = {"backend": backend, "checkpoint_every": checkpoint_every}
        if isinstance(module, TorchForms):
            for name in ("peephole", "learn_initial_state", "num_heads"):
                options[name] = getattr(module, name)
            options |= option_arguments(module)
        ours = cls(**arguments_of(module), **options)
        ours.load_state_dict(module.state_dict())
        return ours.train(module.training)
