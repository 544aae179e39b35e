"""Settings by name, from which experiments on text start."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from sysout_jax.model.config import SHAPES
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.optimizer import OptimizerConfig

# Learning rates are constant after warm-up: every step is the end of a shorter run.
PRESETS: Mapping[str, TrainConfig] = MappingProxyType(
    {
        # 170k parameters and 0.6M tokens: a cell in two minutes on two cores. No outliers yet.
        "small": TrainConfig(
            tokenizer="bpe:1024", steps=600, seeds=(0, 1, 2),
            optimizer=OptimizerConfig(lr=2e-3, schedule="constant"),
        ),
        # The smallest setting on text known here in which all three kinds are unmistakable in every
        # seed: 5.9M parameters, rotary positions. At 5,500 steps, 45M tokens of books
        # (results/variants/fruitfly-h100): Sink_0(0.3) 0.20 to 0.31, max/median |h| 98 to 181 and
        # rising, |W_down| at three times where it begins.
        "fruitfly": TrainConfig(
            tokenizer="bpe:4096", seq_len=256, batch_size=32, steps=8000, measure_every=1000,
            val_batches=2, seeds=(0, 1, 2),
            model=replace(SHAPES["gpt2-tiny"], layers=6, width=256, position="rope"),
            optimizer=OptimizerConfig(lr=3e-3, schedule="constant", warmup=200),
        ),
    }
)  # fmt: skip

# Names of norms -> what they change of a preset's model.
NORMS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "own": {},
        "layer": {"norm": "layer"},
        "rms": {"norm": "rms"},
        "unscaled": {"norm_scale": False},
        "sandwich": {"norm_placement": "sandwich"},
        "qk": {"query_key_norm": "head"},
    }
)
