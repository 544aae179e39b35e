"""What do outliers cost when a model is quantised or pruned?

python -m experiments.compress --model=runs/variants/RUN                   # all of its models
python -m experiments.compress --model=RUN --variant=softmax --methods=w8a8,smooth-w8a8,gptq-w4
python -m experiments.compress --model=gpt2 --corpus=PATH --methods=w8-tensor,wanda-2:4
python -m experiments.compress --redraw=runs/compress/RUN
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from absl import flags
from rich.console import Console

from sysout_jax.analysis.compress import schemes
from sysout_jax.analysis.compress.calibration import PRODUCTS
from sysout_jax.analysis.compress.compression import ALPHA, Compressed, Compressor, losses, present
from sysout_jax.analysis.compress.noise import noise
from sysout_jax.analysis.statistics import bootstrap_interval
from sysout_jax.core.attention import VARIANTS
from sysout_jax.errors import InputError
from sysout_jax.model.config import at_least
from sysout_jax.model.decoder import parameter_count
from sysout_jax.results import RunDirectory, read_record

from .cli import launch
from .cli.progress import model_bar
from .inputs.evaluation_text import Texts
from .inputs.model_selection import Choice, Chosen, every
from .reports.compress_report import markdown_tables, print_tables

FLAGS = flags.FLAGS
# What --help explains.
OFTEN = ("model", "corpus", "methods", "variant", "seed", "sequences", "seq_len", "workdir")
METHODS = (
    "w8-tensor", "zero-w8-tensor", "w8", "w4", "w4-g32", "w3", "wnf4", "gptq-w4", "awq-w4",
    "w8a8-tensor", "w8a8", "w8a8-tensor-minmax", "w8a8-tensor-percentile", "w8a8-tensor-mse",
    "smooth-w8a8-tensor-minmax", "w6a6", "w4a8", "w4a4", "rotate-w4a4", "rotate-gptq-w4a4", "kv4",
    "we4m3ae4m3", "magnitude-0.5", "global-0.5", "wanda-0.5", "wanda-2:4", "sparsegpt-0.5",
    "sparsegpt-2:4",
)  # fmt: skip
SMOKE = {"sequences": 2, "calibration": 2, "batch": 2}
SMOKE_METHODS = ("w8a8", "gptq-w4", "wanda-2:4")


@dataclass(frozen=True)
class Config:
    """Everything that determines a comparison of compression methods."""

    choice: Choice = field(default_factory=Choice)
    corpus: str | None = None  # text to calibrate and evaluate on; None: what the run trained on
    token_dtype: str | None = None  # of tokens:DIR: uint16, uint32, uint64; None: told by its ids
    methods: tuple[str, ...] = METHODS  # as sysout_jax/analysis/schemes.py names them
    sites: tuple[str, ...] = tuple(PRODUCTS)  # inputs of products to compress: attn_norm, down_in
    alpha: float = ALPHA  # of SmoothQuant: 0 leaves weights even, 1 activations
    sequences: int = 64  # of the validation part, to evaluate on
    calibration: int = 32  # sequences of the training part, to calibrate on
    seq_len: int | None = None  # T, of each; None: 64, or the learned positions if fewer
    batch: int = 8  # sequences that are run together
    workdir: str = "runs"  # where run directories go

    def __post_init__(self) -> None:
        for name, least in (("sequences", 1), ("calibration", 1), ("seq_len", 2), ("batch", 1)):
            at_least(least, name, getattr(self, name))
        if not 0.0 <= self.alpha <= 1.0:
            raise InputError("alpha", self.alpha, "a number from 0 to 1")
        if self.choice.stream:
            raise InputError("stream", accepted="without it, compression takes a model in memory")
        present(self.sites)
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise InputError("methods", ",".join(self.methods), "at least one, none of them twice")
        for method in self.methods:
            schemes.scheme(method)


def run(config: Config, console: Console) -> RunDirectory:
    """Compress every model by every method; what is finished is kept when interrupted."""
    chosen = list(every(config.choice))
    texts = Texts(
        config.corpus, config.calibration, config.sequences, config.seq_len, console,
        config.token_dtype,
    )  # fmt: skip
    for each in chosen:
        texts.of(each)  # before any work: text that is missing or too short
    directory = RunDirectory(config.workdir, "compress", of=[each.name for each in chosen])
    directory.write("config.json", config)
    console.print(f"run      {directory.path}", soft_wrap=True, markup=False)
    with directory.record("compression", methods=list(config.methods), models=[]) as record:
        for each in chosen:
            _one(config, each, texts, record["models"], console)
    found = read_record(directory.path)
    print_tables(console, found)
    launch.publish(console, directory.path, found)
    return directory


def _one(config: Config, chosen: Chosen, texts: Texts, found: list[Any], console: Console) -> None:
    """Add what one model loses to the record, method by method."""
    _, calibration, rows = texts.of(chosen)
    model = chosen.model
    compressor = Compressor(
        model.config, model.params, calibration, config.sites, config.alpha, config.batch
    )
    before = losses(model.config, Compressed(model.params), rows, config.batch)
    entry: dict[str, Any] = {
        "name": chosen.name,
        "seed": chosen.seed,
        "variant": model.config.variant,
        "label": VARIANTS[model.config.variant].label,
        "corpus": config.corpus or chosen.corpus,
        "parameters": parameter_count(model.config),
        "tokens": {"calibration": calibration.size, "evaluation": rows[:, 1:].size},
        "loss": float(before.mean()),
        "perplexity": float(np.exp(before.mean())),
        "methods": {},
    }
    found.append(entry)
    with model_bar(console) as bar:
        task = bar.add_task(chosen.described, total=len(config.methods), state="")
        for method in config.methods:
            bar.update(task, state=method)
            compressed = compressor.compress(schemes.scheme(method))
            after = losses(model.config, compressed, rows, config.batch)
            entry["methods"][method] = {
                "loss": float(after.mean()),
                "perplexity": float(np.exp(after.mean())),
                "change": bootstrap_interval(after - before),
                "zeros": compressed.zeros,
            }
            bar.advance(task)
        bar.update(task, state=f"perplexity {entry['perplexity']:.4g} before")
    entry["noise"] = [
        asdict(each)
        for each in noise(
            model.config, model.params, rows[:, :-1], sites=config.sites, batch=config.batch
        )
    ]


# ----------------------------------------------------------------------------- the binary


def main() -> None:
    console = launch.console_for_tables()
    if FLAGS.redraw:
        launch.redraw("experiments.compress", console, print_tables, markdown_tables)
    else:
        run(config_from_flags(), console)


def config_from_flags() -> Config:
    """The config that the flags ask for.

    Raises:
      InputError: a flag's value is not accepted.
    """
    words = ("methods", "sites")
    given = {name: FLAGS[name].value for name in FLAGS if name not in words}
    base = Config(methods=SMOKE_METHODS) if FLAGS.smoke else Config()
    config = launch.override(base, SMOKE if FLAGS.smoke else {})
    lists = {name: FLAGS[name].value for name in words}
    named: dict[str, Any] = {name: tuple(value) for name, value in lists.items() if value}
    return launch.override(replace(config, **named), given)


def define_flags() -> None:
    """Define the flags of this binary."""
    flags.DEFINE_bool("smoke", False, "two sequences and three methods, in seconds")
    launch.define_tables()
    launch.define_overrides(Config)
    flags.adopt_module_key_flags(launch)  # so that --help lists them


if __name__ == "__main__":
    define_flags()
    launch.launch(main, OFTEN, [Config()])
