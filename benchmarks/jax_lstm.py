"""An nn.LSTM in JAX: jax.lax.scan over the steps, compiled by XLA."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor, nn

from .contests import Results


def forward(weights: list[list[dict[str, Any]]], x: Any) -> Any:
    """Map x (T, B, I) to y (T, B, D * H); ``weights`` has a list for each layer."""
    for layer in weights:
        x = jnp.concatenate([_direction(w, x, k == 1) for k, w in enumerate(layer)], axis=2)
    return x


def _direction(w: dict[str, Any], x: Any, reverse: bool) -> Any:
    igates = x @ w["weight_ih"].T + (w["bias_ih"] + w["bias_hh"])

    def step(state: Any, gates: Any) -> Any:
        h, c = state
        i, f, g, o = jnp.split(gates + h @ w["weight_hh"].T, 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((x.shape[1], w["weight_hh"].shape[1]), x.dtype)
    return jax.lax.scan(step, (zeros, zeros), igates, reverse=reverse)[1]


class Scan:
    """A compiled function that computes y, and in training all gradients."""

    def __init__(self, lstm: nn.LSTM, x: Tensor, dy: Tensor, train: bool) -> None:
        suffixes = ("", "_reverse")[: 2 if lstm.bidirectional else 1]
        self._names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        arrays = {n: jnp.asarray(p.detach().numpy()) for n, p in lstm.named_parameters()}
        self._weights = [
            [{n: arrays[f"{n}_l{layer}{s}"] for n in self._names} for s in suffixes]
            for layer in range(lstm.num_layers)
        ]
        self._x, dy = jnp.asarray(x.detach().numpy()), jnp.asarray(dy.numpy())
        self._train = train

        def both(weights: Any, x: Any) -> Any:
            y, back = jax.vjp(forward, weights, x)
            return y, *back(dy)

        self._call = jax.jit(both if train else forward)

    def __call__(self) -> Any:
        """Call the function and wait for its results."""
        return jax.block_until_ready(self._call(self._weights, self._x))

    def results(self) -> Results:
        """Return the results in the order of those of ``lstm.run``."""
        found = self()
        if not self._train:
            return [torch.from_numpy(np.array(found))]
        y, weights, dx = found
        parameters = [w[n] for layer in weights for w in layer for n in self._names]
        return [torch.from_numpy(np.array(result)) for result in (y, dx, *parameters)]
