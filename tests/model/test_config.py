"""Every refusal of a config: one line that names the flag, what was found and what is accepted."""

import dataclasses
import math
import subprocess
import sys
import typing

import pytest

from experiments import causal, compress, convergence, explicit, laboratory
from sysout_jax.analysis.locate.scan import Thresholds
from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.layers import MLPS
from sysout_jax.core.norms import NORMS
from sysout_jax.errors import InputError
from sysout_jax.model.config import (
    PARALLEL_BLOCKS,
    PLACEMENTS,
    POSITIONS,
    QUERY_KEY_NORMS,
    SHAPES,
    ModelConfig,
)
from sysout_jax.model.execution import DTYPES, REMATS, Execution
from sysout_jax.model.rope import RULES, LongRope, Rope, Yarn, flag
from sysout_jax.model.sink import ExplicitSink
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.optimizer import OPTIMIZERS, SCHEDULES, OptimizerConfig
from sysout_jax.training.parallel import PARALLEL
from tests.refusing import refusal

CHOICES = {
    (ModelConfig, "variant"): tuple(VARIANTS),
    (ModelConfig, "norm"): tuple(NORMS),
    (ModelConfig, "norm_placement"): PLACEMENTS,
    (ModelConfig, "parallel_block"): PARALLEL_BLOCKS,
    (ModelConfig, "position"): POSITIONS,
    (ModelConfig, "query_key_norm"): QUERY_KEY_NORMS,
    (ModelConfig, "mlp"): tuple(MLPS),
    (Execution, "dtype"): DTYPES,
    (TrainConfig, "variant"): tuple(VARIANTS),
    (Execution, "remat"): REMATS,
    (TrainConfig, "parallel"): PARALLEL,
    (TrainConfig, "param_dtype"): DTYPES,
    (OptimizerConfig, "moment_dtype"): DTYPES,
    (OptimizerConfig, "optimizer"): OPTIMIZERS,
    (OptimizerConfig, "schedule"): SCHEDULES,
}
LOADED_LATER = {"corpus", "tokenizer", "mesh"}  # `load_corpus` and `parse_mesh` refuse those
MAY_BE_ZERO = {
    "warmup", "decay", "clip", "checkpoint_every", "experts", "position_offset", "loss_from",
}  # fmt: skip
SHARES = {"fraction", "beta1", "beta2", "momentum", "lr_floor", "cooldown"}


def refused(config_type: type, **values: object) -> str:
    """What the config says of these values, and of those that it accepts."""
    message = refusal(config_type, **values)
    assert "accepted:" in message
    return message


def numbers(kind: type) -> list[tuple[type, str]]:
    """Every field of that kind (int or float, None or not) of every config."""
    return [
        (config_type, name)
        for config_type in (ModelConfig, Execution, *RULES.values(), TrainConfig, OptimizerConfig)
        for name, hint in typing.get_type_hints(config_type).items()
        if kind in (hint, *typing.get_args(hint)) and typing.get_origin(hint) is not tuple
    ]


def named(config_type: type, name: str) -> str:
    """What messages call a field: by its flag."""
    return flag(name) if issubclass(config_type, Rope) else name


def ids(row: tuple[type, str]) -> str:
    return f"{row[0].__name__}.{row[1]}"


@pytest.mark.parametrize("row", numbers(int), ids=ids)
def test_integers_have_a_least_value(row):
    config_type, name = row
    least = 0 if name in MAY_BE_ZERO else 1
    for bad in (least - 1, least - 7):
        assert refused(config_type, **{name: bad}).startswith(f"{named(*row)}={bad}: accepted: ")
    # The other sizes fit any: 12 heads of width 1 would not.
    rest = {"heads": 1, "kv_heads": None} if config_type is ModelConfig and least else {}
    rest |= {"norm": "gated"} if name == "norm_rank" else {}
    assert getattr(config_type(**(rest | {name: least})), name) == least


@pytest.mark.parametrize("row", numbers(float), ids=ids)
def test_floats_have_a_range(row):
    config_type, name = row
    bad = [-0.5, math.nan] + ([1.5] if name in SHARES else [])
    for value in bad:
        assert refused(config_type, **{name: value}).startswith(
            f"{named(*row)}={value}: accepted: "
        )


NO_INTEGERS = """
import dataclasses, sys, typing
import numpy as np
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.execution import Execution
from sysout_jax.model.rope import RULES, Rope, flag
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.optimizer import OptimizerConfig

KINDS = (ModelConfig, Execution, *RULES.values(), TrainConfig, OptimizerConfig)
TYPES = {each.__name__: each for each in KINDS}
assert TrainConfig(steps=np.int64(3), seeds=(np.int64(5),)).seeds == (5,)

def check(made, name, value, told, **rest):
    try:
        TYPES[made](**rest, **{name: value})
    except InputError as error:
        said = flag(name) if issubclass(TYPES[made], Rope) else name
        assert str(error).startswith(f"{said}={told}: accepted: "), error
    else:
        sys.exit(f"{made}.{name}={value!r} is accepted")

for row in sys.argv[1:]:
    for bad in (2.5, 2.0, "10", True, float("nan")):
        check(*row.split("."), bad, f"{bad!r}")
for bad in (1.0, True, "3"):
    check("TrainConfig", "seeds", (bad,), f"({bad!r},)")
    check("ModelConfig", "window_layers", (bad,), f"({bad!r},)", window=3)

# Whatever a field is, the others are not: text for numbers, "no" for False, None, a name for what
# it names.
for made, kind in TYPES.items():
    hints = typing.get_type_hints(kind)
    for each in dataclasses.fields(kind):
        if not each.init:
            continue
        for bad in ("no", None, 1.5, ("no", None)):
            parts = typing.get_args(hints[each.name]) or (hints[each.name],)
            fits = (isinstance(bad, str) and str in parts, bad is None and type(None) in parts,
                    bad == 1.5 and float in parts)
            if not any(fits):
                check(made, each.name, bad, repr(bad))
assert TrainConfig(seeds=[4, 5]).seeds == (4, 5) == TrainConfig(seeds=range(4, 6)).seeds
assert TrainConfig(seeds=np.arange(4, 6)).seeds == (4, 5)
assert OptimizerConfig(lr=np.float64(0.5)).lr == 0.5 == OptimizerConfig(lr=np.array(0.5)).lr
assert hash(ModelConfig(window=3, window_layers=[0])) == hash(
    ModelConfig(window=3, window_layers=(0,))
)
"""


def test_what_is_no_integer():
    """In a process whose calls are not checked for types, as those of users are not."""
    rows = [ids(row) for row in numbers(int)]
    done = subprocess.run(
        [sys.executable, "-c", NO_INTEGERS, *rows], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_number_is_finite():
    """Infinite ones pass a range without an end, and are heard of later: no field is let off."""
    found = set()
    for config_type in (
        ModelConfig, *RULES.values(), OptimizerConfig, TrainConfig, Thresholds, causal.Config,
        compress.Config,
        convergence.Config, explicit.Config, laboratory.Config,
    ):  # fmt: skip
        for field in dataclasses.fields(config_type):
            if "float" not in str(field.type):
                continue
            found.add(field.name)
            for bad in (math.inf, -math.inf, math.nan):
                several = isinstance(field.default, tuple)
                value = (*field.default, bad) if several else bad
                message = refused(config_type, **{field.name: value})
                assert message.startswith(f"{named(config_type, field.name)}=")
    assert {"lr", "clip", "init_std", "long", "massive_ratio", "alpha", "factors"} <= found


@pytest.mark.parametrize("name", ["lr", "eps"])
def test_no_learning_rate_and_no_eps_of_zero(name):
    assert "accepted: a finite number above 0" in refused(OptimizerConfig, **{name: 0.0})


def test_no_rotary_base_of_zero():
    """Its powers are infinite, and infinity times position 0 is no number."""
    assert "rope_theta=0.0: accepted" in refused(Rope, theta=0.0)


@pytest.mark.parametrize("row", CHOICES, ids=ids)
def test_choices(row):
    config_type, name = row
    message = refused(config_type, **{name: "nosuch"})
    assert message == f"{name}='nosuch': unknown; accepted: {', '.join(CHOICES[row])}"
    for value in CHOICES[row]:
        assert getattr(config_type(**{name: value}), name) == value


def test_every_word_is_a_choice():
    words = {
        (config_type, name)
        for config_type in (ModelConfig, Execution, TrainConfig, OptimizerConfig)
        for name, hint in typing.get_type_hints(config_type).items()
        if hint is str
    }
    assert words == {*CHOICES, *((TrainConfig, name) for name in LOADED_LATER)}


FUSED = Execution(flash=True, dtype="bfloat16")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"flash": True}, "flash=True: no effect in float32; accepted: dtype=bfloat16"),
        (
            {"flash": True, "dtype": "bfloat16", "query_block": 3},
            "flash=True: no effect with query_block=3; accepted: all queries at a time",
        ),
    ],
)
def test_a_fused_kernel_without_effect_is_refused(values, said):
    assert refused(Execution, **values) == said


def test_the_same_model_run_otherwise():
    config = ModelConfig(width=32, execution=Execution(dtype="bfloat16"))
    assert config.with_execution(scan_layers=True) == ModelConfig(
        width=32, execution=Execution(dtype="bfloat16", scan_layers=True)
    )
    with pytest.raises(InputError, match="remat='all': unknown; accepted: none, block, dots"):
        config.with_execution(remat="all")


@pytest.mark.parametrize(
    ("values", "flag", "wanted"),
    [
        ({"heads": 5}, "heads=5", "width=64"),
        ({"width": 65}, "heads=2", "width=65"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads=3", "heads=4"),
        ({"heads": 2, "kv_heads": 4}, "kv_heads=4", "heads=2"),
        ({"position": "rope", "head_dim": 7}, "position=rope", "heads have 7"),
        ({"position": "rope", "width": 6, "heads": 2}, "position=rope", "heads have 3"),
        ({"position": "rope", "rope": Rope(fraction=0.1)}, "position=rope", "heads have 3"),
        ({"position": "rope", "rope": Rope(fraction=0.01)}, "position=rope", "heads have 0"),
        ({"position": "rope", "rope": LongRope()}, "rope_short", "accepted: 16, one"),
        (
            {"position": "alibi", "rope": Rope(theta=2.0)},
            "rope_theta=2.0",
            "no effect; accepted: with",
        ),
        ({"rope": Yarn()}, "rope_rule=yarn", "accepted: with position=rope"),
        ({"norm_plus_one": True, "norm_scale": False}, "norm_plus_one=True", "no effect; accepted"),
        (
            {"norm_plus_one": True, "norm": "single_scale"},
            "norm_plus_one=True",
            "no effect; accepted",
        ),
        ({"execution": FUSED, "sink": ExplicitSink()}, "flash=True", "no effect with the keys"),
        ({"execution": FUSED, "attn_softcap": 3.0}, "flash=True", "no effect with attn_soft"),
        ({"execution": FUSED, "position": "alibi"}, "flash=True", "no effect with position=alibi"),
        ({"execution": FUSED, "head_dim": 12}, "flash=True", "on heads of 12 channels; acc"),
        ({"execution": FUSED, "head_dim": 136}, "flash=True", "on heads of 136 channels"),
        (
            {"position": "rope", "head_dim": 2, "rope": LongRope(short=(1.0,), long=(1.0, 2.0))},
            "rope_long",
            "2 numbers; accepted: 1, one",
        ),
        ({"window_layers": (0,)}, "window_layers=0", "with window"),
        ({"window": 3, "window_layers": (0, 2)}, "window_layers=0,2", "from 0 to 1"),
        ({"window": 3, "window_layers": (1, 0)}, "window_layers=1,0", "in order"),
        ({"window": 3, "window_layers": (1, 1)}, "window_layers=1,1", "in order"),
        ({"rope_layers": (0,)}, "rope_layers=0", "with position=rope"),
        ({"position": "rope", "rope_layers": (2,)}, "rope_layers=2", "from 0 to 1"),
        ({"context": 2, "position_offset": 2}, "position_offset=2", "context=2"),
        ({"experts": 2, "experts_per_token": 3}, "experts_per_token=3", "experts=2"),
        (
            {"parallel_block": "shared", "norm_placement": "post"},
            "parallel_block=shared",
            "accepted: pre",
        ),
    ],
)
def test_values_that_do_not_fit_together(values, flag, wanted):
    message = refused(ModelConfig, **values)
    assert message.startswith(f"{flag}: ")
    assert wanted in message


@pytest.mark.parametrize(
    "values",
    [
        {"heads": 5, "head_dim": 3},
        {"heads": 6, "kv_heads": 3, "width": 66},
        {"position": "rope", "width": 7, "heads": 1, "head_dim": 2},
        {"position": "none", "width": 6, "heads": 2},
    ],
)
def test_values_that_do(values):
    assert dataclasses.replace(ModelConfig(**values)) == ModelConfig(**values)


def test_replacing_checks_again():
    with pytest.raises(InputError):
        dataclasses.replace(ModelConfig(), heads=5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().heads = 4


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"batch_size": 16, "accumulate": 3}, "accumulate=3: does not divide batch_size=16"),
        ({"batch_size": 2, "accumulate": 4}, "accumulate=4: does not divide batch_size=2"),
        ({"seeds": ()}, "seeds=: accepted"),
        ({"seeds": (1, 2, 1)}, "seeds=1,2,1: accepted"),
        ({"seeds": (0, -1)}, "seeds=0,-1: accepted"),
        ({"seeds": (2**32,)}, f"seeds={2**32}: accepted"),
    ],
)
def test_refusals_of_a_run(values, flag):
    assert refused(TrainConfig, **values).startswith(flag)


def test_the_greatest_seed_is_its_own():
    """Keys have 32 bits without x64, so that greater seeds would repeat the small ones."""
    assert TrainConfig(seeds=(0, 2**32 - 1)).seeds == (0, 2**32 - 1)


def test_sizes():
    given = ModelConfig(
        vocab=19, context=7, layers=3, width=13, heads=6, kv_heads=2, head_dim=5, mlp_width=11
    )
    expected = {"V": 19, "T": 7, "L": 3, "D": 13, "N": 6, "K": 2, "H": 5, "F": 11, "E": 0}
    assert dict(given.sizes) == expected | {"W": 13, "C": 0, "R": 16}
    assert dataclasses.replace(given, sink=ExplicitSink(keys=3)).sizes["C"] == 3
    assert dataclasses.replace(given, embed_width=17).sizes["W"] == 17
    implied = ModelConfig(width=12, heads=3).sizes
    assert (implied["K"], implied["H"], implied["F"]) == (3, 4, 48)


def test_a_run_fills_in_the_architecture():
    run = TrainConfig(variant="sigmoid", seq_len=11, model=SHAPES["llama-tiny"])
    assert run.architecture(23) == dataclasses.replace(
        SHAPES["llama-tiny"], vocab=23, context=11, variant="sigmoid"
    )


@pytest.mark.parametrize(
    ("model", "run", "told"),
    [
        ({"variant": "context_scale"}, {}, "model.variant=context_scale: variant .* softmax; "),
        ({"variant": "sigmoid"}, {"variant": "context_scale"}, "model.variant=sigmoid: "),
        ({"context": 300, "position": "learned"}, {"seq_len": 64}, "model.context=300: seq_len "),
    ],
)
def test_what_a_run_would_override_is_refused(model, run, told):
    with pytest.raises(InputError, match=f"{told}.*accepted: that, or a model without"):
        TrainConfig(model=ModelConfig(**model), **run)


def test_what_agrees_with_the_run_is_accepted():
    model = ModelConfig(variant="sigmoid", context=64, position="learned", vocab=19)
    run = TrainConfig(model=model, variant="sigmoid", seq_len=64)
    assert run.architecture(19) == model
    with pytest.raises(InputError, match=r"model\.vocab=19: corpus .* 23; accepted"):
        run.architecture(23)
    turned = TrainConfig(model=ModelConfig(context=300, position="rope"), seq_len=64)
    assert turned.architecture(256).context == 64  # which has no parameters of its own


def test_named_shapes():
    assert SHAPES["gpt2-124m"].sizes["H"] == 64
    assert SHAPES["llama-57m"].sizes["K"] == 4
    assert SHAPES["backcopy"].layers == SHAPES["backcopy"].heads == 1
