"""A Llama-style language model (the published one of 260,032 parameters), in plain modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Llama", "sample"]

WIDTH, LAYERS, HEADS, GROUPS, HEAD = 64, 5, 8, 4, 8
HIDDEN, VOCABULARY = 172, 512
BEGIN = 1


class _Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


def _rotate(x: Tensor) -> Tensor:
    """Rotary positions over (batch, length, heads, HEAD), adjacent pairs."""
    rates = 10000 ** (torch.arange(0, HEAD, 2, device=x.device) / HEAD)
    angles = (torch.arange(x.shape[1], device=x.device)[:, None] / rates)[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = (
        even * angles.cos() - odd * angles.sin(),
        even * angles.sin() + odd * angles.cos(),
    )
    return torch.stack(turned, -1).flatten(-2)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wq = nn.Linear(WIDTH, HEADS * HEAD, bias=False)
        self.wk = nn.Linear(WIDTH, GROUPS * HEAD, bias=False)
        self.wv = nn.Linear(WIDTH, GROUPS * HEAD, bias=False)
        self.wo = nn.Linear(HEADS * HEAD, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length = x.shape[:2]
        q = _rotate(self.wq(x).view(batch, length, HEADS, HEAD))
        k = _rotate(self.wk(x).view(batch, length, GROUPS, HEAD))
        v = self.wv(x).view(batch, length, GROUPS, HEAD)
        k, v = (z.repeat_interleave(HEADS // GROUPS, 2).transpose(1, 2) for z in (k, v))
        out = functional.scaled_dot_product_attention(q.transpose(1, 2), k, v, is_causal=True)
        return self.wo(out.transpose(1, 2).reshape(batch, length, -1))


class _FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.w2 = nn.Linear(HIDDEN, WIDTH, bias=False)
        self.w3 = nn.Linear(WIDTH, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = _Norm(), _Norm()
        self.attention, self.feed_forward = _Attention(), _FeedForward()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class Llama(nn.Module):
    """Token ids (batch, length) to logits (batch, length, 512); the output matrix is tied."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(_Layer() for _ in range(LAYERS))
        self.norm = _Norm()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x)
        return functional.linear(self.norm(x), self.tok_embeddings.weight)


@torch.no_grad()
def sample(model: nn.Module, sequences: int, length: int, seed: int) -> Tensor:
    """Return (sequences, length) tokens that ``model`` writes, at temperature 1."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.full((sequences, 1), BEGIN)
    while tokens.shape[1] < length:
        law = model(tokens)[:, -1].softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(law, 1, generator=generator)], 1)
    return tokens
