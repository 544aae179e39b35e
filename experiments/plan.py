"""Does a model fit on a machine that is not at hand, and how fast can a step be at best?

python -m experiments.plan --model=gpt2-124m --topology=v5e:2x4 --batch_size=64
python -m experiments.plan --model=llama2-7b --topology=v5e:16x16 --mesh=fsdp=256 --remat=block \\
    --batch_size=256 --seq_len=4096
python -m experiments.plan --model=meta-llama/Llama-2-7b-hf --topology=h100:8 --mesh=fsdp=8
python -m experiments.plan --model=gpt2-124m --topology=v5e:2x4 --batch_size=64 --levers
python -m experiments.plan --redraw=results/plan/gpt2-124m-v5e-8 --markdown
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
from absl import flags
from rich.console import Console

from sysout_jax.errors import InputError, one_of
from sysout_jax.families.config_map import read_config, read_within
from sysout_jax.families.hub import fetch, is_hub_id
from sysout_jax.families.table import by_model_type
from sysout_jax.files import read_json
from sysout_jax.model.config import SHAPES, ModelConfig
from sysout_jax.planning import fitting, machines
from sysout_jax.results import RunDirectory, as_flag, plain, read_record
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.optimizer import OptimizerConfig
from sysout_jax.training.sharding import check_fits, make_mesh

from .cli import launch, showing
from .cli.grid import check_values
from .cli.tables import show
from .reports.plan_report import PARTS, PLAIN, PULLED, REPORT, fits

FLAGS = flags.FLAGS
# What --help explains.
OFTEN = ("model", "topology", "only", "levers", "batch_size", "seq_len", "mesh", "workdir")
STEPS = ("train", "analysis")
BASE = TrainConfig(seq_len=1024, batch_size=32, accumulate=1)
# Of a training run, what a step's memory and work depend on.
MATTERS = (
    "variant", "seq_len", "batch_size", "accumulate", "param_dtype", "mesh", "optimizer",
    "moment_dtype",
)  # fmt: skip
OF_A_RUN = {each.name for each in (*fields(TrainConfig), *fields(OptimizerConfig))}
NO_FLAG = (
    *(OF_A_RUN - {*MATTERS, "model"}),
    "context",
    "variant",
)  # `variant` is in two dataclasses
ACCEPTED = f"a shape ({', '.join(SHAPES)}), a directory with config.json, or a hub id"
TRIES = 2  # suggestions that are compiled, at most
HALF = ("dtype", "moment_dtype", "param_dtype")
OF_TRAINING = {  # what an analysis has no part for, as it is where nobody says
    "remat": "none", "loss_block": None, "accumulate": 1, "param_dtype": "float32",
    "optimizer": "adamw", "moment_dtype": "float32",
}  # fmt: skip
# What saves memory in training: flags in words -> what they change of a run without any of them.
_SCANNED: Mapping[str, Mapping[str, Any]] = {
    "--remat=dots": {"remat": "dots"},
    "--remat=block": {"remat": "block"},
    f"--accumulate={PARTS}": {"accumulate": PARTS},
    **{f"--{name}=bfloat16": {name: "bfloat16"} for name in HALF},
}
LEVERS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "none": {},
        "--scan_layers": {"scan_layers": True},
        **{
            f"--scan_layers {lever}": {"scan_layers": True, **how}
            for lever, how in _SCANNED.items()
        },
        "all of them, remat=block": {
            "scan_layers": True, "remat": "block", "accumulate": PARTS,
            **dict.fromkeys(HALF, "bfloat16"),
        },
    }
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """A model, a machine, and how the one is to run on the other."""

    model: str = "gpt2-124m"  # a shape, a published model's directory or hub id
    topology: str = "v5e:2x4"  # the machine: v5e:16x16, v5p:4x8x8, ..., or simulated: h100:8, cpu:8
    only: tuple[str, ...] = STEPS  # steps to compile: train, analysis
    levers: bool = False  # the training step with each memory lever instead, none of them first
    workdir: str = "runs"  # where run directories go
    train: TrainConfig = field(default_factory=lambda: BASE)

    def __post_init__(self) -> None:
        for name in self.only:
            one_of("only", name, STEPS)
        check_values("only", self.only)
        how = self.train.model.execution
        chip = machines.parse_topology(self.topology).chip
        if how.flash and not (chip and chip.tpu and self.only == ("train",)):
            accepted = "with --only=train, of a TPU"
            raise InputError("flash", True, accepted, f"no effect on {self.topology}")
        if "train" not in self.only:
            given = {"remat": how.remat, "loss_block": how.loss_block}
            given |= {name: getattr(self.train, name) for name in ("accumulate", "param_dtype")}
            given |= vars(self.train.optimizer)
            for name, before in OF_TRAINING.items():
                if given[name] != before:
                    accepted = "with --only=train, which has a loss and a backward pass"
                    raise InputError(name, as_flag(given[name]), accepted, "no effect")


def architecture(name: str) -> ModelConfig:
    """The architecture that --model names, activations in bfloat16 and layers scanned.

    Raises:
      InputError: no shape, directory or hub id, or a config that no family covers.
    """
    found = SHAPES.get(name)
    if found is None:
        path = Path(os.path.expanduser(name))
        if not path.exists():
            if not is_hub_id(name):
                raise InputError("model", name, ACCEPTED)
            path = fetch(name, wanted=("config.json",))
        raw = read_json(path / "config.json")
        family = by_model_type(raw.get("model_type"), path / "config.json")
        found = read_config(family, read_within(family, raw))
    return found.with_execution(dtype="bfloat16", scan_layers=True)


def run(config: Config, console: Console) -> RunDirectory:
    """Compile the steps for the machine; what they need is in the record of the directory."""
    topology = machines.parse_topology(config.topology)
    devices = machines.described(topology)
    vocab = config.train.model.vocab
    make_mesh(config.train.mesh_shape, devices)  # refused before anything is written
    for pulled in levers(config.train).values() if config.levers else ():
        check_fits(pulled.mesh_shape, pulled.model, pulled.batch_size, pulled.parts)
    directory = RunDirectory(config.workdir, "plan", of=[Path(config.model).name])
    directory.write("config.json", config)
    console.print(f"run      {directory.path}", soft_wrap=True, markup=False)
    about = {
        "model": config.model,
        "shape": machines.shape_of(config.train.architecture(vocab)),
        "topology": str(topology),
        "devices": len(devices),
        "chip": topology.chip,
        "steps": {},
    }
    with directory.record("plan", **about) as record:
        if config.levers:
            record["levers"] = {}
            for name, pulled in levers(config.train).items():
                with console.status(f"compiling the training step with {name}"):
                    record["levers"][name] = needed("train", pulled, topology, devices)
                console.print(f"{name}: {fits(plain(record['levers'][name]))}", markup=False)
        for name in () if config.levers else config.only:
            with console.status(f"compiling the {name} step for {len(devices)} devices"):
                record["steps"][name] = needed(name, config.train, topology, devices)
            console.print(f"{name}: {fits(plain(record['steps'][name]))}", markup=False)
        train = record["steps"].get("train")
        if train and train["fits"] is False:
            with console.status("looking for what fits"):
                record["suggestion"] = _search(config, topology, devices, train)
    found = read_record(directory.path)
    show(console, REPORT.sections(found))
    showing.publish(console, directory.path, found, REPORT)
    return directory


def needed(
    name: str, config: TrainConfig, topology: machines.Topology, devices: list[Any]
) -> dict[str, Any]:
    """What a step needs on each device, and the least time it can take."""
    vocab, mesh = config.model.vocab, make_mesh(config.mesh_shape, devices)
    begun = time.perf_counter()
    if name == "train":
        lowered = machines.train_program(config, vocab, mesh)
        flops, useful = machines.train_flops(config, vocab), machines.model_flops(config, vocab)
    else:
        lowered = machines.analysis_program(config, vocab, mesh, topology.kind)
        flops, useful = machines.analysis_flops(config, vocab, topology.kind), None
    memory, moved = machines.compiled(lowered)
    chip = topology.chip
    of_one = None if useful is None else useful / config.mesh_shape.devices
    flops = machines.on_each(flops, config, vocab, name == "train")
    return {
        "config": _how(config),
        "compile_seconds": time.perf_counter() - begun,
        "memory": memory,
        "room": chip and chip.hbm,
        "fits": None if chip is None else memory.arguments is not None and memory.peak <= chip.hbm,
        "flops": flops,
        "model_flops": of_one,
        "traffic": moved and machines.described_traffic(moved),
        "roofline": machines.roofline(chip, flops, moved, of_one) if chip and moved else None,
    }


def levers(config: TrainConfig) -> dict[str, TrainConfig]:
    """A run without levers, with each of them, and with all."""
    plain_run = launch.override(config, PLAIN)
    return {name: launch.override(plain_run, dict(lever)) for name, lever in LEVERS.items()}


def _how(config: TrainConfig) -> dict[str, Any]:
    names = ("mesh", "batch_size", "accumulate", "seq_len", "variant", "param_dtype")
    return {
        **{name: getattr(config, name) for name in names},
        **vars(config.model.execution),
        "window": config.model.window,
        "optimizer": config.optimizer.optimizer,
        "moment_dtype": config.optimizer.moment_dtype,
    }


def _search(
    config: Config, topology: machines.Topology, devices: list[Any], train: dict[str, Any]
) -> dict[str, Any] | None:
    """The nearest alternative that fits as compiled, of the first that are expected to."""
    asked, peak, room = config.train, train["memory"].peak, train["room"]
    for _ in range(TRIES):
        nearest = fitting.suggestion(asked, asked.model.vocab, len(devices), peak, room)
        if nearest is None:
            break
        asked = nearest
        found = needed("train", asked, topology, devices)
        if found["fits"]:
            return found
        peak = found["memory"].peak
    return None


# ----------------------------------------------------------------------------- the binary


def main() -> None:
    if not FLAGS.redraw:
        jax.config.update("jax_platforms", "cpu")  # no other device is needed, or waited for
    showing.run_or_redraw("experiments.plan", run, config_from_flags, REPORT)


def config_from_flags() -> Config:
    """The plan that the flags ask for.

    Raises:
      InputError: a flag's value is not accepted.
    """
    given = {name: FLAGS[name].value for name in FLAGS}
    own = {each.name: given[each.name] for each in fields(Config) if each.name != "train"}
    config = launch.override(Config(), own)
    for name in PULLED if config.levers else ():
        if given[name] is not None:
            raise InputError(name, as_flag(given[name]), "without --levers", "no effect")
    if given["mesh"] is None:
        devices = machines.described(machines.parse_topology(config.topology))
        given["mesh"] = f"data={len(devices)}"
    model = architecture(config.model)
    base = replace(
        config.train, model=replace(model, context=ModelConfig.context), variant=model.variant
    )
    return replace(config, train=launch.override(base, given))


def define_flags() -> None:
    """Define the flags of this binary."""
    flags.DEFINE_string("variant", None, "a row of core/attention")
    showing.define_tables()
    launch.define_overrides(Config, skip=NO_FLAG)


if __name__ == "__main__":
    define_flags()
    launch.launch(main, OFTEN, [Config()], tpu_compiler=True)
