"""What a training or analysis step needs on devices that are described, not at hand.

The real step is lowered and compiled with shapes in place of arrays. A TPU is compiled for by the
`libtpu` package on any machine; for other chips simulated CPU devices stand in, whose compiler
divides the work alike but lays out memory in its own way.
"""

import contextlib
import io
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sysout_jax.analysis.locate.scan import for_length, one_pass
from sysout_jax.errors import InputError, reason
from sysout_jax.model.block import PARTS
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import init, param_axes, parameter_count
from sysout_jax.planning import hlo
from sysout_jax.planning.timing import laid_out, step_flops
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.optimizer import make_optimizer
from sysout_jax.training.parallel import mesh_steps, state_shapes
from sysout_jax.training.sharding import batch_sharding, shard

GIB = 2.0**30
MIB = 2.0**20
INSTALL = "pip install libtpu==0.0.52 (the extra tpu-plan)"
# Without these libtpu looks for a TPU on the network, complains, and wants the machine to itself.
NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclass(frozen=True)
class Chip:
    """One device as JAX counts devices; rates per second."""

    flops: float  # bfloat16 products of matrices, dense
    hbm: float  # bytes of memory
    bandwidth: float  # bytes to and from it
    network: float  # bytes to other chips over all links, one way
    source: str
    tpu: bool = True
    reports: str | None = None  # its `device_kind` in JAX where it is at hand


# A chip of tpu7x is two devices; its numbers are halved.
CHIPS: Mapping[str, Chip] = MappingProxyType(
    {
        "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9, "docs.cloud.google.com/tpu/docs/v5e"),
        "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9, "docs.cloud.google.com/tpu/docs/v5p"),
        "v6e": Chip(918e12, 32 * GIB, 1638e9, 400e9, "docs.cloud.google.com/tpu/docs/v6e"),
        "tpu7x": Chip(
            2307e12 / 2, 96 * GIB, 7380e9 / 2, 300e9, "docs.cloud.google.com/tpu/docs/tpu7x"
        ),
        "h100": Chip(
            989.4e12,
            81559 * MIB,  # as its driver reports it
            3350e9,
            450e9,
            "NVIDIA H100 Tensor Core GPU datasheet, SXM5",
            False,
            "NVIDIA H100 80GB HBM3",
        ),
        "h200": Chip(
            989.4e12,
            143771 * MIB,
            4800e9,
            450e9,
            "NVIDIA H200 Tensor Core GPU datasheet, SXM",
            False,
            "NVIDIA H200",
        ),
    }
)
ACCEPTED = (
    "a TPU slice such as v5e:4x4 (v5e, v6e: two sizes; v5p, tpu7x: three), or simulated devices "
    "such as h100:8 or cpu:8"
)


def chip_of(device_kind: str) -> Chip | None:
    """What is known of a device at hand, by its `device_kind` in JAX."""
    return next((chip for chip in CHIPS.values() if chip.reports == device_kind), None)


@dataclass(frozen=True)
class Topology:
    """Devices by kind and layout: v5e:16x16, h100:8, cpu:8."""

    kind: str
    layout: str

    @property
    def chip(self) -> Chip | None:
        """What is known of the device; None of a CPU."""
        return CHIPS.get(self.kind)

    def __str__(self) -> str:
        return f"{self.kind}:{self.layout}"


def parse_topology(text: str) -> Topology:
    """The topology that --topology means.

    Raises:
      InputError: an unknown chip, or a layout that it has not.
    """
    kind, _, layout = text.partition(":")
    chip = CHIPS.get(kind)
    size = r"[1-9]\d*"
    sizes = f"{size}x{size}(x{size})?" if chip and chip.tpu else size
    if (chip is None and kind != "cpu") or not re.fullmatch(sizes, layout):
        raise InputError("topology", text, ACCEPTED)
    return Topology(kind, layout)


def described(topology: Topology) -> list[jax.Device]:
    """The devices of a topology, to compile for.

    Raises:
      InputError: libtpu is not installed, or knows no such slice; or this process has begun to use
        its CPU as fewer devices.
    """
    if topology.chip is None or not topology.chip.tpu:
        return _simulated(topology, int(topology.layout))
    if find_spec("libtpu") is None:
        raise InputError("topology", topology, why=f"needs the package libtpu: {INSTALL}")
    for name, value in NO_TPU_HERE.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies  # takes a while to import

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=str(topology))
    except (RuntimeError, ValueError, NotImplementedError) as error:
        said = reason(error)[:160]
        raise InputError("topology", topology, ACCEPTED, said) from error
    devices: list[jax.Device] = list(found.devices)
    return devices


def _simulated(topology: Topology, count: int) -> list[jax.Device]:
    with contextlib.suppress(RuntimeError):  # devices are in use: as many as there are
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if count > len(devices):
        raise InputError(
            "topology",
            topology,
            "at most as many, or a process of its own",
            f"this process simulates {len(devices)} devices",
        )
    return devices[:count]


# ------------------------------------------------------------------------- the real steps


def train_program(config: TrainConfig, vocab: int, mesh: Mesh) -> Any:
    """The call of one optimiser step of one seed, lowered for a mesh."""
    architecture = config.architecture(vocab)
    optimizer = make_optimizer(config.optimizer, config.steps, param_axes(architecture))
    state = state_shapes(architecture, optimizer, dtype=config.param_dtype)
    batch = jax.ShapeDtypeStruct((1, 1, config.batch_size, config.seq_len + 1), np.int32)
    return mesh_steps(mesh, architecture, optimizer, config.parts).lower(state, batch)


def analysis_program(
    config: TrainConfig, vocab: int, mesh: Mesh | None, kind: str | None = None
) -> Any:
    """One batch of the scan that every analysis starts from, as a kind of device runs it, lowered
    for a mesh of those, or for this one device."""
    fitted = for_length(config.architecture(vocab), config.seq_len, maps=True, platform=kind)
    architecture = fitted.with_execution(remat="none")
    where = shard(mesh) if mesh is not None else lambda letters, shape: None

    def abstract(x: Any, letters: str) -> jax.ShapeDtypeStruct:
        place = where(letters, x.shape)
        return jax.ShapeDtypeStruct(x.shape, architecture.execution.dtype, sharding=place)

    shapes = jax.eval_shape(partial(init, architecture), jax.random.key(0))
    params = jax.tree.map(abstract, shapes, param_axes(architecture))
    rows = None if mesh is None else batch_sharding(mesh)
    tokens = jax.ShapeDtypeStruct((config.batch_size, config.seq_len), np.int32, sharding=rows)
    return jax.jit(partial(one_pass, architecture)).lower(params, tokens)


def model_flops(config: TrainConfig, vocab: int) -> float:
    """6ND and what attention adds: operations of a step, as model FLOPs are counted.

    Per token 6 for each parameter that is not looked up, of experts for those of a token, and
    12 L N H T (Chowdhery et al. 2022, arXiv:2204.02311, appendix B), which counts all T keys for
    every query, those that it cannot see too. A program that leaves these out can have a
    utilisation above 1 where T is long. N has norms and biases in it, which no matrix has: 0.1%
    of GPT-2's parameters.
    """
    c = config.architecture(vocab)
    size = c.sizes
    rows = size["V"] * (0 if c.tied else size["W"]) + (c.position == "learned") * (
        size["T"] * size["D"]
    )  # looked up, not multiplied
    used = parameter_count(c) - rows
    if c.experts:
        expert = parameter_count(replace(c, experts=c.experts + 1)) - parameter_count(c)
        routed = size["L"] * (size["D"] + c.has_bias("mlp"))  # every expert has its logit
        used -= (c.experts - c.experts_per_token) * (expert - routed)
    attention = 12 * size["L"] * size["N"] * size["H"] * config.seq_len
    return config.batch_size * config.seq_len * float(6 * used + attention)


def train_flops(config: TrainConfig, vocab: int) -> float:
    """Operations of a training step, those of `remat` included, on all devices together.

    Layers are alike, so two depths laid out without loops say what any depth needs.
    """
    one, two = (step_flops(replace(config, model=_shallow(config.model, n)), vocab) for n in (1, 2))
    return one + (config.model.layers - 1) * (two - one)


def _shallow(model: ModelConfig, layers: int) -> ModelConfig:
    """The model with so many layers, all alike."""
    return replace(model, layers=layers, window_layers=None, rope_layers=None)


def analysis_flops(config: TrainConfig, vocab: int, kind: str | None = None) -> float:
    """Operations of an analysis step as a kind of device runs it, in the same way.

    Where it runs queries in blocks, they are counted in as many as the parts that those are in.
    """
    length = config.seq_len
    fitted = for_length(config.architecture(vocab), length, maps=True, platform=kind)
    size = fitted.execution.query_block or length
    counted = length if size >= length else -(-length // PARTS)

    def of(layers: int) -> float:
        flat = laid_out(_shallow(config.model, layers), query_block=counted)
        lowered = analysis_program(replace(config, model=flat, mesh="data=1"), vocab, None)
        return float(lowered.cost_analysis()["flops"])

    one, two = of(1), of(2)
    return one + (config.model.layers - 1) * (two - one)


def on_each(flops: float, config: TrainConfig, vocab: int, train: bool) -> float:
    """Operations on each device, of so many on all together.

    Vocabularies and KV heads that the mesh's tensor axis does not divide are whole on each of its
    devices: what is computed of them is computed by each.

    Args:
      flops: of a step, each product once.
      train: whether it has logits and a backward pass, of twice the operations.
    """
    c = config.architecture(vocab)
    size, mesh = c.sizes, config.mesh_shape
    passes = (4 if c.execution.remat == "block" else 3) if train else 1
    of_a_token = {
        "V": 6 * size["V"] * size["W"] if train else 0,
        "K": 2 * passes * 2 * size["L"] * size["D"] * size["K"] * size["H"],
    }
    repeated = sum(count for letter, count in of_a_token.items() if size[letter] % mesh.tensor)
    again = config.batch_size * config.seq_len * repeated * (mesh.tensor - 1)
    return (flops + again) / mesh.devices


# ------------------------------------------------------------------------- what it needs


@dataclass(frozen=True)
class Memory:
    """Bytes on each device; of a program that the compiler refused, the peak alone."""

    peak: int
    arguments: int | None = None
    outputs: int | None = None
    temporaries: int | None = None
    kept: int | None = None  # of the arguments, what outputs take the place of


OUT_OF_MEMORY = re.compile(  # what a TPU's compiler says, whose limit is a little below the chip's
    r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm|\(([\d.]+)([KMGT]?)\) exceeds available HBM"
)


def refused(said: str) -> int | None:
    """The bytes that a program needs, from the compiler's refusal; None where it says another."""
    found = OUT_OF_MEMORY.search(said)
    if found is None:
        return None
    number, unit = (a or b for a, b in zip(found.groups()[:2], found.groups()[2:], strict=True))
    return round(float(number) * 1024 ** " KMGT".index(unit or " "))


def compiled(lowered: Any) -> tuple[Memory, hlo.Traffic | None]:
    """Compile; the memory that is needed, and what is moved where the program can be read."""
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = refused(str(error))
        if needed is None:
            raise
        return Memory(needed), None
    found = program.memory_analysis()
    arguments, outputs = found.argument_size_in_bytes, found.output_size_in_bytes
    kept, temporaries = found.alias_size_in_bytes, found.temp_size_in_bytes
    peak = arguments + outputs - kept + temporaries
    memory = Memory(peak, arguments, outputs, temporaries, kept)
    try:
        text = program.as_text()
    except jax.errors.JaxRuntimeError:  # of jaxlib older than libtpu, which cannot read it back
        return memory, None
    return memory, hlo.traffic(hlo.parse(io.StringIO(text)))


def roofline(
    chip: Chip, flops: float, moved: hlo.Traffic, useful: float | None = None
) -> dict[str, float]:
    """Seconds of a step on each device: at least the longest of three, if they overlap entirely.

    Args:
      chip: the device.
      flops: of the step, per device.
      moved: bytes and collectives, per device.
      useful: of the model alone, per device, for its utilisation; None where nothing is trained.
    """
    seconds = {
        "compute": flops / chip.flops,
        "memory": moved.bytes / chip.bandwidth,
        "network": sum(each.wire for each in moved.collectives.values()) / chip.network,
    }
    step = max(seconds.values())
    found = {**seconds, "step": step, "without_overlap": sum(seconds.values())}
    if useful is not None:
        found["utilisation"] = useful / (step * chip.flops)
        found["utilisation_without_overlap"] = useful / (found["without_overlap"] * chip.flops)
    return found


def described_traffic(moved: hlo.Traffic) -> dict[str, Any]:
    """For a record."""
    kinds = {kind: asdict(each) for kind, each in sorted(moved.collectives.items())}
    return {
        "bytes": moved.bytes, "collectives": kinds, "loops": moved.loops,
        "loops_counted_once": moved.unknown,
    }  # fmt: skip


def shape_of(config: ModelConfig) -> dict[str, Any]:
    """What a record says of an architecture."""
    return {**config.sizes, "parameters": parameter_count(config)}
