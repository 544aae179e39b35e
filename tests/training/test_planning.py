"""Plans: rooflines by hand, a real step against a formula, and what would fit."""

from dataclasses import replace

import jax
import pytest

from sysout_jax.errors import InputError
from sysout_jax.model.config import SHAPES, ModelConfig
from sysout_jax.model.decoder import parameter_count
from sysout_jax.model.execution import Execution
from sysout_jax.planning import fitting, machines
from sysout_jax.planning.hlo import Collective, Traffic
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.sharding import make_mesh

TINY = ModelConfig(
    vocab=13, layers=3, width=8, heads=2, mlp_width=24, mlp="swiglu", position="rope",
    execution=Execution(scan_layers=True),
)  # fmt: skip
RUN = TrainConfig(batch_size=6, seq_len=5, accumulate=1, model=TINY)


def test_roofline_by_hand():
    chip = machines.Chip(flops=100.0, hbm=1.0, bandwidth=10.0, network=5.0, source="")
    moved = Traffic(bytes=30.0, collectives={"all-reduce": Collective(1, 4.0, 10.0)})
    found = machines.roofline(chip, 200.0, moved, useful=150.0)
    assert (found["compute"], found["memory"], found["network"]) == (2, 3, 2)
    assert (found["step"], found["without_overlap"]) == (3, 7)
    assert found["utilisation"] == pytest.approx(150 / 300)
    assert found["utilisation_without_overlap"] == pytest.approx(150 / 700)
    assert "utilisation" not in machines.roofline(chip, 200.0, moved)


@pytest.mark.parametrize("name", machines.CHIPS)
def test_chips_are_plausible(name):
    """A slip of a thousand would show: all are within the range of accelerators of a decade."""
    chip = machines.CHIPS[name]
    assert 1e14 < chip.flops < 3e15
    assert 1e10 < chip.hbm < 3e11
    assert 5e11 < chip.bandwidth < 1e13
    assert 1e11 < chip.network < 2e12
    assert chip.source


def test_a_device_at_hand_is_found_by_its_name():
    """As NVIDIA's driver names an H100 SXM and an H200; CPUs are not in the table."""
    assert machines.chip_of("NVIDIA H100 80GB HBM3") is machines.CHIPS["h100"]
    assert machines.chip_of("NVIDIA H200") is machines.CHIPS["h200"]
    assert machines.chip_of("cpu") is None


def test_llama_2_7b_is_that():
    """Touvron et al. 2023: 6.74e9 parameters."""
    assert parameter_count(SHAPES["llama2-7b"]) == 6_738_415_616


def test_model_flops_by_hand():
    d, f, v, layers, tokens = 8, 24, 13, 3, 30
    matrices = layers * (4 * d * d + 3 * d * f) + d * v
    norms = (2 * layers + 1) * d
    assert machines.model_flops(RUN, v) == tokens * (
        6 * (matrices + norms) + 12 * layers * d * RUN.seq_len
    )


@pytest.mark.parametrize("tied", [False, True])
def test_model_flops_of_a_narrow_table(tied):
    """Looked up is a table [V, W]; W is mapped to the width and back, and only then to V."""
    d, w, f, v, layers, tokens = 8, 5, 24, 13, 3, 30
    model = replace(TINY, embed_width=w, tied=tied)
    matrices = layers * (4 * d * d + 3 * d * f) + 2 * w * d + v * w
    norms = (2 * layers + 1) * d
    assert machines.model_flops(replace(RUN, model=model), v) == tokens * (
        6 * (matrices + norms) + 12 * layers * d * RUN.seq_len
    )


@pytest.mark.parametrize("chosen", [2, 3])
def test_model_flops_without_learned_positions_and_idle_experts(chosen):
    """Positions are looked up; a token meets two or three of three experts, and all of a router."""
    d, f, v, layers, tokens = 8, 24, 13, 3, 30
    model = replace(TINY, position="learned", context=5, experts=3, experts_per_token=chosen)
    matrices = layers * (4 * d * d + chosen * 3 * d * f + 3 * d) + d * v
    norms = (2 * layers + 1) * d
    assert machines.model_flops(replace(RUN, model=model), v) == tokens * (
        6 * (matrices + norms) + 12 * layers * d * RUN.seq_len
    )


@pytest.mark.parametrize(
    ("mesh", "vocab", "kv_heads", "expected"),
    [
        ("data=2", 7, 2, 500.0),
        ("tensor=2", 8, 2, 500.0),
        # 6 products of 30 tokens, 8 channels and 7 pieces, or of 3 layers' two projections of 1 x 4
        ("tensor=2", 7, 2, 500.0 + 6 * 30 * 8 * 7 / 2),
        ("tensor=2", 8, 1, 500.0 + 6 * 30 * 8 * 2 * 3 * 4 / 2),
        ("data=3,tensor=2", 7, 2, (1000.0 + 6 * 30 * 8 * 7) / 6),
        ("data=3,tensor=4", 7, 1, (1000.0 + 3 * 6 * 30 * 8 * (7 + 2 * 3 * 4)) / 12),
    ],
)
def test_what_is_not_divided_is_computed_by_each(mesh, vocab, kv_heads, expected):
    model = ModelConfig(layers=3, width=8, heads=4, head_dim=4, kv_heads=kv_heads)
    run = TrainConfig(batch_size=6, seq_len=5, mesh=mesh, model=model)
    assert machines.on_each(1000.0, run, vocab, train=True) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("embed_width", "kv_heads", "remat", "train", "repeated"),
    [
        (None, 2, "none", True, 6 * 7 * 8),
        (3, 2, "none", True, 6 * 7 * 3),  # the head is behind a projection
        (3, 2, "none", False, 0),  # of an analysis, which ends before it
        (None, 1, "none", False, 6 * 7 * 0 + 2 * 2 * 3 * 8 * 4),
        (None, 1, "block", True, 6 * 7 * 8 + 8 * 2 * 3 * 8 * 4),  # computed once more
    ],
)
def test_what_each_computes_of_a_head_and_of_few_kv_heads(
    embed_width, kv_heads, remat, train, repeated
):
    """Of 30 tokens, on two devices: pieces of 7 that 2 does not divide; K is 1 or 2."""
    model = ModelConfig(
        layers=3, width=8, heads=4, head_dim=4, kv_heads=kv_heads, embed_width=embed_width,
    ).with_execution(remat=remat)  # fmt: skip
    run = TrainConfig(batch_size=6, seq_len=5, mesh="tensor=2", model=model)
    found = machines.on_each(1000.0, run, 7, train)
    assert found == pytest.approx((1000.0 + 30 * repeated) / 2)


@pytest.mark.parametrize(("kind", "share"), [("cpu", 5 / 8), ("v5e", 1.0)])
def test_attention_of_an_analysis_is_counted_as_it_is_computed(kind, share):
    """In four parts where queries come in blocks, as on a CPU from 257 tokens on; else whole."""
    length = 512
    model = replace(TINY, context=length, layers=2, position="none")
    config = replace(RUN, model=model, seq_len=length, batch_size=1)
    (short, long) = (machines.analysis_flops(config, 13, each) for each in (kind, "v5e"))
    whole = 4 * model.layers * model.heads * model.sizes["H"] * length**2
    softmax = 0.05 * whole  # and what is done with each weight besides two products
    assert long - short == pytest.approx((1 - share) * whole, rel=0.5, abs=softmax)


def test_counted_operations_are_those_of_the_formula():
    """XLA's count of two depths laid out, against 6ND with attention: within a tenth."""
    model = replace(SHAPES["gpt2-124m"], context=512).with_execution(dtype="bfloat16")
    config = TrainConfig(batch_size=2, seq_len=512, model=model)
    vocab = 50_257
    ratio = machines.train_flops(config, vocab) / machines.model_flops(config, vocab)
    assert 0.95 < ratio < 1.1


def test_of_a_mixture_the_chosen_experts_are_counted():
    """Against the same formula: eight experts, of which two see a token."""
    model = replace(TINY, layers=1, width=128, heads=2, mlp_width=256, context=128, experts=8)
    config = TrainConfig(batch_size=4, seq_len=128, model=model)
    ratio = machines.train_flops(config, 13) / machines.model_flops(config, 13)
    assert 0.95 < ratio < 1.15
    passes = machines.analysis_flops(config, 13) / (machines.model_flops(config, 13) / 3)
    assert 0.95 < passes < 1.3


def test_deeper_is_counted_as_laid_out():
    """Three layers from one and two, against XLA's own count of three."""
    direct = machines.step_flops(RUN, 13)
    assert machines.train_flops(RUN, 13) == pytest.approx(direct, rel=1e-6)


def test_operations_of_an_analysis():
    """Three layers from one and two are XLA's own count of three, and no fewer than the products of
    matrices forwards, whose share grows with the width."""
    d, f, layers, tokens = 64, 192, 3, 30
    run = replace(RUN, model=replace(TINY, width=d, mlp_width=f))
    flat = replace(run, model=run.model.with_execution(scan_layers=False, query_block=run.seq_len))
    direct = machines.analysis_program(flat, 13, None).cost_analysis()["flops"]
    found = machines.analysis_flops(run, 13)
    assert found == pytest.approx(direct, rel=1e-6)
    products = tokens * 2 * layers * (4 * d * d + 3 * d * f)
    assert products < found < 1.3 * products


@pytest.mark.parametrize(
    ("changes", "execution", "expected"),
    [  # tokens on a device (bytes of a number (layers * kept + of one layer) + 8 logits)
        ({}, {}, 30 * (4 * (3 * 166 + 166) + 8 * 13)),
        ({}, {"remat": "dots"}, 30 * (4 * (3 * 136 + 166) + 8 * 13)),
        ({}, {"remat": "block"}, 30 * (4 * (3 * 8 + 166) + 8 * 13)),
        ({}, {"dtype": "bfloat16"}, 30 * (2 * (3 * 166 + 166) + 8 * 13)),
        ({"accumulate": 2}, {}, 15 * (4 * (3 * 166 + 166) + 8 * 13)),
        ({"mesh": "data=3,fsdp=2"}, {}, 5 * (4 * (3 * 166 + 166) + 8 * 13)),
        ({"mesh": "tensor=2"}, {}, 30 * (4 * (3 * 99 + 99) + 8 * 13)),  # 13 is not divided
    ],
    ids=str,
)  # fmt: skip
def test_activations_by_hand(changes, execution, expected):
    """A layer computes 3F + 4NH + 3NT and 4D numbers of a token: 72 + 32 + 30 and 32."""
    config = replace(RUN, model=TINY.with_execution(**execution), **changes)
    assert fitting.activation_bytes(config, 13) == expected


def test_a_fused_kernel_keeps_no_maps():
    """3F + 4NH and 4D numbers of a token in bfloat16, with heads of 8: 72 + 64 and 32."""
    model = replace(TINY, head_dim=8).with_execution(dtype="bfloat16", flash=True)
    found = fitting.activation_bytes(replace(RUN, model=model), 13)
    assert found == 30 * (2 * (3 * 168 + 168) + 8 * 13)


def test_a_real_step_needs_what_it_was_said_to():
    mesh = make_mesh(RUN.mesh_shape)
    memory, moved = machines.compiled(machines.train_program(RUN, 13, mesh))
    state = fitting.state_bytes(RUN, 13)
    assert state == pytest.approx(12 * parameter_count(RUN.architecture(13)), rel=0.01)
    assert state <= memory.arguments < 1.1 * state + 1000
    assert moved.bytes > memory.arguments  # parameters are read, and more
    assert moved.loops.count(3) >= 2  # layers, forwards and backwards
    assert not moved.collectives


@pytest.mark.parametrize(
    ("said", "needed"),
    [
        ("Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm.", 20.5 * 2**30),
        ("total memory required (116.42G) exceeds available HBM (15.75G).", 116.42 * 2**30),
        ("Used 512M of 15.75G hbm", 2**29),
        ("another fault", None),
    ],
)
def test_refusals_of_the_compiler(said, needed):
    found = machines.refused(said)
    assert found == (needed and round(needed))


@pytest.mark.parametrize(
    "text",
    [
        "v5e",
        "v5e:",
        "v5e:8",
        "v7e:2x2",
        "h100:2x2",
        "cpu:x",
        "h100:",
        "tpu:4x4",
        "h100:0",
        "cpu:00",
        "v5e:0x4",
    ],
)
def test_unknown_topologies(text):
    with pytest.raises(InputError, match=rf"topology={text}: accepted: a TPU slice"):
        machines.parse_topology(text)


def test_libtpu_is_missing(monkeypatch):
    monkeypatch.setattr(machines, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the package libtpu: pip install libtpu"):
        machines.described(machines.parse_topology("v5e:2x4"))


def test_what_would_fit():
    """State is divided by fsdp alone; room for half of it asks for a mesh that divides it."""
    config = replace(RUN, mesh="data=6")
    state = fitting.state_bytes(RUN, 13)
    asked = round(2 * state)
    found = fitting.suggestion(config, 13, 6, asked, room=1.9 * state)
    assert found.mesh_shape.devices == 6
    assert found.mesh_shape.fsdp == 2
    assert found.batch_size == 6
    assert fitting.suggestion(config, 13, 6, asked, room=0.01 * state) is None


def test_alternatives_all_fit_together():
    """Every one is a run that TrainConfig accepts; what was asked for is the first of them."""
    config = replace(RUN, mesh="data=6,fsdp=1,tensor=1")
    found = list(fitting.alternatives(config, 6))
    assert found[0] == config
    assert len(found) == len(set(found)) == 10
    assert {one.model.execution.remat for one in found} == {"none", "block"}
    assert all(one.mesh_shape.devices == 6 for one in found)


class Unreadable:
    """A compiled program whose text cannot be had."""

    argument_size_in_bytes, output_size_in_bytes = 7, 5
    alias_size_in_bytes, temp_size_in_bytes = 3, 11

    def compile(self):
        return self

    def memory_analysis(self):
        return self

    def as_text(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")


def test_memory_is_known_without_the_text():
    memory, moved = machines.compiled(Unreadable())
    assert memory.peak == 7 + 5 - 3 + 11
    assert moved is None
