"""The fused kernel against the plain path: the same outputs and gradients, for every variant."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.core import flash
from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.flash import DTYPES, Past, flash_attention
from sysout_jax.core.layers import causal_mask
from sysout_jax.core.primitives import Heads
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig

B, T, N, K, H, D = 2, 11, 6, 3, 8, 13
SIZES = {"D": D, "N": N, "K": K, "H": H}
MAKE_WEIGHTS = {  # variants that need the weights, so that no fused kernel can stand for them
    "context_bias", "sigmoid", "clipped_softmax", "softpick", "relu", "elu_plus_one",
    "plain_sigmoid", "normalised_sigmoid", "normalised_elu_plus_one",
    "stick_breaking", "forgetting", "elastic_softmax", "entmax",
}  # fmt: skip


def draw(key, dtype, length=T):
    """Inputs and a cotangent, scaled so that rows of weights are far from even and from one-hot."""
    keys = jax.random.split(key, 5)
    shapes = [(B, length, *each) for each in ((N, H), (K, H), (K, H), (D,), (N, H))]
    return [1.5 * jax.random.normal(k, shape, dtype) for k, shape in zip(keys, shapes, strict=True)]


def parameters(name):
    """Every parameter away from its initial value, extra keys strong enough to take mass."""
    return {
        key: jax.random.normal(
            jax.random.key(n), [SIZES[a] for a in param.axes.replace("->", " ").split()]
        )
        for n, (key, param) in enumerate(VARIANTS[name].params.items())
    }


def both(name, dtype, past):
    """((output, gradients), weights or None) of the plain and of the fused path."""
    q, k, v, x, cotangent = draw(jax.random.key(0), dtype)
    window = past.window if past.windowed is None or past.windowed else None
    mask = causal_mask(jnp.arange(T), jnp.arange(T), window)

    def run(fused):
        def out(arrays, params):
            q, k, v, x = arrays
            mixed = VARIANTS[name](Heads(q, k, v, x, x, mask, fused=fused), params)
            return mixed.out, mixed.weights

        value, back, weights = jax.vjp(out, (q, k, v, x), parameters(name), has_aux=True)
        return (value, back(cotangent.astype(value.dtype))), weights

    return run(None), run(past)


def relative_error(plain, fused):
    """The largest difference of any array, as a share of its norm where that is above 1."""

    def share(a, b):
        a, b = np.float64(a), np.float64(b)
        return np.linalg.norm(a - b) / max(np.linalg.norm(a), 1.0)

    return max(jax.tree.leaves(jax.tree.map(share, plain, fused)))


def fused_kernel(dtype):
    """Whether this device has the kernel in that dtype."""
    return dtype.name in DTYPES or jax.default_backend() != "gpu"


WINDOWS = [
    ("bfloat16", 0.02, Past(3)),
    ("float32", 1e-5, Past(3, True)),
    ("float32", 1e-5, Past(3, False)),
]


@pytest.mark.parametrize(
    ("name", "dtype", "bound", "past"),
    [
        *((name, "float32", 1e-5, flash.ALL) for name in VARIANTS),
        *((name, "bfloat16", 0.02, flash.ALL) for name in VARIANTS),
        # In all layers, in one that has the window, and in one that has not.
        *((name, *of) for name in ("softmax", "sink_logit", "differential") for of in WINDOWS),
    ],
)
def test_outputs_and_gradients_are_those_of_the_plain_path(name, dtype, bound, past):
    dtype = jnp.dtype(dtype)
    if not flash.takes(H, VARIANTS[name].extra_key, past.window):
        pytest.skip("no kernel for an extra key beside a window on this device")
    if not fused_kernel(dtype):
        pytest.skip(f"no kernel in {dtype} on this device")
    (plain, weights), (fused, none) = both(name, dtype, past)
    assert weights is not None
    assert (none is None) == (name not in MAKE_WEIGHTS)
    assert relative_error(plain, fused) < bound  # of bfloat16 a few roundings of 2^-9


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in MAKE_WEIGHTS])
@pytest.mark.parametrize("width", [120, 128, 136])
def test_the_kernel_is_given_no_more_channels_than_it_takes(name, width, monkeypatch):
    """What reaches the kernel is measured; before Hopper cuDNN's has 128 channels at most."""
    given = []

    def kernel(q, k, v, scale, past):
        given.extend(x.shape[-1] for x in (q, k, v))
        return jnp.zeros((*q.shape[:-1], v.shape[-1]), v.dtype)

    monkeypatch.setattr(flash, "_plain", kernel)
    config = ModelConfig(
        vocab=7, layers=1, width=13, heads=3, head_dim=width, mlp_width=5, variant=name, context=5,
    )  # fmt: skip
    heads = [jnp.zeros((2, 5, 3, width), jnp.bfloat16)] * 3
    x = jnp.zeros((2, 5, 13), jnp.bfloat16)
    sizes = {"D": 13, "N": 3, "K": 3, "H": width}
    params = {
        key: jnp.zeros([sizes[a] for a in param.axes.replace("->", " ").split()])
        for key, param in VARIANTS[name].params.items()
    }
    VARIANTS[name](Heads(*heads, x, x, jnp.tri(5, dtype=bool), fused=flash.ALL), params)
    assert given
    if width > 128:  # for no variant
        with pytest.raises(InputError, match="at most 128"):
            config.with_execution(dtype="bfloat16", flash=True)
    else:
        flashed = config.with_execution(dtype="bfloat16", flash=True)
        assert flashed.fused == (max(given) <= 128)


def test_an_extra_logit_is_not_rounded_to_the_dtype_of_queries():
    """Near 32 bfloat16 steps by 0.25, so 32.1 would become 32."""
    twos = jnp.full((B, T, N, H), 2.0, jnp.bfloat16)  # q.k = 32
    _, mass = flash_attention(twos, twos, twos, jnp.full((B, N, T), 32.1), scale=1.0)
    seen = np.arange(1, T + 1)
    expected = np.exp(0.1) / (np.exp(0.1) + seen)
    np.testing.assert_allclose(np.float64(mass), np.broadcast_to(expected, mass.shape), rtol=0.01)


@pytest.mark.parametrize("logit", [-jnp.inf, jnp.inf])
def test_an_extra_logit_may_be_infinite(logit):
    """A head's sink is switched off by a logit of -inf, and nothing is left beside one of inf."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, B, T, N, H)), jnp.bfloat16)
    mixed, mass = flash_attention(*x, jnp.full((B, N, T), logit), scale=1.0)
    np.testing.assert_array_equal(np.float32(mass), float(logit > 0))
    if logit > 0:
        assert not np.float32(mixed).any()
    else:
        expected, _ = flash_attention(*x, None, scale=1.0)
        np.testing.assert_allclose(np.float32(mixed), np.float32(expected), rtol=0.02, atol=0.02)


def test_seeds_run_together():
    """vmap over a leading axis, as seeds are trained, is each of them alone."""
    q, k, v, _, _ = draw(jax.random.key(2), jnp.bfloat16)
    stack = [jnp.stack((a, 2 * a)) for a in (q, k, v)]
    together, _ = jax.vmap(flash_attention)(*stack)
    for n in range(2):
        alone, _ = flash_attention(*(a[n] for a in stack))
        np.testing.assert_allclose(np.float32(together[n]), np.float32(alone), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize(
    ("scale", "length", "window"),
    [(None, T, None), (0.3, T, None), (None, T, 1), (0.3, 300, 140)],  # the last of three blocks
)
def test_the_kernel_of_a_tpu_is_the_plain_form(extra, scale, length, window):
    """Run by Pallas' interpreter: outputs, and gradients of everything."""
    q, k, v, _, cotangent = draw(jax.random.key(3), jnp.bfloat16, length)
    logit = 2.0 * jax.random.normal(jax.random.key(4), (B, N, length)) if extra else None
    used = float(1.0 / np.sqrt(H)) if scale is None else scale

    def back(kernel, scale, by):
        def out(q, k, v, logit):
            return flash._mixed(kernel, Past(window), scale, (q * by).astype(q.dtype), k, v, logit)

        value, pull = jax.vjp(out, q, k, v, logit)
        return value, pull((cotangent, jnp.ones_like(value[1])))

    splash = back(partial(flash._splash, interpret=True), 1.0, used)
    assert all(np.isfinite(np.float32(x)).all() for x in jax.tree.leaves(splash))
    assert relative_error(back(flash._plain, 1.0, used), splash) < 0.02
    assert relative_error(back(flash._plain, used, 1.0), splash) < 0.02
