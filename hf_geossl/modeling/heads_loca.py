"""What LOCA trains beside the trunk: the cluster head, and the cross-attention that looks at the reference."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from .configuration_loca import LOCAConfig
from .modeling_vit import ViTAttentionBase, ViTMLP


class LOCAPrototypes(nn.Linear):
    """Cluster centres, one a row, used at unit length; stored as they are, so that gradients see their lengths."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps unit vectors `(..., bottleneck)` to cosines `(..., prototypes)`, in float32."""
        with torch.autocast(features.device.type, enabled=False):
            weight = self.weight.float()
            return F.linear(features.float(), weight / (weight.norm(dim=1, keepdim=True) + 1e-10))


class LOCAClusterHead(nn.Module):
    """An MLP, and cosines of its output with the prototypes."""

    def __init__(self, config: LOCAConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.head_hidden_size)
        self.fc2 = nn.Linear(config.head_hidden_size, config.head_hidden_size)
        self.fc3 = nn.Linear(config.head_hidden_size, config.head_bottleneck_size)
        self.activation = ACT2FN[config.hidden_act]
        self.prototypes = LOCAPrototypes(config.head_bottleneck_size, config.num_prototypes, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Maps `(..., hidden_size)` to cosines `(..., prototypes)`, in float32."""
        hidden = self.activation(self.fc2(self.activation(self.fc1(tokens))))
        features = self.fc3(hidden).float()
        return self.prototypes(features / features.norm(dim=-1, keepdim=True))


class LOCACrossAttention(ViTAttentionBase):
    """Multi-head attention of query tokens to reference tokens; keys and values in one product."""

    def __init__(self, config: LOCAConfig) -> None:
        super().__init__(config)
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.key_value = nn.Linear(config.hidden_size, 2 * config.hidden_size, bias=config.qkv_bias)

    def forward(self, queries: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, tokens, hidden_size)` and `(batch, visible, hidden_size)` to the shape of the first."""
        (query,) = self.split_heads(self.query(queries), 1)
        key, value = self.split_heads(self.key_value(references), 2)
        return self.attend(query, key, value)[0]


class LOCACrossAttentionBlock(nn.Module):
    """A transformer block that looks at the reference: separate norms for queries and references, no stochastic depth."""

    def __init__(self, config: LOCAConfig) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm_key_value = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = LOCACrossAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ViTMLP(config)

    def forward(self, queries: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, tokens, hidden_size)` and `(batch, visible, hidden_size)` to the shape of the first."""
        queries = queries + self.attention(self.norm_query(queries), self.norm_key_value(references))
        return queries + self.mlp(self.norm2(queries))
