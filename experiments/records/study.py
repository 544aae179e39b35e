"""What a record says of a study and of its variants: sizes, history, one sequence drawn."""

import itertools
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sysout_jax.analysis.measure.summary import snapshot
from sysout_jax.core.attention import VARIANTS
from sysout_jax.data import Backcopy
from sysout_jax.data.prompt import PROMPT, encode_prompt
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.loop import Corpus, Run


def study_names(corpora: list[str]) -> list[str]:
    """A name for each study's files: the last part of its corpus, numbered where two agree."""
    names: list[str] = []
    for corpus in corpora:
        name = re.sub(r"[^A-Za-z0-9_]+", "-", Path(corpus).name).strip("-") or "corpus"
        numbered = (f"{name}-{number}" for number in itertools.count(len(names)))
        names.append(next(each for each in itertools.chain([name], numbered) if each not in names))
    return names


def describe(study: TrainConfig, corpus: Corpus) -> dict[str, Any]:
    """What the record says of a study before anything is trained."""
    description = {
        "corpus": study.corpus,
        "config": {key: value for key, value in asdict(study).items() if key != "variant"},
        "tokens": corpus.tokens,
        "documents": corpus.documents,
        "split": corpus.split,
        "epochs": corpus.epochs(study.steps, study.batch_size, study.seq_len),
        "tokens_per_seed": study.steps * study.batch_size * study.seq_len,
        "variants": {},
    }
    if isinstance(corpus, Backcopy):
        rows = [
            corpus.batch("val", 0, n, study.batch_size, study.measured_len)
            for n in range(study.val_batches)
        ]
        description["loss_floor"] = float(corpus.entropy_floor(np.concatenate(rows)).mean())
    return description


def entry(trained: Run, corpus: Corpus) -> dict[str, Any]:
    """What the record says of a trained variant."""
    variant = VARIANTS[trained.config.variant]
    return {
        "label": variant.label,
        "normalised": variant.normalised,
        "parameters": sum(x.size for x in jax.tree.leaves(trained.model().params)),
        "seconds": trained.seconds,
        **history(trained),
        "snapshot": _snapshot(trained, corpus),
    }


def history(trained: Run) -> dict[str, Any]:
    """Rows of the log as columns: [steps][seeds], the seeds in the order of the config."""
    by_step: dict[int, list[dict[str, Any]]] = {}
    for row in trained.rows:
        by_step.setdefault(row["step"], []).append(row)
    groups = [g for _, g in sorted(by_step.items())]

    def column(key: str) -> dict[str, Any]:
        chosen = [group for group in groups if key in group[0]]
        return {
            "step": [group[0]["step"] for group in chosen],
            key: [np.concatenate([row[key] for row in group]) for group in chosen],
        }

    measured = column("val_loss")
    chosen = [group for group in groups if "measures" in group[0]]
    measured["measures"] = {
        name: [np.concatenate([row["measures"][name] for row in group]) for group in chosen]
        for name in chosen[0][0]["measures"]
    }
    return {"curve": column("loss"), "measured": measured}


def _snapshot(trained: Run, corpus: Corpus) -> dict[str, Any]:
    """One sequence as the figures show it: the paper's prompt, or a row of a synthetic task."""
    tokenizer = trained.tokenizer
    if tokenizer is None:
        tokens = corpus.batch("val", 0, 0, 1, trained.config.seq_len)[0, :-1]
        pieces = ["BOS" if t == corpus.bos else str(t) for t in tokens]
    else:
        tokens = encode_prompt(tokenizer, PROMPT)[: trained.config.seq_len]
        pieces = tokenizer.pieces(tokens)
    model = trained.model()
    shot = snapshot(model.config, model.params, jnp.asarray(tokens))
    return {
        "pieces": pieces,
        "attention": _rounded(shot.attention),
        "attention_layer": shot.attention_layer,
        "magnitude": _rounded(shot.magnitude),
        "magnitude_layer": shot.magnitude_layer,
    }


def _rounded(x: np.ndarray) -> list[list[float]]:
    """Three significant digits: what a figure can show."""
    return [[float(f"{value:.3g}") for value in row] for row in x.tolist()]
