"""Settings by name, from which experiments on text start."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

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
        # The smallest setting on text known here in which sinks and drained values are unmistakable
        # in every seed, and |h| and W_down far from where they begin (results/variants/books-h100):
        # 5.9M parameters, 45M tokens of books. max/median |h| is 49 to 76, below the 100 aimed at.
        "fruitfly": TrainConfig(
            tokenizer="bpe:4096", seq_len=256, batch_size=32, steps=5500, measure_every=1000,
            val_batches=2, seeds=(0, 1, 2),
            model=replace(SHAPES["gpt2-tiny"], layers=6, width=256),
            optimizer=OptimizerConfig(lr=3e-3, schedule="constant", warmup=200),
        ),
    }
)  # fmt: skip
