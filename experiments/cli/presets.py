"""Settings by name, from which experiments on text start."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from sysout_jax.errors import InputError
from sysout_jax.model.config import SHAPES, ModelConfig
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.optimizer import OptimizerConfig

BACKCOPY = TrainConfig(
    corpus="backcopy",
    seq_len=32,
    batch_size=16,
    steps=1000,
    measure_every=200,
    val_batches=16,
    seeds=(0, 1, 2),
    model=SHAPES["backcopy"],
    optimizer=OptimizerConfig(lr=7e-3, schedule="constant", beta2=0.99, decay=1e-4),
)
TEXT = TrainConfig(
    seq_len=64,
    batch_size=8,
    steps=100,
    measure_every=50,
    model=SHAPES["gpt2-tiny"],
    optimizer=OptimizerConfig(lr=3e-3),
)
FILLED_IN = ("vocab", "context")  # fields of the model that corpus and seq_len determine
NOT_GIVEN = {name: getattr(ModelConfig, name) for name in FILLED_IN}
SMOKE = {"steps": 4, "measure_every": 2, "steps_per_call": 2, "batch_size": 4, "val_batches": 1}
# Learning rates are constant after warm-up: every step is the end of a shorter run.
PRESETS: Mapping[str, TrainConfig] = MappingProxyType(
    {
        # 170k parameters and 0.6M tokens: a cell in two minutes on two cores. No outliers yet.
        "small": TrainConfig(
            tokenizer="bpe:1024", steps=600, seeds=(0, 1, 2),
            optimizer=OptimizerConfig(lr=2e-3, schedule="constant"),
        ),
        # The smallest in which softmax has sinks: 0.9M parameters, 2.6M tokens of any text, BOS,
        # rotary positions, heads of 64, short rows; minutes of a CPU core. No large activations.
        "sinks": TrainConfig(
            tokenizer="bpe:1024", seq_len=64, batch_size=32, steps=1250, measure_every=250,
            steps_per_call=50, val_batches=4, seeds=(0, 1, 2),
            model=replace(SHAPES["gpt2-tiny"], layers=4, width=128, heads=2, position="rope"),
            optimizer=OptimizerConfig(lr=3e-3, schedule="constant", warmup=200),
        ),
        # The smallest known here in which all three kinds are there in each of three seeds, by a
        # fifth of the heads, 100 times the median and weights far above where they begin: 5.8M
        # parameters, 33M tokens of books, results/benchmark/fruitfly-h100 (quarter context):
        # Sink_0(0.3) 0.44 to 0.53, max/median |h| 116 to 192, |W_down| at four times where it
        # begins. Rows of 256 tokens take longer: 88 to 167 in eight seeds after 41M.
        "fruitfly": TrainConfig(
            tokenizer="bpe:4096", seq_len=64, batch_size=128, steps=4000, measure_every=1000,
            val_batches=2, seeds=(0, 1, 2),
            model=replace(SHAPES["gpt2-tiny"], layers=6, width=256, position="rope"),
            optimizer=OptimizerConfig(lr=3e-3, schedule="constant", warmup=200),
        ),
    }
)  # fmt: skip


def _contexts(config: TrainConfig, longer: int = 1, shorter: int = 1) -> TrainConfig:
    """As many tokens a step, in rows of other lengths.

    Raises:
      InputError: that takes a part of a token or of a row.
    """
    if config.seq_len % shorter or config.batch_size % longer:
        raise InputError(
            "seq_len",
            f"{config.seq_len}, --batch_size={config.batch_size}",
            why=f"accepted with these --settings: multiples of {shorter} and of {longer}",
        )
    return replace(
        config,
        seq_len=config.seq_len * longer // shorter,
        batch_size=config.batch_size * shorter // longer,
    )


def _optimizer(config: TrainConfig, **changes: Any) -> TrainConfig:
    return replace(config, optimizer=replace(config.optimizer, **changes))


def _llama(config: TrainConfig) -> TrainConfig:
    style = SHAPES["llama-tiny"]
    changes = {name: getattr(style, name) for name in ("norm", "position", "mlp", "bias", "tied")}
    return replace(config, model=replace(config.model, **changes, scaled_residual_init=False))


def _repeated(config: TrainConfig, epochs: int) -> TrainConfig:
    tokens = config.steps * config.batch_size * config.seq_len // epochs
    return replace(config, train_tokens=min(tokens, config.train_tokens or tokens))


# Names of penalties on activations, beside the loss -> what a training has of them.
PENALTIES: Mapping[str, tuple[str, ...]] = MappingProxyType({"none": (), "tweo": ("tweo=0.01",)})

# Names of settings -> what else they change of a preset: style, text, context, optimiser's numbers.
SETTINGS: Mapping[str, Callable[[TrainConfig], TrainConfig]] = MappingProxyType(
    {
        "own": lambda config: config,
        "llama": _llama,  # RMSNorm, rotary positions, SwiGLU, no biases, a head of its own
        "repeated": lambda config: _repeated(config, 32),  # a 32nd of the text, 32 times
        "quarter_context": lambda config: _contexts(config, shorter=4),
        "four_contexts": lambda config: _contexts(config, longer=4),
        "no_bos": lambda config: replace(config, bos=False),
        "decay_0": lambda config: _optimizer(config, decay=0.0),
        "decay_1": lambda config: _optimizer(config, decay=1.0),
        "eps_1e-4": lambda config: _optimizer(config, eps=1e-4),
        "tweo": lambda config: replace(config, penalties=PENALTIES["tweo"]),
    }
)

# Names of norms -> what they change of a preset's model.
NORMS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "own": {},
        "layer": {"norm": "layer"},
        "rms": {"norm": "rms"},
        "unscaled": {"norm_scale": False},
        "sandwich": {"norm_placement": "sandwich"},
        "qk": {"query_key_norm": "head"},
        "gated": {"norm": "gated"},
        "pre_affine": {"norm": "pre_affine"},
        "single_scale": {"norm": "single_scale"},
        "tanh": {"norm": "tanh"},
    }
)
