"""Measure a saved model on one device and on a mesh of eight; run by test_chosen.py."""

import json
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.inputs.model_selection import Choice, choose
from sysout_jax.analysis.measure.summary import outlier_summary
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import init
from sysout_jax.training.checkpoint import save

CONFIG = ModelConfig(
    vocab=13, context=7, layers=2, width=16, heads=4, kv_heads=2, mlp_width=24, mlp="swiglu"
)


def main():
    """One line of JSON: how many devices held the parameters, and the two sets of measures."""
    with tempfile.TemporaryDirectory() as place:
        where = Path(place) / "model"
        params = jax.tree.map(lambda x: (20 * x)[None], init(CONFIG, jax.random.key(1)))
        save(where, CONFIG, params, [1])
        tokens = jnp.asarray(np.random.default_rng(1).integers(0, 13, (3, 7)), jnp.int32)
        held, found = [], []
        for mesh in ("data=1", "fsdp=2,tensor=4"):
            model = choose(Choice(model=str(where), mesh=mesh)).model
            held.append(len(model.params["head"].sharding.device_set))
            measure = jax.jit(lambda params, c=model.config: outlier_summary(c, params, tokens))
            found.append(jax.tree.map(float, measure(model.params)))
    print(json.dumps({"held": held, "found": found}))


if __name__ == "__main__":
    sys.exit(main())
