"""What experiments.compress says of the noise of rounding: theory E1, and what becomes zero."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sysout_jax.analysis.compress.noise import Agreement, agreement
from sysout_jax.plots.compression import noise_rows
from sysout_jax.showing import Table

from ..cli.tables import Section

Record = dict[str, Any]
E1 = "theory E1"


def agreements(record: Record) -> Iterator[tuple[str, str, str, Agreement]]:
    """(kind of tensor, bits, what is compared with the measured SQNR, how they go together), over
    all layers and models."""
    for kind in ("activation", "weight"):
        rows = [
            each for each in noise_rows(record)
            if each["kind"] == kind
        ]  # fmt: skip
        if not rows:
            continue
        for bits in rows[0]["measured"]:
            measured = _joined([each["measured"][bits] for each in rows])
            predicted = _joined([each["predicted"][bits] for each in rows])
            yield kind, bits, E1, agreement(predicted, measured)
            for name, label in (
                ("peak_over_rms", "log max/RMS"),
                ("max_median_ratio", "log max/median ratio"),
                ("kurtosis", "log kurtosis"),
            ):
                with np.errstate(divide="ignore"):  # of a tensor of zeros, which is left out
                    values = np.log(_joined([each[name] for each in rows]))
                yield kind, bits, label, agreement(values, measured)


def flushed_section(tensors: Sequence[Mapping[str, Any]]) -> Section:
    """What formats with blocks set to zero, kind of tensor by kind, over all models and layers."""
    rows, said = [], []
    for kind, name in dict.fromkeys((each["kind"], each["name"]) for each in tensors):
        mine = [each for each in tensors if (each["kind"], each["name"]) == (kind, name)]
        nvfp4, mxfp4, rest, without = (
            _joined([each[key][of] for each in mine])
            for key, of in (
                ("flushed", "nvfp4"), ("flushed", "mxfp4"), ("flushed_rest", "nvfp4"),
                ("flushed_without", "nvfp4"),
            )
        )  # fmt: skip
        others = _joined([each["outlier_inputs"] for each in mine]).mean()
        of_model = max((_joined([each["flushed"]["nvfp4"]]) for each in mine), key=np.max)
        layer = int(np.argmax(of_model))
        shares = [f"{of.mean():.1%}" for of in (rest, without, mxfp4)]
        rows.append(
            [kind, name, f"{nvfp4.mean():.1%}", f"{nvfp4.max():.1%}", layer, f"{others:.1f}",
             *shares]
        )  # fmt: skip
        said.append((rest.mean() - without.mean(), f"{kind} {name}", *shares))
    cost, what, before, after, _ = max(said)
    line = (
        f"NVFP4 flushes most to zero because of outlier inputs in {what}: {before} of the other "
        f"inputs' entries beside them, {after} without them"
    )
    if cost <= 0:
        line = "outlier inputs add to what NVFP4 flushes to zero in no kind of tensor"
    headings = (
        "kind", "tensor", "NVFP4", "largest", "in layer", "outlier inputs", "others, beside them",
        "others, without", "MXFP4",
    )  # fmt: skip
    title = "Share of nonzero entries that become zero (outlier: an entry beyond 6 sigma)"
    return Section("flushed", Table.of(title, headings, rows, "llr"), [line])


def _joined(columns: list[Any]) -> np.ndarray:
    return np.concatenate([np.array(column, np.float64) for column in columns])


def agreement_lines(record: Record) -> Iterator[str]:
    """One for each kind of tensor and width."""
    lines: dict[tuple[str, str], list[tuple[str, Agreement]]] = {}
    for kind, bits, what, found in agreements(record):
        lines.setdefault((kind, bits), []).append((what, found))
    for (kind, bits), compared in lines.items():
        said = ", ".join(f"{what} {found.pearson:.2f}" for what, found in compared)
        _, first = compared[0]
        yield (
            f"SQNR of {kind}s at {bits} bits over {first.n} tensors: {first.difference:+.1f} dB "
            f"from theory E1; correlation with {said}"
        )


def furthest(record: Record) -> str:
    """Where theory E1 is furthest from what was measured."""
    found = [
        (abs(each.difference), kind, bits, each) for kind, bits, what, each in agreements(record)
        if what == E1 and np.isfinite(each.difference)
    ]  # fmt: skip
    if not found:
        return ""
    _, kind, bits, worst = max(found, key=lambda each: each[0])
    said = f"theory E1 is {worst.difference:+.1f} dB off for {kind}s at {bits} bits"
    return said + (f", correlation {worst.pearson:.2f}" if np.isfinite(worst.pearson) else "")
