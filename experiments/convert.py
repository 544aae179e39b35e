"""The same model without its sink's massive state, trained no further.

python -m experiments.convert --model=smollm2-135m --out=PLACE --corpus=PATH
python -m experiments.convert --model=RUN --variant=softmax --out=PLACE --weak=leave
python -m experiments.convert --model=gpt2 --out=PLACE --weak=prefix --export=prefix
python -m experiments.convert --redraw=runs/convert/RUN
"""

import os
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from sysout_jax import converting
from sysout_jax.analysis.intervene.before_after import BeforeAfter
from sysout_jax.converting import Conversion, convert
from sysout_jax.errors import InputError, at_least, one_of
from sysout_jax.families.prefix_cache import export_prefix, prefix_tensors
from sysout_jax.model.model import Model, token_ids
from sysout_jax.results import RunDirectory
from sysout_jax.training.checkpoint import load, save

from .cli import grid, launch, showing
from .cli.grid import Place
from .inputs import identity
from .inputs.evaluation_text import Text, Texts, corpus_name, length_of
from .inputs.model_selection import Choice, Chosen, choose, origins
from .reports.convert_report import REPORT

# What --help explains.
OFTEN = (
    "model", "corpus", "out", "weak", "prefix", "check", "export", "calibration", "sequences",
    "seq_len", "workdir",
)  # fmt: skip
EXPORTS = ("none", "prefix")
NEW = "a directory that does not exist"
CACHE = "prefix.safetensors"  # in the model's directory
SMOKE = {"sequences": 4, "calibration": 4, "seq_len": 32}


@dataclass(frozen=True)
class Config:
    """Everything that determines a conversion and what it is compared on."""

    choice: Choice = field(default_factory=Choice)
    out: str = ""  # directory of the converted model, which must not exist
    corpus: str | None = None  # text to compare on; None: a run's own, else Python's source
    token_dtype: str | None = None  # of tokens:DIR: uint16, uint32, uint64; None: told by its ids
    prefix: tuple[int, ...] = ()  # token ids to stand before every text; none: BOS if it does
    weak: str = "bound"  # weaker sinks: bound, prefix, prefix+bound, leave
    check: bool = True  # compare loss, measures and generated text before and after
    export: str = "none"  # prefix: keys and values for transformers too, as prefix.safetensors
    calibration: int = converting.TEXTS  # sequences of the training part, to calibrate on
    sequences: int = 16  # of the validation part, to compare on
    seq_len: int | None = None  # T, of each; None: 256, or the learned positions if fewer
    place: Place = field(default_factory=Place)

    def __post_init__(self) -> None:
        for name in ("calibration", "sequences", "seq_len"):
            at_least(1, name, getattr(self, name))
        one_of("weak", self.weak, converting.WEAK)
        one_of("export", self.export, EXPORTS)


def run(config: Config, console: Console) -> RunDirectory:
    """Convert a model, save it, and record what was found and done."""
    out = Path(os.path.expanduser(config.out))
    _check_out(config, out)
    chosen = choose(config.choice)
    if config.prefix:
        token_ids("prefix", [config.prefix], "B S", chosen.model.config.vocab)
    text = _text(config, chosen, console)

    def found(each: Chosen, log: grid.Log) -> dict[str, Any]:
        prefix = config.prefix or (None if each.bos else ())
        check = text.evaluation if config.check else None
        made = convert(
            each.model, text.calibration, prefix, config.weak, check,
            lambda what: console.print(f"  {what}", markup=False, highlight=False),
        )  # fmt: skip
        if made.kind in converting.CONVERTED:
            _write(config, each, made, out)
        sink = made.model.config.sink
        if config.export == "prefix" and sink is not None and sink.bounded:
            without = f"{CACHE} leaves the bound on down_in out; what is checked here has it"
            made = replace(made, said=(*made.said, without))
        said = out if out.exists() else "not written, as nothing was converted"
        console.print(f"model    {said}", soft_wrap=True, markup=False)
        return _recorded(config, each, text, made)

    return grid.run(
        config, "convert", {chosen.cell: chosen}, found,
        lambda each: identity.of(each, *text.rows), grid.common(config),
        lambda there: {"models": there.all()}, REPORT, console,
        described={"config": grid.common(config, "out"), "origins": origins([chosen])},
        of=[chosen.name],
    )  # fmt: skip


def _check_out(config: Config, out: Path) -> None:
    """Refuse a directory of something else, or that the run of this name wrote and that is gone."""
    begun = config.place.begun("convert", grid.common(config)) if config.out else None
    for cell in begun.all() if begun else ():
        if cell["kind"] in converting.CONVERTED and not out.exists():
            why = f"not there any more, and the run {config.place.name} is finished"
            raise InputError("out", out, "another --name, to convert again", why)
    if not config.out or (begun is None and out.exists()):
        raise InputError("out", config.out or None, NEW, "exists" if config.out else "not given")


def _text(config: Config, chosen: Chosen, console: Console) -> Text:
    length = length_of(config.seq_len, chosen.model.config, converting.LENGTH)
    return Texts(
        config.corpus, config.calibration, config.sequences, length, console, config.token_dtype
    ).of(chosen)


def _recorded(config: Config, chosen: Chosen, text: Text, made: Conversion) -> dict[str, Any]:
    """What the record says of a conversion."""
    first, sink, tokenizer = made.first, made.model.config.sink, chosen.model.tokenizer
    return {
        "name": chosen.name,
        "seed": chosen.seed,
        "corpus": corpus_name(config.corpus, chosen),
        "tokens": {"calibration": text.calibration.size, "check": text.evaluation[:, 1:].size},
        "kind": made.kind,
        "said": list(made.said),
        "prefix": _pieces(tokenizer, made.prefix),
        "sink": None if sink is None else asdict(sink),
        "state": None if first is None else first.state,
        "spread": None if first is None else dict(first.spread),
        "rows": made.rows,
        "treatments": [asdict(each) for each in made.treatments],
        "check": None if made.check is None else _check(tokenizer, made.check),
    }


def _check(tokenizer: Any, found: BeforeAfter) -> dict[str, Any]:
    generated = [
        [tokenizer.decode(ids) if tokenizer else list(ids) for ids in of] for of in found.generated
    ]
    return {**asdict(found), "generated": generated}


def _pieces(tokenizer: Any, ids: tuple[int, ...]) -> list[Any]:
    return list(ids) if tokenizer is None else list(tokenizer.pieces(np.array(ids, np.int32)))


def _write(config: Config, chosen: Chosen, made: Conversion, out: Path) -> None:
    """The converted model as a training run would have written it; a run that goes on may have."""
    model = made.model
    if out.exists() and not _same(out, model):
        raise InputError("out", out, NEW, "exists, and is not what this run writes")
    if config.export == "prefix":
        prefix_tensors(model)  # before anything is written: whether there are any
    params = jax.tree.map(lambda x: x[None], model.params)
    if not out.exists():
        save(out, model.config, params, [chosen.seed or 0], model.tokenizer)
    if config.export == "prefix":
        export_prefix(model, out / CACHE)


def _same(directory: Path, model: Model) -> bool:
    """Whether a model directory holds this model."""
    try:
        there = load(directory)
    except InputError:
        return False
    return there.config == model.config and all(
        map(np.array_equal, jax.tree.leaves(there.params), jax.tree.leaves(model.params))
    )


# ----------------------------------------------------------------------------- the binary


config_from_flags = partial(launch.from_flags, Config(), SMOKE)
define_flags = partial(grid.define_flags, Config, "a few short sequences")


def main() -> None:
    showing.run_or_redraw("experiments.convert", run, config_from_flags, REPORT)


if __name__ == "__main__":
    define_flags()
    launch.launch(main, OFTEN, [Config()])
