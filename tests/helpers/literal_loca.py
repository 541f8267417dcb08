"""LOCA's cross-attention as section 3.4 writes it, token by token."""

import math

import torch

from hf_geossl import LOCAConfig
from tests.helpers.methods import literal_mlp

State = dict[str, torch.Tensor]


def literal_norm(config: LOCAConfig, state: State, x: torch.Tensor, name: str) -> torch.Tensor:
    centred = x - x.mean()
    return (
        centred / (centred.pow(2).mean() + config.layer_norm_eps).sqrt() * state[f"{name}.weight"]
        + state[f"{name}.bias"]
    )


def literal_cross_attention(
    config: LOCAConfig, state: State, query: torch.Tensor, references: torch.Tensor
) -> torch.Tensor:
    """Section 3.4 for one query token `(D,)` and reference tokens `(visible, D)`; names as in `cross_attention`."""

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return state[f"{name}.weight"] @ x + state[f"{name}.bias"]

    width = config.hidden_size
    size = width // config.num_attention_heads
    q = linear(literal_norm(config, state, query, "norm_query"), "attention.query")
    both = [linear(literal_norm(config, state, one, "norm_key_value"), "attention.key_value") for one in references]
    mixed = []
    for start in range(0, width, size):
        part = slice(start, start + size)
        weights = torch.stack([(q[part] @ one[:width][part] / math.sqrt(size)).exp() for one in both])
        weights = weights / weights.sum()
        mixed.append(sum(weight * one[width:][part] for weight, one in zip(weights, both, strict=True)))
    x = query + linear(torch.cat(mixed), "attention.projection")
    return x + literal_mlp(config, literal_norm(config, state, x, "norm2"), linear, "mlp.fc1", "mlp.fc2")
