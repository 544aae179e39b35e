"""A2. One identity, many mechanisms: an extra key is an explicit scaling factor.

Statement. Append one key with logit s'_i and value v' to softmax attention with output o_i. Then

    out_i = S_i o_i + (1 - S_i) v',   S_i = sigma(LSE(s_i) - s'_i).

Hence, with p' = 1 - S_i the mass on the extra key:

    attention_bias (d)    s' = q.k'/sqrt(H), v' free    S o + (1 - S) v'
    key_bias              s' = q.k'/sqrt(H), v' = 0     S o
    softmax_off_by_one    s' = 0,            v' = 0     S o
    sink_logit            s' = b,            v' = 0     S o
    context_bias (c)      scales its bias, not o        o + (1 - S) v'
    value_bias (b)        no factor at all              o + v'
    context_scale (e)     the factor itself             2 sigma(w.x_i + b) o

The first four are softmax attention times one factor, (d) with a part of its own beside it. Where
s' is constant (off by one, sink logit), the factor is nevertheless open to the query: with one
channel more, keys (k_j, 1) and queries (q_i, -q_i.k'), off by one IS key_bias,

    softmax_off_by_one of head dim H + 1  =  key_bias of head dim H,

both with logits q.k/sqrt(H), so that the queries of the former are sqrt((H + 1)/H) times as long,

since adding a constant to all logits of a query moves its s' by the negative of it. A head spends a
channel, in which all keys are alike, on any linear function of its query. Biases of the projections
or a channel of the state that is constant make such keys, as the query meets them: a rotation turns
such a channel with the position. So what tells these mechanisms apart is
parameters and what training finds, not what S can depend on; only (e) reads x_i past the logits.

Assumptions. Softmax over all keys, the extra one included.

Proof. A1 with O = {the extra key}: R are the real keys, and o^R is o. For the channel, LSE(s_i -
s'_i) - 0 = LSE(s_i) - s'_i.

Source: An et al. 2025 (arXiv:2502.06415), section 5, for (b) to (e); A1 for the rest.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.primitives import Heads
from theory import heads
from theory.check import Part, Quantities, compare, statement
from theory.heads import SHAPES, Head

NAMES = (
    "attention_bias", "key_bias", "softmax_off_by_one", "sink_logit",
    "context_bias", "value_bias", "context_scale",
)  # fmt: skip


class Instance(NamedTuple):
    """A head and the parameters of each variant."""

    head: Head
    params: dict[str, dict[str, Array]]


def draw(key: Array, shape: tuple[int, int, int, int], scale: Array) -> Instance:
    """A random head with normal parameters of size sqrt(`scale`)."""
    of_head, *keys = jax.random.split(key, len(NAMES) + 1)
    head = heads.draw(of_head, shape, scale)
    params = {
        name: heads.parameters(k, VARIANTS[name], head, scale)
        for name, k in zip(NAMES, keys, strict=True)
    }
    return Instance(head, params)


def extra_logit(head: Head, params: dict[str, Array]) -> Float[Array, "N T"]:
    """s'_i of a variant's parameters: of its key, of its constant, or zero."""
    length, n, dim = head.q.shape
    if "bias_key" in params:
        key = heads.per_query_head(params["bias_key"], n)
        return jnp.einsum("inh,nh->ni", head.q, key) / jnp.sqrt(jnp.asarray(dim, key.dtype))
    constant = params.get("sink_logit", jnp.zeros(n, head.q.dtype))
    return jnp.broadcast_to(constant[:, None], (n, length))


def predict(case: Instance) -> Quantities:
    """Every mechanism from the output of plain softmax attention."""
    head, n = case.head, case.head.q.shape[1]
    s = heads.logits(head)
    o = heads.attend(s, heads.per_query_head(head.v, n))

    def parts(name: str) -> tuple[Array, Array, Array]:
        """S_i, 1 - S_i and v', broadcast to the shape of o."""
        params = case.params[name]
        gap = heads.lse(s) - extra_logit(head, params)
        value = params.get("bias_value", jnp.zeros_like(head.v[0]))
        value = value if value.shape[0] == n else heads.per_query_head(value, n)
        gap = jnp.broadcast_to(gap.T[..., None], o.shape)
        # sigma(-gap), because 1 - sigma(gap) rounds to zero where the gap is large
        return jax.nn.sigmoid(gap), jax.nn.sigmoid(-gap), jnp.broadcast_to(value, o.shape)

    found = {}
    for name in NAMES[:4]:
        factor, mass, value = parts(name)
        found[name] = factor * o + mass * value
        found[f"{name}: mass"] = mass[..., 0].T
    _, mass, value = parts("context_bias")
    found["context_bias"] = o + mass * value
    found["value_bias"] = o + parts("value_bias")[2]
    gate = case.params["context_scale"]
    z = jnp.einsum("id,dn->in", head.x, gate["gate_kernel"]) + gate["gate_bias"][None]
    found["context_scale"] = (2.0 * jax.nn.sigmoid(z))[..., None] * o
    found["appended key"] = found["attention_bias"]
    found["off by one, a channel more"] = found["key_bias"]
    return found


def measure(case: Instance) -> Quantities:
    """The variants as models use them; for (d) also a real key and value appended to the others."""
    mixed = {name: VARIANTS[name](case.head.heads, case.params[name]) for name in NAMES}
    return (
        {name: each.out for name, each in mixed.items()}
        | {f"{name}: mass": mixed[name].extra for name in NAMES[:4]}
        | {"appended key": VARIANTS["softmax"](_appended(case), {}).out}
        | {"off by one, a channel more": _off_by_one_with_a_channel(case)}
    )


def _off_by_one_with_a_channel(case: Instance) -> Float[Array, "T N H"]:
    """Off by one over keys (k, 1), queries (q, -q.k') and values (v, 0), logits over sqrt(H)."""
    plain, n = case.head.heads, case.head.q.shape[1]
    key = heads.per_query_head(case.params["key_bias"]["bias_key"], n)
    beside = -jnp.sum(plain.q * key[None], axis=-1, keepdims=True)
    one = jnp.ones_like(plain.k[..., :1])
    wider = plain._replace(
        q=jnp.concatenate([plain.q, beside], axis=-1),
        k=jnp.concatenate([plain.k, one], axis=-1),
        v=jnp.concatenate([plain.v, jnp.zeros_like(one)], axis=-1),
        scale=plain.q.shape[-1] ** -0.5,
    )
    return VARIANTS["softmax_off_by_one"](wider, {}).out[..., :-1]


def _appended(case: Instance) -> Heads:
    """Self-attention whose keys are the T tokens and, visible to all, one more."""
    plain, params = case.head.heads, case.params["attention_bias"]
    return plain._replace(
        k=jnp.concatenate([plain.k, params["bias_key"][None]]),
        v=jnp.concatenate([plain.v, params["bias_value"][None]]),
        x_k=jnp.concatenate([plain.x_k, jnp.zeros_like(plain.x_k[:1])]),
        mask=jnp.concatenate([plain.mask, jnp.ones_like(plain.mask[:, :1])], axis=1),
    )


def control(case: Instance) -> Quantities:
    """The extra key left out of the softmax; for (c) the output scaled as in (d)."""
    plain = VARIANTS["softmax"](case.head.heads, {})
    scaled = VARIANTS["attention_bias"](case.head.heads, case.params["context_bias"])
    return (
        dict.fromkeys((*NAMES, "appended key", "off by one, a channel more"), plain.out)
        | {f"{name}: mass": plain.extra for name in NAMES[:4]}
        | {"context_bias": scaled.out}
    )


@statement(
    "A2", "An extra key scales attention by sigma(LSE(s) - s'); a channel makes off by one key_bias"
)
def verify(key: Array, quick: bool) -> list[Part]:
    return compare(draw, predict, measure, control, key, shapes=SHAPES, quick=quick)
