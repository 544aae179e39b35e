"""Steps of ours and of the peer in turn, after it was checked that they compute the same."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
import torch

from benchmarks import torch_decoder
from benchmarks.against_hooks import Differs
from benchmarks.goals import quartiles
from sysout_jax.errors import reason
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import param_axes, stack_blocks, unstack_blocks
from sysout_jax.planning.timing import Stepping, alternated
from sysout_jax.training.objective import batch_loss
from sysout_jax.training.optimizer import OptimizerConfig, make_optimizer
from sysout_jax.training.step import make_step, make_steps, parts_of, start

# How far apart ours and the peer may be, by the dtype of activations, as shares: the loss at step
# 0, the gradient of each parameter there, and the loss of each of the first steps. In bfloat16
# both are off by its rounding: on CPUs at most 0.008 (60k) to 0.015 (124m, 256 tokens) from one
# another in the gradient of any parameter, in which a sum of rows in bfloat16 would show as 0.05.
BOUNDS: Mapping[str, Mapping[str, float]] = {
    "float32": {"loss": 1e-4, "gradients": 1e-4, "steps": 1e-3},
    "bfloat16": {"loss": 1e-2, "gradients": 5e-2, "steps": 1e-2},
}
# A rate at which rounding does not grow much within the first steps, whose losses are compared.
OPTIMIZER = OptimizerConfig(lr=1e-4, schedule="constant", warmup=0)


def timed(
    forms: Mapping[str, ModelConfig],
    batch_size: int,
    steps: int,
    rounds: int,
    compiled: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Seconds per step of our forms of one model and of the peer, and how far apart they are.

    Args:
      forms: name -> config, of the same parameters.
      batch_size: sequences in a step, each of the first form's context and one more token.
      steps: in each timed call.
      rounds: how often each is called after that.
      compiled: the peer by `torch.compile` too; left out, with the reason, where that fails.
      say: told what was done.

    Raises:
      Differs: a form, or the compiled peer, does not compute what the peer does.
    """
    c = next(iter(forms.values()))
    transform = make_optimizer(OPTIMIZER, 1, param_axes(c))
    fresh = partial(jax.vmap(partial(start, c, transform)), jax.random.key(0)[None])
    params = jax.tree.map(lambda x: np.asarray(x[0]), fresh().params)
    shape = (steps, 1, batch_size, c.context + 1)
    batches = jax.random.randint(jax.random.key(1), shape, 0, c.vocab)
    theirs = torch_decoder.on_device(batches[:, 0])

    dtype = c.execution.dtype
    expected = torch_decoder.gradients(torch_decoder.filled(c, params), theirs[0], dtype)
    differences = {
        name: relative_error(form, params, expected, batches[0, 0]) for name, form in forms.items()
    }
    for name, each in differences.items():
        shares = ", ".join(f"{what} {share:.1e}" for what, share in each.items())
        say(f"{name}: from PyTorch's at step 0, as shares: {shares}")
    check(differences, dtype)

    parts = parts_of(c, batch_size, c.context)  # of a batch, for both sides
    calls = {"eager": _peer(c, params, theirs, parts)}
    for name, form in forms.items():
        step = make_steps(make_step(form, transform, parts))
        calls[name] = partial(_losses, Stepping(step, fresh(), batches))
    if compiled:
        calls["compile"] = _peer(c, params, theirs, parts, torch.compile)
    first, losses, left_out = first_calls(calls, say)
    for name, found in losses.items():
        away = float(np.max(np.abs(found / losses["eager"] - 1)))
        differences[name] = {**differences.get(name, {}), "steps": away}
    check(differences, dtype)

    calls = {name: calls[name] for name in losses}
    seconds = {name: s / steps for name, s in alternated(calls, rounds).items()}
    return {
        "parts": parts, "differences": differences, "first_call": first, "left_out": left_out,
        "seconds": seconds,
        "ratio": {n: quartiles(s / seconds["ours"]) for n, s in seconds.items() if n != "ours"},
    }  # fmt: skip


def _peer(
    c: ModelConfig,
    params: Mapping[str, Any],
    tokens: torch.Tensor,
    parts: int,
    compiler: Callable[[torch_decoder.Decoder], Any] = lambda model: model,
) -> Callable[[], np.ndarray]:
    model = compiler(torch_decoder.filled(c, params))
    step = torch_decoder.make_step(model, OPTIMIZER, c.execution.dtype, parts)
    return partial(torch_decoder.run, step, tokens)


def _losses(stepping: Stepping) -> np.ndarray:
    return np.asarray(stepping().loss[:, 0])


def first_calls(
    calls: Mapping[str, Callable[[], np.ndarray]], say: Callable[[str], None]
) -> tuple[dict[str, float], dict[str, np.ndarray], dict[str, str]]:
    """The call that compiles.

    Returns:
      name -> seconds; name -> losses [steps]; name -> why PyTorch could not compile it.
    """
    seconds: dict[str, float] = {}
    losses: dict[str, np.ndarray] = {}
    left_out: dict[str, str] = {}
    for name, call in calls.items():
        begun = time.perf_counter()
        try:
            losses[name] = call()
        except torch._dynamo.exc.TorchDynamoException as error:
            left_out[name] = reason(error)
            say(f"{name}: left out: {left_out[name]}")
        else:
            seconds[name] = time.perf_counter() - begun
            say(f"{name}: first call, which compiles: {seconds[name]:.1f} s")
    return seconds, losses, left_out


def relative_error(
    c: ModelConfig,
    params: Mapping[str, Any],
    expected: tuple[float, Mapping[str, np.ndarray]],
    batch: jax.Array,
) -> dict[str, float]:
    """How far our loss and gradients are from the peer's at the same parameters and batch.

    Args:
      c: the form; layers are scanned here, which compiles in a fraction of the time.
      params: of unrolled layers.
      expected: the peer's, of `torch_decoder.gradients`.
      batch: tokens [B, T+1].

    Returns:
      "loss": abs(ours - theirs) / theirs. "gradients": the largest norm(ours - theirs) /
      norm(theirs) of a parameter's.
    """
    scanned = c.with_execution(scan_layers=True)
    loss_fn = jax.value_and_grad(lambda p: batch_loss(scanned, p, batch)[0])
    loss, grads = jax.jit(loss_fn)(stack_blocks(params))
    ours = torch_decoder.renamed(c, unstack_blocks(grads))
    their_loss, theirs = expected
    return {
        "loss": abs(float(loss) / their_loss - 1),
        "gradients": max(_share(ours[name], theirs[name]) for name in theirs),
    }


def _share(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def check(differences: Mapping[str, Mapping[str, float]], dtype: str) -> None:
    """Refuse forms that are too far from the peer.

    Args:
      differences: form -> what is compared -> how far it is, as a share.
      dtype: of activations; it has its own bounds.

    Raises:
      Differs: one is.
    """
    for name, each in differences.items():
        for what, found in each.items():
            if not found <= BOUNDS[dtype][what]:
                raise Differs(
                    f"{name}: {what} are {found:.1e} from PyTorch's, in {dtype}; accepted: at most "
                    f"{BOUNDS[dtype][what]:.0e}"
                )
