"""What do outliers cost when a model is quantised or pruned?

python -m experiments.compress --model=runs/variants/RUN                   # all of its models
python -m experiments.compress --model=RUN --variant=softmax --methods=w8a8,smooth-w8a8,gptq-w4
python -m experiments.compress --model=gpt2 --corpus=PATH --methods=w8-tensor,wanda-2:4
python -m experiments.compress --model=smollm2-135m --corpus=PATH --conversions=bound,prefix+bound
python -m experiments.compress --redraw=runs/compress/RUN
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from rich.console import Console

from sysout_jax import converting
from sysout_jax.analysis.compress import allocation, schemes
from sysout_jax.analysis.compress.allocation import Boost
from sysout_jax.analysis.compress.calibration import PRODUCTS
from sysout_jax.analysis.compress.compressed import Compressed, losses_by_token
from sysout_jax.analysis.compress.compression import (
    ALPHA,
    Compressor,
    check_alpha,
    check_scheme,
    present,
    wide,
)
from sysout_jax.analysis.compress.noise import noise
from sysout_jax.analysis.compress.schemes import Rounding, Scheme
from sysout_jax.analysis.intervene.rotated_stream import check_rotates
from sysout_jax.analysis.locate.first_token import LEAST_TEXTS, enough
from sysout_jax.analysis.statistics import bootstrap_interval
from sysout_jax.converting import Conversion
from sysout_jax.core.attention import VARIANTS
from sysout_jax.errors import InputError, at_least, finite, one_of
from sysout_jax.model.decoder import parameter_count
from sysout_jax.model.model import Model
from sysout_jax.results import RunDirectory
from sysout_jax.rotating import BASES, rotate

from .cli import grid, launch, showing
from .cli.grid import Cells, Place, check_values
from .inputs import identity
from .inputs.evaluation_text import SEQUENCES, WIKITEXT2, Text, Texts, corpus_name
from .inputs.model_selection import Choice, Chosen, every, origins
from .reports.compress_report import REPORT

# What --help explains.
OFTEN = (
    "model", "corpus", "methods", "conversions", "variant", "seed", "sequences", "seq_len",
    "workdir",
)  # fmt: skip
METHODS = (
    "w8-tensor", "zero-w8-tensor", "w8", "w4", "w4-g32", "w3", "wnf4", "gptq-w4", "awq-w4",
    "w8a8-tensor", "w8a8", "w8a8-tensor-minmax", "w8a8-tensor-percentile", "w8a8-tensor-mse",
    "smooth-w8a8-tensor-minmax", "w6a6", "w4a8", "w4a4", "rotate-w4a4", "rotate-gptq-w4a4", "kv4",
    "we4m3ae4m3", "magnitude-0.5", "global-0.5", "wanda-0.5", "wanda-2:4", "sparsegpt-0.5",
    "sparsegpt-2:4",
)  # fmt: skip
WAYS = (*converting.WEAK, *BASES, *(f"{way}+{base}" for way in converting.WEAK for base in BASES))
SEED = 0  # of that basis
WORST, CONTEXT = 10, 12  # tokens that a record names of each method, and those before each
SMOKE = {
    "sequences": 2, "calibration": 4, "batch": 2, "methods": ("w8a8", "gptq-w4", "wanda-2:4"),
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Everything that determines a comparison of compression methods."""

    choice: Choice = field(default_factory=Choice)
    corpus: str | None = None  # text to evaluate on; None: a run's own, else Python's source
    calibration_corpus: str | None = None  # text to calibrate on; None: the training part of corpus
    protocol: str = SEQUENCES  # or wikitext2: all of --corpus=PATH in windows of 2,048 tokens
    token_dtype: str | None = None  # of tokens:DIR: uint16, uint32, uint64; None: told by its ids
    methods: tuple[str, ...] = METHODS  # as analysis/compress/schemes.py names them
    conversions: tuple[str, ...] = ()  # leave, bound, prefix, prefix+bound; fold, rotate; +rotate
    boost: tuple[str, ...] = ()  # more bits by sensitivity, kurtosis, first_last, random:SEED
    rungs: int = 2  # of the ladder of bits and groups, that what is boosted climbs
    top: int | None = None  # parts that are boosted; None: all that stand out
    budget: float | None = None  # bits a weight; None: no limit
    sites: tuple[str, ...] = tuple(PRODUCTS)  # inputs of products to compress: attn_norm, down_in
    alpha: float = ALPHA  # of SmoothQuant: 0 leaves weights even, 1 activations
    sequences: int = 64  # of the validation part, to evaluate on
    calibration: int = 32  # sequences of the training part, to calibrate on
    seq_len: int | None = None  # T, of each; None: 64, or the learned positions if fewer
    batch: int = 8  # sequences that are run together
    place: Place = field(default_factory=Place)

    def __post_init__(self) -> None:
        for name, least in (("sequences", 1), ("calibration", 1), ("seq_len", 2), ("batch", 1)):
            at_least(least, name, getattr(self, name))
        check_alpha(self.alpha)
        made = self.schemes.values()
        smooth = any(isinstance(how, Rounding) and how.basis in schemes.SMOOTH for how in made)
        if self.alpha != ALPHA and not smooth:
            raise InputError("alpha", self.alpha, "with a smooth method in --methods", "no effect")
        self._check_protocol()
        self._check_boost()
        present(self.sites)
        check_values("methods", self.methods)
        for way in self.conversions:
            one_of("conversions", way, WAYS)
        if self.conversions:
            check_values("conversions", self.conversions)
        if self.learned:
            at_least(LEAST_TEXTS, "calibration", self.calibration)

    @property
    def schemes(self) -> dict[str, Scheme]:
        """What the methods name."""
        return {method: schemes.scheme(method) for method in self.methods}

    @property
    def learned(self) -> tuple[str, ...]:
        """The conversions that learn from text: a basis alone does not."""
        return tuple(way for way in self.conversions if way not in BASES)

    @property
    def parts(self) -> tuple[str, ...]:
        """The methods, each also with every boost, as "w3-g64+sensitivity"."""
        after = ("", *(f"+{kind}" for kind in self.boost))
        return tuple(method + each for method in self.methods for each in after)

    def _check_boost(self) -> None:
        at_least(1, "rungs", self.rungs)
        at_least(1, "top", self.top)
        finite("budget", self.budget)
        if self.top is not None and self.budget is not None:
            raise InputError("budget", self.budget, "without --top", "both say how many")
        for kind in self.boost:
            allocation.check_kind(kind)
        for name in ("rungs", "top", "budget"):
            if not self.boost and getattr(self, name) != getattr(Config, name):
                raise InputError(name, getattr(self, name), "with --boost", "no effect")
        if self.boost:
            check_values("boost", self.boost)
        for method, how in self.schemes.items() if self.boost else ():
            allocation.check_climbs(method, how, self.budget)

    def _check_protocol(self) -> None:
        one_of("protocol", self.protocol, (SEQUENCES, WIKITEXT2))
        calibrated = [method for method, how in self.schemes.items() if how.calibrated]
        measured = [kind for kind in self.boost if kind not in allocation.OF_WEIGHTS]
        needing = [*calibrated, *self.learned, *measured]
        if self.calibration_corpus is not None and not needing:
            accepted = "with a method or a conversion that learns from text"
            raise InputError("calibration_corpus", self.calibration_corpus, accepted, "no effect")
        if self.protocol == SEQUENCES:
            return
        for name, usual in (("sequences", Config.sequences), ("seq_len", None)):
            if getattr(self, name) != usual:
                why = f"no effect with --protocol={self.protocol}"
                raise InputError(name, getattr(self, name), "without it", why)
        if self.corpus is None:
            raise InputError("corpus", None, "PATH of the split's text", "not given")
        if needing and self.calibration_corpus is None:
            why = f"not given, and {', '.join(needing)} learn from text"
            raise InputError("calibration_corpus", None, "text that is not of the split", why)


def run(config: Config, console: Console) -> RunDirectory:
    """Compress every model by every method; what is finished is kept when interrupted."""
    chosen = list(every(config.choice))
    texts = Texts(
        config.corpus, config.calibration, config.sequences, config.seq_len, console,
        config.token_dtype, config.protocol, config.calibration_corpus,
    )  # fmt: skip
    for each in chosen:
        for how in config.schemes.values():
            check_scheme(each.model.config, how, config.sites)
    read = [texts.of(each) for each in chosen]  # before any work: text missing or too short
    if any(how.compensated for how in config.schemes.values()):
        _say_few(config, chosen, read, console)
    for each, text in zip(chosen, read, strict=True):
        _check_convertible(config, each, text)

    @lru_cache(maxsize=1)  # cells of one model follow each other, and one at a time is in memory
    def converted(at: int) -> dict[str, Conversion]:
        console.print("converting", markup=False)
        return _converted(chosen[at], read[at])

    def made(at: int, way: str) -> Conversion:
        if way in converting.WEAK:
            return converted(at)[way]
        of, _, base = way.rpartition("+")
        return _rotated(converted(at)[of] if of else Conversion(chosen[at].model, "none", ()), base)

    @lru_cache(maxsize=1)
    def judge(at: int, way: str | None) -> _Judge:
        return _Judge(config, chosen[at], read[at], None if way is None else (way, made(at, way)))

    def gathered(there: Cells) -> dict[str, Any]:
        models = grid.by_model(there, "methods", config.parts)
        # Of another shard a converted model may be there before the model that it was.
        trained = {(m["name"], m["seed"]) for m in models if "trained" not in m}
        models = [m for m in models if (m.get("trained", m["name"]), m["seed"]) in trained]
        others = sorted({method for model in models for method in model["methods"]})
        return {"methods": list(dict.fromkeys((*config.parts, *others))), "models": models}

    named = {
        grid.part_name(grid.part_name(each.cell, way), method): (at, way, method)
        for at, each in enumerate(chosen)
        for way in (None, *config.conversions)
        for method in (None, *config.parts)
    }
    about = grid.common(config, "methods", "conversions", "boost", "variant", "seed")
    made_of = [identity.of(each, *text.rows) for each, text in zip(chosen, read, strict=True)]
    # Which tokens losses are of depends on whether there are any.
    about["conversions"] = "some" if config.learned else "none"
    return grid.run(
        config, "compress", named, lambda cell, log: judge(*cell[:2]).found(cell[2]),
        lambda cell: made_of[cell[0]], about, gathered, REPORT, console,
        described={
            "experiment": "compression", "config": grid.told(config), "origins": origins(chosen),
        },
        of=[each.name for each in chosen],
    )  # fmt: skip


def _say_few(config: Config, chosen: list[Chosen], read: list[Text], console: Console) -> None:
    """Say so where calibration has fewer tokens than what it tells apart."""
    most = max(wide(each.model.config, site) for each in chosen for site in config.sites)
    tokens = min(text.calibration[:, :-1].size for text in read)
    if tokens < most:
        console.print(
            f"note     {tokens:,} calibration tokens cannot tell {most:,} inputs of a product "
            "apart: more with --calibration, --seq_len",
            soft_wrap=True, markup=False, highlight=False,
        )  # fmt: skip


def _check_convertible(config: Config, chosen: Chosen, text: Text) -> None:
    """Refuse text on which a model and its conversions cannot be compared, and a model whose stream
    has no other basis."""
    if any(way.endswith(BASES) for way in config.conversions):
        try:
            check_rotates(chosen.model.config)
        except InputError as error:
            raise InputError(f"{chosen.name}: {error}") from error
    if not config.learned:
        return
    enough(text.calibration)
    if chosen.bos and config.protocol == WIKITEXT2:
        why = f"windows of {WIKITEXT2} have no BOS, and a converted {chosen.name} always reads it"
        raise InputError("conversions", None, f"with --protocol={SEQUENCES}", why)


def _converted(chosen: Chosen, text: Text) -> dict[str, Conversion]:
    rows = text.calibration[: converting.TEXTS]
    return converting.conversions(chosen.model, rows, None if chosen.bos else ())


def _rotated(made: Conversion, base: str) -> Conversion:
    """A conversion with its stream in another basis; where nothing was converted, that alone."""
    said = "the gains of norms are in the weights"
    if base == "rotate":
        said += f", the residual stream in a random basis (so.rotate, seed {SEED})"
    model = rotate(made.model, SEED if base == "rotate" else None)
    if made.kind not in converting.CONVERTED:
        return Conversion(model, "rotated", (said,))
    return replace(made, model=model, said=(*made.said, said))


class _Judge:
    """One model, as trained or converted, to be compressed by one method after the other.

    Losses of all that are compared are of the same tokens: not of those after a BOS that is a key
    of a converted model.
    """

    def __init__(
        self, config: Config, chosen: Chosen, text: Text, made: tuple[str, Conversion] | None
    ) -> None:
        self.config, self.chosen, self.made = config, chosen, made
        self.model: Model = chosen.model if made is None else made[1].model
        begin = int(bool(config.learned) and text.begun_by_bos(chosen))
        cut = begin if made is not None and made[1].kind == "prefix" else 0
        self.rows, self.calibration = text.evaluation[:, cut:], text.calibration[:, cut:]
        self.skip = begin - cut
        self.compressor = Compressor(
            self.model.config, self.model.params, self.calibration, config.sites, config.alpha,
            config.batch,
        )  # fmt: skip
        self.by_token = self._losses(Compressed(self.model.params))
        self.before = self.by_token.mean(axis=1)
        self.boosts: dict[str, dict[str, Boost]] = {}  # of each method, found once

    def found(self, method: str | None) -> dict[str, Any]:
        """What the model loses by a method; None: what it is before."""
        name = self.chosen.name if self.made is None else f"{self.chosen.name}+{self.made[0]}"
        about = {"name": name, "seed": self.chosen.seed}
        if method is None:
            return about | self._uncompressed()
        compressed, allocated = self._compressed(method)
        by_token = self._losses(compressed)
        after = by_token.mean(axis=1)
        found = {
            **_quality(after),
            "change": bootstrap_interval(after - self.before),
            "zeros": compressed.zeros,
            "worst": self._worst(by_token),
            **allocated,
        }
        return about | {"part": method, "found": found}

    def _compressed(self, part: str) -> tuple[Compressed, dict[str, Any]]:
        """The model under a method, and what of it climbs by a boost."""
        method, _, kind = part.partition("+")
        how, config = schemes.scheme(method), self.config
        if not config.boost:
            compressed = self.compressor.compress(how)
            return compressed, {} if compressed.bits is None else {"bits": compressed.bits}
        assert isinstance(how, Rounding)  # as the config has checked
        if not kind:
            return self.compressor.compress(how), {"bits": schemes.bits(how)}
        if method not in self.boosts:
            self.boosts[method] = allocation.boosts(
                self.compressor, how, config.boost, self.calibration, config.rungs, config.top,
                config.budget,
            )  # fmt: skip
        boost = self.boosts[method][kind]
        higher = allocation.schemes_of(how, boost, config.rungs)
        found = {
            "bits": boost.bits, "boosted": boost.layers, "stands_out": boost.z,
            "above": allocation.STANDS_OUT,
        }  # fmt: skip
        return self.compressor.compress(how, higher), found

    def _uncompressed(self) -> dict[str, Any]:
        model, config = self.model, self.config
        noises = noise(
            model.config, model.params, self.rows[:, :-1], sites=config.sites, batch=config.batch
        )
        label = VARIANTS[model.config.variant].label
        of = {} if self.made is None else {
            "trained": self.chosen.name, "conversion": self.made[0], "kind": self.made[1].kind,
            "said": list(self.made[1].said),
        }  # fmt: skip
        return of | {
            "variant": model.config.variant,
            "label": label if self.made is None else f"{label}, {self.made[0]}",
            "corpus": corpus_name(config.corpus, self.chosen),
            "parameters": parameter_count(model.config),
            "tokens": {
                "calibration": self.calibration.size,
                "evaluation": self.rows[:, 1 + self.skip :].size,
            },
            **_quality(self.before),
            "noise": list(noises),
        }  # fmt: skip

    def _worst(self, after: np.ndarray) -> list[dict[str, Any]]:
        """The tokens whose loss rises most, each after those that it is predicted from."""
        rise = np.where(np.isfinite(after), after - self.by_token, np.inf)
        tokenizer, found = self.model.tokenizer, []
        for flat in np.argsort(-rise, axis=None, kind="stable")[:WORST]:
            row, at = np.unravel_index(flat, rise.shape)
            end = int(at) + self.skip + 1
            ids = self.rows[row, max(0, end - CONTEXT) : end + 1]
            pieces = [str(i) for i in ids] if tokenizer is None else tokenizer.pieces(ids)
            found.append(
                {
                    "sequence": int(row), "position": end, "token": pieces[-1],
                    "after_text": "".join(pieces[:-1]) if tokenizer else " ".join(pieces[:-1]),
                    "before": float(self.by_token[row, at]), "after": float(after[row, at]),
                }
            )  # fmt: skip
        return found

    def _losses(self, compressed: Compressed) -> np.ndarray:
        config = self.config
        return losses_by_token(self.model.config, compressed, self.rows, config.batch, self.skip)


def _quality(losses: np.ndarray) -> dict[str, Any]:
    mean = float(losses.mean())
    return {"loss": mean, "perplexity": float(np.exp(mean)), "losses": losses}


# ----------------------------------------------------------------------------- the binary


config_from_flags = partial(launch.from_flags, Config(), SMOKE)
define_flags = partial(grid.define_flags, Config, "two sequences and three methods, in seconds")


def main() -> None:
    showing.run_or_redraw("experiments.compress", run, config_from_flags, REPORT)


if __name__ == "__main__":
    define_flags()
    launch.launch(main, OFTEN, [Config()])
