"""The table from axis letters to mesh axes, and what is derived from it."""

import inspect
from functools import partial
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from sysout_jax.core.attention import VARIANTS
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import param_axes
from sysout_jax.training import sharding
from sysout_jax.training.optimizer import OPTIMIZERS, OptimizerConfig, make_optimizer
from sysout_jax.training.sharding import MESH_AXES, MeshShape, parse_mesh, spec
from sysout_jax.training.step import start
from tests.refusing import refusal

MESH = AbstractMesh((2, 3, 5), MESH_AXES)
CONFIG = ModelConfig(
    vocab=23, context=7, layers=2, width=12, heads=10, kv_heads=2, head_dim=2, mlp_width=15,
    mlp="swiglu", bias=True,
)  # fmt: skip


# ------------------------------------------------------------------------- the flag


def test_a_mesh_is_parsed_and_printed():
    assert parse_mesh("data=2,fsdp=3,tensor=5") == MeshShape(2, 3, 5)
    assert parse_mesh(" tensor=4") == MeshShape(tensor=4)
    shape = MeshShape(7, 1, 2)
    assert parse_mesh(str(shape)) == shape
    assert (shape.devices, shape.batch_parts, MeshShape(2, 3, 5).batch_parts) == (14, 7, 6)


@pytest.mark.parametrize(
    "text", ["", "data", "data=0", "data=-1", "data=x", "model=2", "data=2,data=2", "data=2;fsdp=2"]
)
def test_what_is_no_mesh_is_refused(text):
    said = refusal(parse_mesh, text)
    assert said.startswith(f"mesh={text}: ")
    assert "accepted: data, fsdp, tensor" in said


def test_a_mesh_has_as_many_devices_as_there_are():
    assert sharding.make_mesh(MeshShape()).devices.shape == (1, 1, 1)
    devices = jax.devices()[:1] * 6
    said = refusal(sharding.make_mesh, MeshShape(data=2, tensor=2), devices)
    assert said == (
        "mesh=data=2,fsdp=1,tensor=2: 4 devices, but there are 6; accepted: sizes whose product "
        "is 6, e.g. data=6"
    )
    with pytest.raises(InputError, match="1 devices, but there are 6"):
        sharding.make_mesh(MeshShape(), devices)


def test_an_axis_may_be_a_part_of_an_axis_of_a_torus():
    """16 chips in 4 x 4, of a kind whose axes `jax.make_mesh` does not split."""
    chips = [
        SimpleNamespace(id=n, coords=(n % 4, n // 4, 0), core_on_chip=0, platform="tpu",
                        device_kind="TPU v6 lite", process_index=0, slice_index=0)
        for n in range(16)
    ]  # fmt: skip
    placed = sharding.create_device_mesh((2, 8, 1), chips, allow_split_physical_axes=True)
    with mock.patch.object(sharding, "Mesh", lambda devices, names, axis_types: devices):
        found = inspect.unwrap(sharding.make_mesh)(MeshShape(data=2, fsdp=8), chips)
    assert found.shape == (2, 8, 1)
    assert {chip.id for chip in found.ravel()} == set(range(16))
    assert [chip.id for chip in found.ravel()] == [chip.id for chip in placed.ravel()]


# ------------------------------------------------------------------------- the table


@pytest.mark.parametrize(
    ("letters", "shape", "expected"),
    [
        ("D -> N H", (12, 10, 2), ("fsdp", "tensor", None)),
        ("N H -> D", (10, 2, 12), ("tensor", None, "fsdp")),
        ("D -> K H", (12, 5, 2), ("fsdp", "tensor", None)),
        ("D -> K H", (12, 2, 2), ("fsdp", None, None)),  # two KV heads on five: copied
        ("V -> D", (25, 12), ("tensor", "fsdp")),
        ("V -> D", (23, 12), (None, "fsdp")),
        ("L D -> F", (4, 12, 15), (None, "fsdp", "tensor")),
        ("E F -> D", (7, 15, 12), (None, "tensor", "fsdp")),
        ("T -> D", (7, 12), (None, "fsdp")),
        ("D", (12,), ("fsdp",)),
        ("N", (10,), ("tensor",)),
    ],
)
def test_letters_become_mesh_axes(letters, shape, expected):
    assert spec(MESH, letters, shape) == PartitionSpec(*expected)
    assert spec(MESH, letters, (3, *shape), leading=1) == PartitionSpec(None, *expected)


def test_rows_of_tokens_are_divided_by_both_axes():
    assert sharding.batch_sharding(MESH, 2).spec == PartitionSpec(None, None, ("data", "fsdp"))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_of_every_variant_has_its_place(name):
    """No mesh axis divides a parameter twice, and none with a width is whole on all of fsdp."""
    axes = param_axes(ModelConfig(**{**CONFIG.__dict__, "variant": name}))
    for letters in jax.tree.leaves(axes):
        shape = [CONFIG.sizes[x] for x in letters.replace("->", " ").split()]
        used = [x for x in spec(MESH, letters, shape) if x is not None]
        assert len(set(used)) == len(used)
        assert ("fsdp" in used) == ("D" in letters.split())


def trees(optimizer):
    made = make_optimizer(OptimizerConfig(optimizer=optimizer), 4, param_axes(CONFIG))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 3))
    return jax.eval_shape(jax.vmap(partial(start, CONFIG, made)), keys)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_state_of_an_optimizer_goes_where_its_parameters_go(optimizer):
    state = trees(optimizer)
    found = sharding.shardings(MESH, param_axes(CONFIG), state, leading=1)
    flat = jax.tree_util.tree_leaves_with_path
    params, leaves = dict(flat(found.params)), dict(flat(state))
    shapes, moments = dict(flat(state.params)), 0
    for path, place in flat(found.opt):
        mine = [p for p in params if path[-len(p) :] == p]
        if mine:
            assert leaves[(jax.tree_util.GetAttrKey("opt"), *path)].shape == shapes[mine[0]].shape
            assert place.spec == params[mine[0]].spec
            moments += 1
        else:  # step counts, and the coefficients of Muon's polynomial
            assert place.spec == PartitionSpec()
    assert moments >= len(params)
    assert params[next(p for p in params if "mlp_norm" in str(p))].spec == PartitionSpec(
        None, "fsdp"
    )


def test_arrays_are_placed():
    mesh = sharding.make_mesh(MeshShape())
    axes, tree = {"a": "D -> F", "b": "D"}, {"a": jnp.ones((2, 3)), "b": jnp.zeros(2)}
    where = sharding.shardings(mesh, axes, tree)
    placed = sharding.place(tree, where)
    assert placed["a"].sharding == where["a"] == sharding.shard(mesh)("D -> F", (2, 3))
    np.testing.assert_array_equal(placed["a"], tree["a"])


# ------------------------------------------------------------------------- refusals


def test_sizes_that_would_fit_are_said():
    sharding.check_fits(MeshShape(2, 3, 5), CONFIG, 12, accumulate=2)
    check = partial(sharding.check_fits, config=CONFIG, batch_size=12)
    assert refusal(check, MeshShape(data=8)) == (
        "batch_size=12: not divided by data*fsdp=8 of mesh=data=8,fsdp=1,tensor=1; accepted: "
        "a multiple of 8, or data*fsdp of 1, 2, 3, 4, 6, 12"
    )
    assert "batch_size=12 / accumulate=3: not divided by data*fsdp=6" in refusal(
        check, MeshShape(2, 3), accumulate=3
    )
    assert refusal(check, MeshShape(fsdp=12, tensor=2)) == (
        "mesh: tensor=2 does not divide mlp_width=15; accepted: tensor of 1, 5"
    )
    assert refusal(check, MeshShape(tensor=3)) == (
        "mesh: tensor=3 does not divide heads=10; accepted: tensor of 1, 5"
    )
    assert "fsdp=8 does not divide width=12; accepted: fsdp of 1, 2, 3, 4, 6, 12" in refusal(
        sharding.check_fits, MeshShape(fsdp=8), CONFIG, 16
    )


def test_a_parameter_that_is_not_divided_is_refused():
    """As `load(shard=)` meets it, before a config is known."""
    said = refusal(spec, MESH, "D -> N H", (12, 9, 2))
    assert said == "mesh: tensor=5 does not divide heads=9; accepted: tensor of 1, 3, 9"
