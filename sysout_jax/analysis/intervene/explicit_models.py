"""A sink on running text, turned into a part of the model: an extra key, a logit, a gate, a bias.

Where texts begin with different tokens, the first token's key and value are nearly the same in
every text from the layer on that reads what makes it a sink (`locate.first_token`). There

    o_i = S_i o^R_i + (1 - S_i) v_0,    S_i = sigma(LSE_R(s_i) - s_i0)

(theory A1, T4), and each form puts something else in the place of S_i and (1 - S_i) v_0. In the
models that are made here no query of these layers sees another text's first token, and what would
make its state massive is not written: the forms of `sink_forms` without the sink they stand for.
Axes: L layers, D width, N heads, K KV heads, H head dim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from sysout_jax.analysis.intervene.conversion import unrotated, with_constants, with_own
from sysout_jax.analysis.intervene.explicit_factor import Form, check
from sysout_jax.analysis.intervene.sink_constants import Constants
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params
from sysout_jax.model.sink import ExplicitSink

OPEN, CLOSED = 1e3, -1e4  # of a gate, and of a logit, in layers that keep what they do
MODELS: Mapping[str, tuple[str, ...]] = {  # form -> the parameters that it adds to attention
    "extra_key": ("sink_key", "sink_value"),
    "logit": ("variant_sink_logit", "variant_bias_value"),
    "gate": ("variant_gate_kernel", "variant_gate_bias"),
    "gate_bias": (
        "variant_head_gate_gate_kernel", "variant_head_gate_gate_bias",
        "variant_value_bias_bias_value",
    ),
}  # fmt: skip
_VARIANTS = {"logit": "sink_value", "gate": "head_gate", "gate_bias": "value_bias+head_gate"}


def explicit_models(
    config: ModelConfig,
    params: Params,
    fitted: Constants,
    layers: Sequence[int],
    silent: Sequence[int],
) -> dict[str, Form]:
    """The model in each form of `MODELS`: it reads the same tokens, the first of them included.

    A gate, a logit or a bias acts on every query. Where a window hides the first token from some of
    them, there is an extra key alone.

    Args:
      config: the architecture, of variant softmax.
      params: its parameters.
      fitted: the constants that calibration text gives.
      layers: in which the first token's key and value are constants; others keep what they do.
      silent: whose MLP writes nothing at the first token.

    Raises:
      InputError: another variant than softmax, or layers that are not there.
    """
    check(config)
    made, windowed = {}, set(layers) & set(config.layers_with_window)
    for name in MODELS:
        if name == "extra_key":
            key = unrotated(config, fitted.key[:, None, None])[:, 0, 0]
            constants = {"key": np.asarray(key), "value": fitted.value}
            found = with_constants(config, params, constants, layers, silent)
        elif windowed:
            continue
        else:
            sink = ExplicitSink(0, True, tuple(layers), tuple(silent))
            found = _with_variant(config, params, name, sink, fitted)
        made[name] = Form(*found, reads_first=True)
    return made


def _with_variant(
    config: ModelConfig, params: Params, name: str, sink: ExplicitSink, fitted: Constants
) -> tuple[ModelConfig, Params]:
    """A variant of attention in the place of a key that no query sees any more."""
    at = np.isin(np.arange(config.layers), sink.layers or ())

    def here(value: Float[np.ndarray, "L *axes"], elsewhere: float) -> np.ndarray:
        return np.where(at.reshape(-1, *[1] * (value.ndim - 1)), value, elsewhere)

    given = {
        "gate_kernel": here(fitted.gates.kernel, 0.0),
        "gate_bias": here(fitted.gates.bias, OPEN),
        "sink_logit": here(fitted.logit, CLOSED),
        "bias_value": here(fitted.value if name == "logit" else fitted.bias, 0.0),
    }
    own = {
        parameter: next(value for end, value in given.items() if parameter.endswith(end))
        for parameter in MODELS[name]
    }
    changed = replace(config.with_execution(flash=False), variant=_VARIANTS[name], sink=sink)
    return changed, with_own(params, "attn", own)
