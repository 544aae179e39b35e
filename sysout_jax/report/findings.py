"""All analyses of one model and text, as results and as a record."""

import html
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from sysout_jax import plots
from sysout_jax.analysis.intervene.interventions import Interventions, interventions
from sysout_jax.analysis.locate.existence import Existence, existence
from sysout_jax.analysis.locate.positions import Positions, positions
from sysout_jax.analysis.locate.relations import Relations, relations
from sysout_jax.analysis.locate.scan import (
    QUERIES_AT_ONCE,
    Progress,
    Scan,
    Thresholds,
    default_batch_size,
    scan,
)
from sysout_jax.analysis.locate.weights import WeightScan, weight_scan
from sysout_jax.analysis.measure.dimensions import Dimensions, chosen_positions, dimensions
from sysout_jax.analysis.measure.dynamics import Dynamics, dynamics
from sysout_jax.analysis.measure.lifecycle import LifeCycle, lifecycle
from sysout_jax.analysis.measure.roles import Roles, roles
from sysout_jax.analysis.measure.scorecard import Measured, measured
from sysout_jax.analysis.measure.seeds import Seeds, across_seeds
from sysout_jax.data.prompt import encode_prompt
from sysout_jax.errors import InputError, at_least, one_of
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params
from sysout_jax.model.model import Model, check_model, token_ids
from sysout_jax.report.page import CAPTIONS, write_page
from sysout_jax.report.tables import tables
from sysout_jax.report.words import headline
from sysout_jax.results import plain, provenance, write_json
from sysout_jax.showing import Table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PROMPT_TOKENS = 256  # of a prompt: what existence and life cycle draw token by token
SHOWN_DIGITS = 3  # significant, of what figures draw


@dataclass(frozen=True, eq=False)
class AnalysisInputs:
    """What the analyses look at: a model, a prompt, sequences of text, checkpoints.

    Raises:
      InputError: a prompt or sequences of fewer than two tokens or of too many, what are no ids of
        the model, a batch of none, or positions that sequences do not have.
    """

    model: Model
    prompt: np.ndarray  # [T] ids
    rows: np.ndarray  # [B, T + 1] ids: inputs and next tokens
    thresholds: Thresholds = field(default_factory=Thresholds)
    batch: int = 8  # sequences that are run together
    checkpoints: Callable[[], Iterable[tuple[int, Params]]] = tuple  # of the run that trained it
    steps: int = 0  # the number of checkpoints
    seeds: Iterable[tuple[int, Params]] = ()  # the models of that run, by seed
    seed_count: int = 0
    dimension_positions: tuple[int, ...] | None = None  # None: the second half of each sequence
    frequencies: np.ndarray | None = None  # [V] of tokens in the corpus; None: in the rows
    calibration: np.ndarray | None = None  # [C, T + 1] ids of other text, for means and forms
    _made: dict[str, Any] = field(default_factory=dict, init=False)  # scans, once they are made

    def __post_init__(self) -> None:
        config = self.model.config
        token_ids("prompt", self.prompt, "T", config.vocab)
        token_ids("rows", self.rows, "B T", config.vocab)
        if self.calibration is not None:
            token_ids("calibration", self.calibration, "B T", config.vocab)
            at_least(3, "calibration", self.calibration.shape[1] - 1)
        at_least(1, "batch", self.batch)
        end, length = config.longest, self.rows.shape[1] - 1
        at_least(2, "seq_len", length)
        if end is not None and length > end:
            raise InputError("seq_len", length, f"at most {end}", f"learned positions end at {end}")
        chosen_positions(self.dimension_positions, length)
        _check_prompt("prompt", self.prompt, config)

    @property
    def config(self) -> ModelConfig:
        """The architecture with attention whole, as parts read its maps; those of long sequences
        they cut themselves."""
        return self.model.config.with_execution(query_block=None)

    def scan(self, progress: Progress | None = None) -> Scan:
        """The scan of the sequences, made once."""
        if "scan" not in self._made:
            params, tokens = self.model.params, self.rows[:, :-1]
            made = scan(self.config, params, tokens, self.thresholds, self.batch, progress)
            self._made["scan"] = made
        found: Scan = self._made["scan"]
        return found

    def weights(self) -> WeightScan:
        """The scan of the parameters, made once."""
        if "weights" not in self._made:
            ratio = self.thresholds.weight_ratio
            self._made["weights"] = weight_scan(self.model.params, ratio)
        found: WeightScan = self._made["weights"]
        return found

    @property
    def text(self) -> Callable[[list[int]], str] | None:
        """Decodes ids; None where the model has no tokenizer."""
        return None if self.model.tokenizer is None else self.model.tokenizer.decode

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """One printable label a token."""
        if self.model.tokenizer is None:
            return [str(int(i)) for i in ids]
        return self.model.tokenizer.pieces(ids)


def _check_prompt(name: str, prompt: np.ndarray, config: ModelConfig) -> None:
    longest = PROMPT_TOKENS if config.longest is None else min(PROMPT_TOKENS, config.longest)
    count = len(prompt)
    if not 2 <= count <= longest:
        found = f"{count} token{'s' * (count != 1)}"
        raise InputError(name, None, f"2 to {longest} tokens", found)


def _of_sequences(
    analysis: Callable[..., Any], *, text: bool = False, targets: bool = False, weights: bool = True
) -> Callable[[AnalysisInputs, Progress | None], Any]:
    def run(material: AnalysisInputs, progress: Progress | None) -> Any:
        found = material.scan(progress)
        rows = material.rows if targets else material.rows[:, :-1]
        more: dict[str, Any] = {"text": material.text} if text else {}
        more |= {"weights": material.weights()} if weights else {}
        return analysis(
            material.config, material.model.params, rows, found=found, batch=material.batch,
            progress=progress, **more,
        )  # fmt: skip

    return run


def _interventions(material: AnalysisInputs, progress: Progress | None) -> Interventions:
    run = partial(interventions, calibration=material.calibration)
    return cast(Interventions, _of_sequences(run, targets=True)(material, progress))


def _existence(material: AnalysisInputs, progress: Progress | None) -> Existence:
    params, thresholds = material.model.params, material.thresholds
    weights = material.weights()
    return existence(material.config, params, material.prompt, thresholds, weights)


def _lifecycle(material: AnalysisInputs, progress: Progress | None) -> LifeCycle:
    params, thresholds = material.model.params, material.thresholds
    return lifecycle(material.config, params, material.prompt, thresholds)


def _measured(material: AnalysisInputs, progress: Progress | None) -> Measured:
    # Measures of whole maps: of a long sequence, the part that fits in one.
    rows, params = material.rows[:, : QUERIES_AT_ONCE + 1], material.model.params
    found = material.scan() if rows.shape == material.rows.shape else None
    return measured(
        material.config, params, rows, material.thresholds, found, material.weights(),
        material.batch, progress,
    )  # fmt: skip


def _dimensions(material: AnalysisInputs, progress: Progress | None) -> Dimensions:
    return dimensions(
        material.config, material.model.params, material.rows, material.dimension_positions,
        material.thresholds, material.frequencies, material.scan(progress), material.checkpoints(),
        material.batch, progress, material.steps,
    )  # fmt: skip


def _dynamics(material: AnalysisInputs, progress: Progress | None) -> Dynamics:
    tokens = material.rows[:, :-1][:, :QUERIES_AT_ONCE]
    config, steps = material.config, material.steps
    return dynamics(config, material.checkpoints(), tokens, material.batch, progress, steps)


def _across_seeds(material: AnalysisInputs, progress: Progress | None) -> Seeds:
    config, tokens = material.config, material.rows[:, :-1]
    return across_seeds(
        config, material.seeds, tokens, material.thresholds, material.batch, progress,
        material.seed_count,
    )  # fmt: skip


# part -> what runs it: (material, progress) -> result
PARTS: Mapping[str, Callable[[AnalysisInputs, Progress | None], Any]] = MappingProxyType(
    {
        "existence": _existence,
        "positions": _of_sequences(positions, text=True),
        "relations": _of_sequences(relations),
        "lifecycle": _lifecycle,
        "roles": _of_sequences(roles, weights=False),
        "measures": _measured,
        "dimensions": _dimensions,
        "interventions": _interventions,
        "dynamics": _dynamics,
        "seeds": _across_seeds,
    }
)


OF_RUNS = ("dynamics", "seeds")  # parts that take more of a run than one model


@dataclass(frozen=True, repr=False)
class Findings:
    """What was found, part by part; None for parts that were not asked for."""

    record: dict[str, Any]
    existence: Existence | None = None
    positions: Positions | None = None
    relations: Relations | None = None
    lifecycle: LifeCycle | None = None
    roles: Roles | None = None
    measures: Measured | None = None
    dimensions: Dimensions | None = None
    interventions: Interventions | None = None
    dynamics: Dynamics | None = None
    seeds: Seeds | None = None

    def __repr__(self) -> str:
        return f"Findings({', '.join(self.record['parts'])})"

    def _repr_html_(self) -> str:
        return "".join(
            f"<h3>{html.escape(name)}</h3><ul>"
            + "".join(f"<li>{html.escape(line)}</li>" for line in headline(self.record, name))
            + f"</ul>{self.table(name)._repr_html_()}"
            for name in self.record["parts"]
        )

    def table(self, name: str) -> Table:
        """A table by name: that of a part, as "existence", or another of it, "existence-weights".

        Raises:
          InputError: there is none; which there are is in the message.
        """
        made = tables(self.record)
        if name not in made:
            raise InputError("name", repr(name), ", ".join(made), "unknown")
        return made[name]

    def to_pandas(self) -> dict[str, "pd.DataFrame"]:
        """Every table by name, as data frames.

        Raises:
          InputError: pandas is not installed.
        """
        return {name: table.to_pandas() for name, table in tables(self.record).items()}

    def figures(self) -> dict[str, "Figure"]:
        """Every figure by name, drawn from the record."""
        with plots.figures(self.record) as drawn:
            return dict(drawn)

    def save(self, directory: str | Path) -> Path:
        """Write result.json, figures/ and report.html; returns the path of the page."""
        path = Path(os.path.expanduser(directory))
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "result.json", self.record)
        return publish(self.record, path)


def publish(record: Mapping[str, Any], directory: Path) -> Path:
    """Draw a record's figures and write its page beside them; returns the path of the page."""
    plots.draw(record, directory / "figures", CAPTIONS)
    return write_page(record, directory)


def analyze(
    model: Model,
    text: str | Sequence[int] | np.ndarray,
    rows: Sequence[Sequence[int]] | np.ndarray | None = None,
    parts: str | Sequence[str] | None = None,
    thresholds: Thresholds | None = None,
    bos: str = "auto",
    batch: int | None = None,
    progress: Progress | None = None,
    dimension_positions: Sequence[int] | None = None,
    calibration: Sequence[Sequence[int]] | np.ndarray | None = None,
) -> Findings:
    """Find, locate, relate, follow and remove the outliers of a model.

    Args:
      model: what `load` or a training run returned.
      text: the prompt that is drawn token by token; or its ids, as they are.
      rows: [B, T + 1] ids of more text for the statistics; None for the prompt alone, whose last
        token then is only a target.
      parts: keys of `PARTS`, or one of them; None for all of them but dynamics and seeds, which
        take the checkpoints and the seeds of a run: `python -m experiments.analyze`.
      thresholds: of the detectors; None for those of their papers.
      bos: auto, yes or no: the text starts with the tokenizer's BOS; auto: as in its training.
      batch: sequences that are run together; None: 8, or fewer if they are long.
      progress: called with what is done of a part, and what there is in all.
      dimension_positions: of each sequence that the part dimensions looks at; None: its second
        half.
      calibration: [C, T + 1] ids of other text, for means and constants in a sink's place.

    Raises:
      InputError: text that this model cannot read, or an unknown part.
    """
    check_model(model)
    prompt, vocab = _prompt(model, text, bos), model.config.vocab
    if rows is None and len(prompt) < 3:
        few = f"{len(prompt)} token{'s' * (len(prompt) != 1)} and no rows"
        raise InputError("text", None, "at least 3 tokens, or rows", few)
    _check_prompt("text", prompt, model.config)
    rows = np.asarray(prompt[None] if rows is None else token_ids("rows", rows, "B T", vocab))
    if rows.shape[1] < 3:
        raise InputError("rows", None, "at least 3 tokens in each", f"{rows.shape[1]} in each")
    batch = default_batch_size(max(rows.shape[1] - 1, 1)) if batch is None else batch
    chosen = None if dimension_positions is None else tuple(dimension_positions)
    other = None if calibration is None else token_ids("calibration", calibration, "B T", vocab)
    limits = thresholds or Thresholds()
    material = AnalysisInputs(
        model, prompt, rows, limits, batch, dimension_positions=chosen, calibration=other
    )
    found = {name: PARTS[name](material, progress) for name in _named(parts)}
    described = {name: describe(material, result) for name, result in found.items()}
    record = {
        "experiment": "analysis", "provenance": provenance(), **header(material),
        "parts": described, "status": "complete",
    }  # fmt: skip
    return Findings(plain(record), **found)


def _prompt(model: Model, text: str | Sequence[int] | np.ndarray, bos: str) -> np.ndarray:
    if isinstance(text, str):
        if model.tokenizer is None:
            raise InputError("text", None, "token ids", "the model has no tokenizer")
        text = encode_prompt(model.tokenizer, text, bos)
    elif bos != "auto":
        raise InputError("bos", repr(bos), "'auto', as ids are read as they are")
    return np.asarray(token_ids("text", text, "T", model.config.vocab))


def _named(parts: str | Sequence[str] | None) -> tuple[str, ...]:
    if parts is None:
        return tuple(name for name in PARTS if name not in OF_RUNS)
    names = (parts,) if isinstance(parts, str) else tuple(parts)
    for name in names:
        one_of("parts", name, tuple(PARTS))
    return names


def header(material: AnalysisInputs) -> dict[str, Any]:
    """What a record says of the model and the text, before any part is run."""
    config = material.model.config
    sequences, length = material.rows.shape
    return {
        "model": asdict(config),
        "origin": None if material.model.origin is None else material.model.origin.told,
        "thresholds": asdict(material.thresholds),
        "sequences": sequences,
        "seq_len": length - 1,
        "prompt": material.pieces(material.prompt),
    }


def describe(material: AnalysisInputs, result: Any) -> dict[str, Any]:
    """A result as its record: dataclasses by field, tokens by label, drawn values rounded."""
    described = {f.name: _described(getattr(result, f.name)) for f in fields(result)}
    if isinstance(result, Positions):
        for kind in described["kinds"].values():
            ids = [token for token, _ in kind["tokens"]]
            counts = [count for _, count in kind["tokens"]]
            kind["tokens"] = list(zip(material.pieces(ids), counts, strict=True))
    if isinstance(result, Roles):
        described["shares"] = result.shares
    if isinstance(result, Existence):
        described["any"] = result.any
    return described


def _described(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype.kind == "f":
        return [[float(f"{x:.{SHOWN_DIGITS}g}") for x in row] for row in value.tolist()]
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: _described(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: _described(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_described(item) for item in value]
    return value
