"""The demo model's forward pass, written lean for training on a CPU in bfloat16.

Same architecture and parameter names as ``transformers.LlamaForCausalLM`` (tied embeddings, no biases, RoPE theta
10000), so that `LeanLlama.state_dict` is what that class loads; a test holds the two to the same logits. Master
weights are float32; matrix products and the residual stream are bfloat16 (AMX on the CPUs that have it).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LeanLlama", "Shape"]


class Shape(NamedTuple):
    """The sizes of the model."""

    vocab_size: int = 4096
    hidden: int = 256
    layers: int = 5
    heads: int = 4
    intermediate: int = 704
    max_positions: int = 512
    eps: float = 1e-5
    theta: float = 10000.0


class _Layer(nn.Module):
    """One decoder layer's weights under Llama's names."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        h, m = shape.hidden, shape.intermediate
        self.input_layernorm = _Norm(h)
        self.post_attention_layernorm = _Norm(h)
        self.self_attn = nn.ModuleDict({f"{k}_proj": nn.Linear(h, h, bias=False) for k in "qkvo"})
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(h, m, bias=False),
                "up_proj": nn.Linear(h, m, bias=False),
                "down_proj": nn.Linear(m, h, bias=False),
            }
        )


class _Norm(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))


class LeanLlama(nn.Module):
    """Llama with fused projections; ``forward`` returns the loss."""

    def __init__(self, shape: Shape, *, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.shape, self.dtype = shape, dtype
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(shape.vocab_size, shape.hidden),
                "layers": nn.ModuleList(_Layer(shape) for _ in range(shape.layers)),
                "norm": _Norm(shape.hidden),
            }
        )
        for name, p in self.named_parameters():
            if p.dim() == 2:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))  # into the residual stream
                nn.init.normal_(p, std=0.02 / (2 * shape.layers) ** 0.5 if writes else 0.02)
        d = shape.hidden // shape.heads
        angles = torch.outer(
            torch.arange(shape.max_positions).float(), shape.theta ** (-torch.arange(0, d, 2).float() / d)
        )
        self.register_buffer("cos", angles.cos()[None, :, None, :].to(dtype), persistent=False)
        self.register_buffer("sin", angles.sin()[None, :, None, :].to(dtype), persistent=False)

    def weights(self) -> dict[str, Tensor]:
        """The state dict as `LlamaForCausalLM` loads it: what writes into the residual stream is centred."""
        state = {name: p.detach() for name, p in self.named_parameters()}
        for name in state:
            if name.endswith("embed_tokens.weight"):
                state[name] = _centre(state[name], 1)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                state[name] = _centre(state[name], 0)
        return state

    def hidden_states(self, ids: Tensor, embedding: Tensor) -> Tensor:
        """The normalised last hidden states [B, T, hidden] of ``ids`` [B, T] (right-padded)."""
        parts: Any = self.model
        x = functional.embedding(ids, embedding).to(self.dtype)
        t = ids.shape[1]
        mask = torch.full((t, t), float("-inf"), dtype=self.dtype).triu(1)
        for layer in parts["layers"]:
            x = x + self._attend(layer, self._norm(layer.input_layernorm, x), mask)
            x = x + self._feed(layer, self._norm(layer.post_attention_layernorm, x))
        return self._norm(parts["norm"], x)

    def embedding(self) -> Tensor:
        """The centred token embeddings [V, hidden], used at both ends."""
        weight: Any = self.model["embed_tokens"].weight
        return _centre(weight, 1)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """The mean next-token loss over ``targets`` [B, T], which are -100 where a position does not count."""
        embedding = self.embedding()
        hidden = self.hidden_states(ids, embedding).flatten(0, 1)
        keep = targets.flatten().ge(0).nonzero().squeeze(1)
        scores = functional.linear(hidden.index_select(0, keep), embedding.to(self.dtype))
        return functional.cross_entropy(scores.float(), targets.flatten()[keep])

    def _norm(self, norm: Any, x: Tensor) -> Tensor:
        # x has mean zero over its features (see `_centre`), so LayerNorm without bias is RMSNorm; its kernel is fused.
        return functional.layer_norm(x, (self.shape.hidden,), norm.weight.to(self.dtype), None, self.shape.eps)

    def _attend(self, layer: Any, x: Tensor, mask: Tensor) -> Tensor:
        b, t, h = x.shape
        heads = self.shape.heads
        d = h // heads
        a = layer.self_attn
        fused = torch.cat([a["q_proj"].weight * d**-0.5, a["k_proj"].weight, a["v_proj"].weight]).to(self.dtype)
        qk, v = torch.split(functional.linear(x, fused).view(b, t, 3 * heads, d), [2 * heads, heads], dim=2)
        turned: Any = _Rotate.apply(qk, self.cos[:, :t], self.sin[:, :t])  # type: ignore[index, no-untyped-call]
        q, k = turned.chunk(2, dim=2)
        q, k, v = (z.transpose(1, 2).reshape(b * heads, t, d) for z in (q, k, v))
        # Plain products: for rows this short they beat the flash kernel, whose backward has no bfloat16 matrix path.
        shares = torch.softmax(torch.baddbmm(mask, q, k.transpose(1, 2)), dim=-1)
        mixed = torch.bmm(shares, v).view(b, heads, t, d).transpose(1, 2).reshape(b, t, h)
        return functional.linear(mixed, _centre(a["o_proj"].weight, 0).to(self.dtype))

    def _feed(self, layer: Any, x: Tensor) -> Tensor:
        m = layer.mlp
        gate = functional.linear(x, m["gate_proj"].weight.to(self.dtype))
        up = functional.linear(x, m["up_proj"].weight.to(self.dtype))
        return functional.linear(functional.silu(gate) * up, _centre(m["down_proj"].weight, 0).to(self.dtype))


def _centre(weight: Tensor, dim: int) -> Tensor:
    """``weight`` with mean zero over the model's features, so that what it adds to the stream has mean zero."""
    return weight - weight.mean(dim, keepdim=True)


class _Rotate(torch.autograd.Function):
    """Rotary position embedding of x [B, T, heads, d], half against half; its gradient is the reverse rotation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, sin, -1.0), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    x1, x2 = x.chunk(2, dim=-1)
    o1, o2 = out.chunk(2, dim=-1)
    torch.mul(x1, cos, out=o1).addcmul_(x2, sin, value=-sign)
    torch.mul(x2, cos, out=o2).addcmul_(x1, sin, value=sign)
    return out
