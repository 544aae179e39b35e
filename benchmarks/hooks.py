"""The peer of analysis and long context: hooks on `transformers`, and arithmetic on the host.

Activations and attention maps of every layer go to the host, where NumPy makes of them what the
published code of this field does. Full sorts of that code are partial ones here.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks import children

SITES = ("block_out", "down_in")
PROJECTIONS = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up",
               "mlp.down")  # fmt: skip
Layers = Mapping[str, list[np.ndarray]]  # name -> what was brought of each layer, [B, ...]
Limits = Mapping[str, float]


def analysis(
    checkpoint: str, rows: str, prompt: list[int], batch: int, limits: Limits, device: str
) -> Callable[[], Any]:
    """Load a LLaMA checkpoint; the work is existence, positions and relations.

    Args:
      checkpoint: its directory.
      rows: an .npy file of token ids [B, T].
      prompt: token ids, whose outliers are looked at by themselves.
      batch: sequences that are run together.
      limits: the thresholds of the detectors, by the names of `analysis.scan.Thresholds`.
      device: of PyTorch.
    """
    model, tokens = loaded(checkpoint, device), torch.from_numpy(np.load(rows).astype(np.int64))

    def work() -> dict[str, Any]:
        alone = brought(model, torch.tensor([prompt]))
        return {
            "existence": {name: largest(alone[name]) for name in SITES},
            "weights": weight_ratios(model),
            **averages([measured(brought(model, few), limits) for few in tokens.split(batch)]),
        }

    return work


def statistics(
    checkpoint: str, rows: str, limits: Limits, device: str, shares: int
) -> Callable[[], Any]:
    """Load a LLaMA checkpoint; the work is what one pass over one sequence shows.

    Args:
      checkpoint, limits, device: as of `analysis`.
      rows: an .npy file of token ids [1, T].
      shares: of a sequence, equally long, whose keys' attention is added up.
    """
    model, tokens = loaded(checkpoint, device), torch.from_numpy(np.load(rows).astype(np.int64))

    def work() -> dict[str, Any]:
        found = measured(brought(model, tokens), limits)
        received = found["received"][:, 0]  # [L, N, S]
        return {
            **{
                name: {
                    "top": found[f"{name} top"][:, 0].tolist(),
                    "median": found[f"{name} median"][:, 0].tolist(),
                    "feature": found[f"{name} feature_peak"][:, 0].argmax(axis=-1).tolist(),
                }
                for name in SITES
            },
            "received": received.reshape(*received.shape[:2], shares, -1).sum(axis=-1).tolist(),
        }

    return work


def first_result(checkpoint: str, prompt: str, rows: str, device: str) -> Callable[[], Any]:
    """The work is to load a LLaMA checkpoint and read a prompt and sequences, each twice.

    Args:
      checkpoint, device: as of `analysis`.
      prompt: a text.
      rows: an .npy file of token ids [B, T].
    """
    tokens = np.load(rows)
    _ = transformers.LlamaForCausalLM  # imported by now

    def load() -> tuple[Any, Any]:
        text = transformers.PreTrainedTokenizerFast(tokenizer_file=f"{checkpoint}/tokenizer.json")
        return loaded(checkpoint, device), text

    def run(model: tuple[Any, Any], given: str | np.ndarray) -> np.ndarray:
        ids = given
        if isinstance(given, str):
            ids = np.array([model[1](given, add_special_tokens=False)["input_ids"]])
        return ratios(model[0], torch.from_numpy(ids.astype(np.int64)))

    return lambda: children.stepped(load, run, {"prompt": prompt, "sequences": tokens})


def ratios(model: Any, tokens: torch.Tensor) -> np.ndarray:
    """max |h| / median |h| of every block's output and sequence, [L, B]."""
    found = []

    def look(_: Any, args: Any, out: Any) -> None:
        size = (out[0] if isinstance(out, tuple) else out).abs().flatten(1)
        found.append((size.amax(dim=1) / size.median(dim=1).values).cpu())

    handles = [block.register_forward_hook(look) for block in model.model.layers]
    try:
        with torch.no_grad():
            model(tokens.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return np.stack([each.numpy() for each in found])


def loaded(checkpoint: str, device: str) -> Any:
    """The model, with eager attention, all of it in memory."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # JAX takes that many too
    model = transformers.LlamaForCausalLM.from_pretrained(
        checkpoint, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():  # files are mapped: a weight is read when it is touched first
        sum(float(weight.sum()) for weight in model.parameters())
    return model.to(device).eval()


def brought(model: Any, tokens: torch.Tensor) -> Layers:
    """Activations [B, T, C] and attention [B, N, T, S] of every layer, on the host."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in SITES}
    handles = []
    for block in model.model.layers:
        handles.append(
            block.register_forward_hook(lambda _, args, out: found["block_out"].append(_host(out)))
        )
        handles.append(
            block.mlp.down_proj.register_forward_pre_hook(
                lambda _, args: found["down_in"].append(_host(args[0]))
            )
        )
    try:
        with torch.no_grad():
            out = model(tokens.to(model.device), output_attentions=True, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {**found, "attention": [_host(each) for each in out.attentions]}


def _host(x: Any) -> np.ndarray:
    return np.asarray((x[0] if isinstance(x, tuple) else x).float().cpu())


def largest(layers: list[np.ndarray]) -> list[int]:
    """Layer, token and feature of a prompt's largest value over its layer's mean magnitude."""
    sizes = [np.abs(h[0]) for h in layers]
    layer = int(np.argmax([size.max() / size.mean() for size in sizes]))
    return [layer, *map(int, np.unravel_index(np.argmax(sizes[layer]), sizes[layer].shape))]


def measured(layers: Layers, limits: Limits) -> dict[str, np.ndarray]:
    """What each sequence of a batch shows, arrays [L, B, ...]; "on ..." are sets, [B, items]."""
    found: dict[str, np.ndarray] = {}
    flags: dict[str, np.ndarray] = {}
    for name in SITES:
        rows = [[magnitudes(h) for h in layer] for layer in layers[name]]
        site = {key: np.array([[row[key] for row in line] for line in rows]) for key in rows[0][0]}
        found |= {f"{name} {key}": site[key] for key in ("top", "median", "feature_peak")}
        limit = (limits["activation_ratio"] * site["mean"])[..., None]
        flags[name] = site["token_peak"] > limit
        found[f"on {name} features"] = np.asarray((site["feature_peak"] > limit).any(axis=0))
        if name == "block_out":
            massive = np.maximum(limits["massive_value"], limits["massive_ratio"] * site["median"])
            flags["sun"] = site["token_peak"] > massive[..., None]
    received = np.array([layer.mean(axis=2) for layer in layers["attention"]])  # [L, B, N, S]
    found["score"] = received.mean(axis=2)
    seen = 1.0 / np.arange(1, received.shape[-1] + 1)
    uniform = np.cumsum(seen[::-1])[::-1] / len(seen)
    flags["attention"] = (found["score"] >= limits["attention_share"]) & (
        found["score"] > limits["attention_excess"] * uniform
    )
    found |= {f"on {name}": np.asarray(flag.any(axis=0)) for name, flag in flags.items()}
    found["on any"] = np.any([flag.any(axis=0) for flag in flags.values()], axis=0)
    return found | {"received": received}


def magnitudes(h: np.ndarray) -> dict[str, Any]:
    """Of activations [T, C] of one sequence."""
    size = np.abs(h)
    return {
        "mean": size.mean(),
        "median": np.median(size),
        "top": np.sort(np.partition(size.ravel(), -3)[-3:])[::-1],
        "token_peak": size.max(axis=1),
        "feature_peak": size.max(axis=0),
    }


def averages(batches: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """The averages over sequences of what `measured` returns, by layer, as JSON knows them."""
    found = {
        name: np.concatenate([each[name] for each in batches], axis=0 if name[:3] == "on " else 1)
        for name in batches[0]
    }
    order = np.sort(found["score"], axis=-1)
    outliers = found["on any"]
    some = outliers.any(axis=1)
    if not some.any():  # then of the first token, as of an attention sink
        outliers, some = np.arange(outliers.shape[1])[None] == 0, np.ones_like(some)
    heads = np.sum(found["received"] * outliers[None, :, None, :], axis=-1)[:, some].mean(axis=1)
    return {
        **{
            name: {
                "top": found[f"{name} top"].mean(axis=1).tolist(),
                "median": found[f"{name} median"].mean(axis=1).tolist(),
                "feature": found[f"{name} feature_peak"].mean(axis=1).argmax(axis=-1).tolist(),
            }
            for name in SITES
        },
        "attention": {
            "top1": order[..., -1].mean(axis=1).tolist(),
            "top2": order[..., -2].mean(axis=1).tolist(),
            "median": np.median(order, axis=-1).mean(axis=1).tolist(),
            "heads": heads.tolist(),
        },
        "flagged": {
            name: int(found[f"on {name}"].sum()) for name in (*SITES, "sun", "attention")
        },
        "relations": [
            coincidence(found["on down_in"], found["on block_out"]),
            coincidence(found["on block_out"], found["on attention"]),
        ],
    }  # fmt: skip


def coincidence(given: np.ndarray, found: np.ndarray) -> dict[str, float | None]:
    """Precision and recall of sets [B, items], averaged over sequences in which they are."""
    both = (given & found).sum(axis=1)

    def share(of: np.ndarray) -> float | None:
        sizes = of.sum(axis=1)
        return float(np.mean(both[sizes > 0] / sizes[sizes > 0])) if sizes.any() else None

    return {"precision": share(given), "recall": share(found)}


def weight_ratios(model: Any) -> list[list[float]]:
    """max |W| / mean |W| of every projection, by layer."""
    with torch.no_grad():
        return [
            [
                float(size.max() / size.mean())
                for name in PROJECTIONS
                for size in (block.get_submodule(f"{name}_proj").weight.abs(),)
            ]
            for block in model.model.layers
        ]
