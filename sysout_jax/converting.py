"""A model in, the same model without its sink's massive state out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Array, Int

from sysout_jax.analysis.intervene.before_after import BeforeAfter, Reader, compared
from sysout_jax.analysis.intervene.conversion import unrotated, with_constants, with_prefix
from sysout_jax.analysis.intervene.weak_sinks import (
    MOVES,
    Bounded,
    Profile,
    Treatment,
    bounded,
    carriers,
    judged,
    profile,
    standing_rows,
)
from sysout_jax.analysis.locate.first_token import LEAST_TEXTS, FirstToken, enough, first_token
from sysout_jax.analysis.locate.scan import default_batch_size
from sysout_jax.errors import InputError, is_integer, one_of
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params
from sysout_jax.model.model import Model, check_model, token_ids
from sysout_jax.model.rope import Dynamic, LongRope
from sysout_jax.model.stream import check_in_memory

TEXTS, LENGTH = 8, 256  # that a long text is cut into, and next tokens of each
CONVERTED = ("prefix", "constants")  # kinds of conversions that are one
WEAK = ("bound", "prefix", "prefix+bound", "leave")
Progress = Callable[[str], None]  # what is done now


@dataclass(frozen=True)
class Conversion:
    """A converted model, and how it came about.

    Attributes:
      model: the one to use; the given one where nothing was converted.
      kind: "prefix" of tokens before every text, "constants" in the first token's place, "left"
        where a sink could not be treated, "none" where there is none.
      said: what was found and done, a sentence each.
      prefix: ids that stand before the text as keys and values.
      first: what the calibration texts show of their first tokens; None without texts.
      rows: [L], max/mean of the row of W_down that stands out most in each layer.
      treatments: what each way to deal with weaker sinks does on the calibration texts.
      check: the model before and after on texts that nothing was chosen by.
    """

    model: Model
    kind: str
    said: tuple[str, ...]
    prefix: tuple[int, ...] = ()
    first: FirstToken | None = None
    rows: np.ndarray | None = None
    treatments: tuple[Treatment, ...] = ()
    check: BeforeAfter | None = None

    def __repr__(self) -> str:
        return "\n".join([f"Conversion: {self.kind}", *self.said])


def convert(
    model: Model,
    text: str | Int[Array | np.ndarray, "B S"] | None = None,
    prefix: Sequence[int] | None = None,
    weak: str = "bound",
    check: str | Int[Array | np.ndarray, "b s"] | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """A model that reads the same text without its sink's massive state, trained no further.

    Where every text begins with the same tokens, they become keys and values: exact (T1). Else the
    first token's key and value become constants, means over the calibration texts, from the layer
    on where they are constant, and what made its state massive is left out.

    Args:
      model: as `load` or a training run returned it.
      text: to calibrate on: a long text, which is cut into pieces, or ids [B, S], which begin as
        the model's texts do. None: no more than `prefix` is done.
      prefix: ids that begin every text, or are to stand before it. None: BOS where the tokenizer
        adds it, or the token that all ids of `text` begin with, if there is one.
      weak: what becomes of weaker sinks: "bound" on down_in, chosen so that the loss does not move;
        "prefix" of a first token and those that carry them, instead of constants; "prefix+bound";
        or "leave".
      check: text to compare the model before and after on, which should be other text.
      progress: called with what is done now.

    Raises:
      InputError: text that is too short or that the model cannot read, neither text nor prefix, a
        prefix that cannot be, or a model that was converted or is read layer by layer.
    """
    one_of("weak", weak, WEAK)
    check_model(model)
    say = progress or _silent
    if text is None:
        begin = _prefix_of(model, prefix)
        if not begin:
            raise InputError("text", None, "text to calibrate on, or a prefix", "neither is given")
        made = _prefixed(model, begin)
        made = replace(made, said=(*made.said, "weaker sinks are left: no text tells of them"))
    else:
        ways, begin = _conversions(model, text, prefix, say)
        made = ways[weak]
    if made.kind not in CONVERTED:
        return made
    return _checked(made, model, Reader(model.config, model.params, begin), check, say)


def conversions(
    model: Model,
    text: str | Int[Array | np.ndarray, "B S"],
    prefix: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> dict[str, Conversion]:
    """What `convert` returns for each way to deal with weaker sinks, without a check.

    Args:
      model, text, prefix, progress: as of `convert`.

    Returns:
      A conversion for each of `WEAK`; the same for all where nothing was converted. A prefix for
      which texts leave no learned positions is none: the model as it was, of kind "left".

    Raises:
      InputError: as `convert`.
    """
    return _conversions(model, text, prefix, progress or _silent)[0]


def _conversions(
    model: Model, text: Any, prefix: Sequence[int] | None, say: Progress
) -> tuple[dict[str, Conversion], tuple[int, ...]]:
    """The conversion of each way, and what the model as trained reads before every text."""
    prefix = _prefix_of(model, prefix)
    texts, begin = _read(model, "text", text, prefix)
    trained = Reader(model.config, model.params, begin)
    rows = trained.rows(texts)
    enough(rows)
    say("the first token of the model as trained")
    first = first_token(model.config, model.params, rows, default_batch_size(rows.shape[1] - 1))
    made = replace(_first_treated(model, prefix or begin, first, bool(prefix)), first=first)
    if made.kind not in CONVERTED:
        return dict.fromkeys(WEAK, made), begin
    return _weak_treated(made, trained, model, texts, say), begin


def _silent(what: str) -> None:
    """Say nothing."""


def _prefix_of(model: Model, prefix: Any) -> tuple[int, ...] | None:
    """The ids of a prefix, for a model that can be converted."""
    if not (prefix is None or (np.ndim(prefix) == 1 and all(map(is_integer, prefix)))):
        raise InputError("prefix", prefix, "ids of tokens, such as [1]")
    check_in_memory(model.params)
    if model.config.sink is not None:
        raise InputError("model", None, "one that was not converted", "its sink is explicit")
    return None if prefix is None else tuple(map(int, prefix))


def _read(
    model: Model, name: str, text: Any, prefix: tuple[int, ...] | None
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Texts without what begins them all, and that, as the model reads it: the prefix, or BOS, or a
    token that all ids begin with; nothing where the prefix is empty."""
    begin = prefix or ()
    if isinstance(text, str):
        if model.tokenizer is None:
            raise InputError(name, None, "token ids", "text, and the model has no tokenizer")
        known = model.tokenizer
        begin = (known.bos,) if known.adds_bos and prefix != () else ()
        before = max(len(begin), len(prefix or ()))
        return _pieces(known.encode(text), model.config.longest, before), begin
    rows = np.asarray(token_ids(name, text, "B S", model.config.vocab))
    if not (begin and (rows[:, : len(begin)] == np.array(begin)).all()):
        shared = prefix != () and len(rows) > 1 and (rows[:, 0] == rows[0, 0]).all()
        begin = (int(rows[0, 0]),) if shared else ()
    length, longest = rows.shape[1] - 1, model.config.longest
    if longest is not None and length > longest:
        why = f"{length} in a text, and learned positions end there"
        raise InputError(name, None, f"at most {longest} tokens", why)
    return rows[:, len(begin) :], begin


def _pieces(ids: np.ndarray, longest: int | None, before: int) -> np.ndarray:
    """[B, S] pieces of a long text, evenly spread over it."""
    most = LENGTH if longest is None else min(LENGTH, longest - before)
    size = max(1, min(most + 1, len(ids) // LEAST_TEXTS))
    count = min(TEXTS, len(ids) // size)
    starts = np.linspace(0, len(ids) - size, count).astype(int)
    return ids[starts[:, None] + np.arange(size)].astype(np.int32)


# ---------------------------------------------------------------------- the first token's sink


def _prefixed(model: Model, ids: tuple[int, ...]) -> Conversion:
    """Tokens before every text as keys and values."""
    config, params = with_prefix(model.config, model.params, ids)
    known = model.tokenizer
    if known is not None and known.adds_bos:  # which is among the keys now
        known = replace(known, adds_bos=False)
    changed = replace(model, config=config, params=params, tokenizer=known)
    said = [f"{_count(len(ids), 'token')} before every text: keys and values, exactly"]
    rope = model.config.rope
    if len(ids) > 1 and isinstance(rope, Dynamic | LongRope) and model.config.position == "rope":
        said.append(f"exact up to {rope.context} tokens, where the rotation changes")
    return Conversion(changed, "prefix", (*said, *_windows(model.config)), ids)


def _windows(config: ModelConfig) -> tuple[str, ...]:
    layers = config.layers_with_window
    if not layers:
        return ()
    said = f"in {_named(layers)} queries beyond the window of {config.window} see no sink, as ever"
    return (said,)


def _first_treated(
    model: Model, begin: tuple[int, ...], first: FirstToken, given: bool
) -> Conversion:
    """The first token's sink as parameters, weaker ones as they are."""
    sink, state = first.sink, first.state
    size = f"|h| of the first token is {state.max():.3g} after layer {int(np.argmax(state))}"

    def left(why: str, kind: str = "left") -> Conversion:
        return Conversion(model, kind, (f"{size}: {why}; the model is as it was",))

    if not (sink.present or given):
        return left("no head gives it more than 0.3 of its attention, so there is no sink", "none")
    if begin:
        made = _prefixed(model, begin)
        return replace(made, said=(size, *made.said))
    if sink.emergence is None:
        return left("a sink whose state does not stand out")
    if not first.layers:
        spread = np.max([of[list(first.reads)] for of in first.spread.values()], axis=0)
        layer = first.reads[int(np.argmax(spread))]
        return left(f"a sink whose key or value varies by {spread.max():.2f} in layer {layer}")
    if not first.writers:
        return left(f"a sink whose state no MLP of layer {sink.emergence} writes")
    layers, silent = list(first.layers), first.writers
    key = unrotated(model.config, first.constants["key"][:, None, None])[:, 0, 0]
    constants = {"key": np.asarray(key), "value": first.constants["value"]}
    config, params = with_constants(model.config, model.params, constants, layers, silent)
    spread = max(float(of[layers].max()) for of in first.spread.values())
    said = (
        f"{size}; what {_named(silent)} would write there is left out",
        f"its key and value are constants in {_named(layers)}, where they vary by {spread:.3f} "
        "at most",
        *_windows(model.config),
    )
    return Conversion(replace(model, config=config, params=params), "constants", said)


# ---------------------------------------------------------------------------- weaker sinks


def _weak_treated(
    made: Conversion, trained: Reader, model: Model, texts: np.ndarray, say: Progress
) -> dict[str, Conversion]:
    """The conversion under each of `WEAK`, with the numbers of all of them."""
    batch = default_batch_size(len(trained.begin) + texts.shape[1] - 1)

    def run(config: ModelConfig, params: Params, begin: tuple[int, ...] = ()) -> Profile:
        rows = Reader(config, params, begin).rows(texts)
        return profile(config, params, rows, len(begin), batch)

    say("weaker sinks: as trained")
    before = run(trained.config, trained.params, trained.begin)
    table = [judged("as trained", before, before.losses)]
    initial = made.prefix or _initial(model, texts)
    ids = carriers(before, trained.rows(texts), initial)
    found = {"leave": made, "prefix": _further(made, model, ids, texts.shape[1] - 1)}
    for name, start in tuple(found.items()):
        cut = {"leave": "bound", "prefix": "prefix+bound"}[name]
        if name == "prefix" and (start is made or start.kind == "left"):
            found[cut] = found["bound"] if start is made else start
            continue
        say(f"weaker sinks: {name}")
        config, params = start.model.config, start.model.params
        free = run(config, params)
        table.append(judged(name, free, before.losses))
        best = bounded(config, params, free, run, partial(say, f"weaker sinks: {cut}"))
        found[cut] = _cut(start, best)
        if best is not None:
            table.append(judged(cut, best.found, before.losses, best.bound))
    ratios, standing = standing_rows(trained.params)
    said = f"rows of W_down stand out in {_named(standing) if standing else 'no layer'}"
    return {
        way: replace(
            of, said=(*of.said, said), first=made.first, rows=ratios, treatments=tuple(table)
        )
        for way, of in found.items()
    }


def _further(made: Conversion, model: Model, ids: tuple[int, ...], length: int) -> Conversion:
    """The model with a prefix of these tokens, where texts of a length leave room for it."""
    longest = model.config.longest
    if ids == made.prefix:
        return made
    if longest is None or len(ids) + length <= longest:
        return _prefixed(model, ids)
    why = f"{_count(len(ids), 'token')} before texts of {length}: learned positions end at"
    return Conversion(model, "left", (f"{why} {longest}; the model is as it was",))


def _cut(start: Conversion, best: Bounded | None) -> Conversion:
    if best is None:
        said = f"no bound on down_in leaves the loss within {MOVES} nats"
        return replace(start, said=(*start.said, said))
    said = f"down_in of every layer is within {best.bound:g} of its RMS"
    if best.config.experts:
        said = f"{said}, one bound for all experts of a layer"
    model = replace(start.model, config=best.config, params=best.params)
    return replace(start, model=model, said=(*start.said, said))


def _initial(model: Model, texts: np.ndarray) -> tuple[int, ...]:
    """What a prefix begins with where texts begin with nothing: BOS, or the token between texts, or
    the first of the texts."""
    known = model.tokenizer
    ids = [] if known is None else [x for x in (known.bos, known.eot) if x is not None]
    return (int(ids[0] if ids else texts[0, 0]),)


# ---------------------------------------------------------------------------- before and after


def _checked(
    made: Conversion, model: Model, trained: Reader, text: Any, say: Progress
) -> Conversion:
    """The conversion, compared with the model as trained on other text."""
    if text is None:
        return made
    texts, _ = _read(model, "check", text, trained.begin)
    say("before and after")
    after = Reader(made.model.config, made.model.params)
    batch = default_batch_size(len(trained.begin) + texts.shape[1] - 1)
    return replace(made, check=compared(trained, after, texts, batch))


def _named(layers: Sequence[int]) -> str:
    """Layers in words: runs of three or more as first to last."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    parts = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return f"layer{'s' * (len(layers) != 1)} {', '.join(parts)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
