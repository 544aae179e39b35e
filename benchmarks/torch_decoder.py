"""The peer: a decoder as people write it in PyTorch, in the styles of GPT-2 and LLaMA.

One projection for queries, keys and values, `scaled_dot_product_attention`, the fused AdamW, mixed
precision by `torch.autocast`: what a nanoGPT-style trainer uses.
"""

import os
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, cast

import jax
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.training.optimizer import OptimizerConfig


class Attention(nn.Module):
    """Causal attention."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = c.heads, c.sizes["H"]
        self.qkv = nn.Linear(c.width, 3 * c.width, bias=c.bias)
        self.out = nn.Linear(c.width, c.width, bias=c.bias)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, self.head_dim).transpose(1, 2)
            for part in self.qkv(x).split(width, dim=2)
        )
        if turn is not None:
            q, k = _turned(q, *turn), _turned(k, *turn)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return cast(Tensor, self.out(mixed.transpose(1, 2).reshape(batch, length, width)))


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Mlp(nn.Module):
    """GELU, or SwiGLU where the config gates."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(c.width, c.sizes["F"], bias=c.bias)
        self.gate = nn.Linear(c.width, c.sizes["F"], bias=c.bias) if c.mlp == "swiglu" else None
        self.down = nn.Linear(c.sizes["F"], c.width, bias=c.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return cast(Tensor, self.down(functional.gelu(self.up(x), approximate="tanh")))
        return cast(Tensor, self.down(functional.silu(self.gate(x)) * self.up(x)))


def _norm(c: ModelConfig) -> nn.Module:
    return (nn.LayerNorm if c.norm == "layer" else nn.RMSNorm)(c.width, eps=c.norm_eps)


class Block(nn.Module):
    """Attention and MLP with a norm before each."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.attn_norm, self.attn = _norm(c), Attention(c)
        self.mlp_norm, self.mlp = _norm(c), Mlp(c)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        x = x + self.attn(self.attn_norm(x), turn)
        return cast(Tensor, x + self.mlp(self.mlp_norm(x)))


class Decoder(nn.Module):
    """Token ids to the mean cross-entropy of the next token."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(c.vocab, c.width)
        self.positions = nn.Embedding(c.context, c.width) if c.position == "learned" else None
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.final_norm = _norm(c)
        self.head = nn.Linear(c.width, c.vocab, bias=False)
        if c.tied:
            self.head.weight = self.embed.weight
        half = c.sizes["H"] // 2
        angle = torch.arange(c.context)[:, None] * c.rope.theta ** (-torch.arange(half) / half)
        angle = torch.cat((angle, angle), dim=-1)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, tokens: Tensor) -> Tensor:
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        x, length, turn = self.embed(inputs), inputs.shape[1], None
        if self.positions is None:
            turn = (cast(Tensor, self.cos)[:length], cast(Tensor, self.sin)[:length])
        else:
            x = x + self.positions.weight[:length]
        for block in self.blocks:
            x = block(x, turn)
        logits = self.head(self.final_norm(x))
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def device() -> str:
    """Where the peer computes: where JAX does.

    Raises:
      InputError: that is a GPU, and this PyTorch has none.
    """
    if jax.default_backend() != "gpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise InputError(
            f"PyTorch {torch.__version__} sees no GPU, but JAX does",
            accepted="a PyTorch for CUDA, or JAX_PLATFORMS=cpu",
        )
    return "cuda"


def prepare() -> dict[str, Any]:
    """Set PyTorch up as its trainers do; what a record says of it."""
    where = device()
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # JAX takes that many too
    if where == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, which JAX takes there by default
    return {
        "torch": torch.__version__,
        "device": where,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
    }


def filled(c: ModelConfig, params: Mapping[str, Any]) -> Decoder:
    """The peer with our parameters, on its device."""
    model = Decoder(c).to(device())
    with torch.no_grad():
        for name, value in renamed(c, params).items():
            model.get_parameter(name).copy_(torch.from_numpy(np.array(value)))
    return model


def renamed(c: ModelConfig, tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A tree of our parameters, or of their gradients, under the peer's names and in its shapes."""
    found = {"embed.weight": tree["embed"]}
    if c.position == "learned":
        found["positions.weight"] = tree["positions"]
    if not c.tied:
        found["head.weight"] = np.asarray(tree["head"]).T

    def put(name: str, part: Mapping[str, Any], *sources: str, inputs: int = 1) -> None:
        rows = prod(part[sources[0]].shape[:inputs])
        joined = [np.asarray(part[each]).reshape(rows, -1) for each in sources]
        found[f"{name}.weight"] = np.concatenate(joined, axis=1).T
        if c.bias:
            biases = [np.asarray(part[f"{each}_bias"]).reshape(-1) for each in sources]
            found[f"{name}.bias"] = np.concatenate(biases)

    def norm(name: str, part: Mapping[str, Any]) -> None:
        found[f"{name}.weight"] = part["scale"]
        if c.bias and c.norm == "layer":
            found[f"{name}.bias"] = part["bias"]

    for layer in range(c.layers):
        block, name = tree[f"block_{layer}"], f"blocks.{layer}"
        norm(f"{name}.attn_norm", block["attn_norm"])
        norm(f"{name}.mlp_norm", block["mlp_norm"])
        put(f"{name}.attn.qkv", block["attn"], "query", "key", "value")
        put(f"{name}.attn.out", block["attn"], "out", inputs=2)
        for each in ("up", "down", *(["gate"] if c.mlp == "swiglu" else [])):
            put(f"{name}.mlp.{each}", block["mlp"], each)
    norm("final_norm", tree["final_norm"])
    return {name: np.asarray(value) for name, value in found.items()}


def on_device(tokens: Any) -> Tensor:
    """Token ids for the peer."""
    return torch.from_numpy(np.array(tokens, np.int64)).to(device())


def mean_loss(model: nn.Module, tokens: Tensor, dtype: str) -> Tensor:
    """The loss with activations in `dtype`: as there, parameters stay float32."""
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        return cast(Tensor, model(tokens))


def gradients(model: Decoder, tokens: Tensor, dtype: str) -> tuple[float, dict[str, np.ndarray]]:
    """The loss of tokens [B, T+1], and its gradient by the names of parameters."""
    loss = mean_loss(model, tokens, dtype)
    loss.backward()
    found = {name: cast(Tensor, p.grad).cpu().numpy() for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return float(loss.detach()), found


def make_step(
    model: nn.Module, config: OptimizerConfig, dtype: str = "float32", parts: int = 1
) -> Callable[[Tensor], Tensor]:
    """A training step: tokens [B, T+1] -> loss; the batch in equal parts, gradients averaged."""
    groups = [
        {
            "params": [p for p in model.parameters() if (p.dim() == 2) == matrix],
            "weight_decay": config.decay if matrix else 0.0,
        }
        for matrix in (True, False)
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )

    def step(tokens: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=tokens.device)
        for part in tokens.chunk(parts):
            share = mean_loss(model, part, dtype) / parts
            share.backward()
            loss += share.detach()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        return loss

    return step


def run(step: Callable[[Tensor], Tensor], batches: Tensor) -> np.ndarray:
    """The loss of one step for each of the batches [steps, B, T+1], when all of it is done."""
    losses = [step(batch) for batch in batches]
    return torch.stack(losses).cpu().numpy()  # a GPU's queue is waited for
