"""The measures that studies record: a row for each, with its tap and how layers are summarised."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Array

from sysout_jax.core.measures import (
    first_token_argmax,
    first_token_kurtosis,
    max_median_ratio,
    neuron_rms_kurtosis,
    other_token_kurtosis,
    residual_peak,
    sink_rate,
    sink_strength,
    spectral_dominance,
    tensor_kurtosis,
    top1,
    top1_over_mean,
    top1_over_median,
    value_drain,
)


@dataclass(frozen=True)
class Measure:
    """A measure as a study reports it: the tap it reads and how layers and heads are summarised.

    `over` is "max", "min" or "mean" over layers (and heads); sequences are always averaged.
    """

    fn: Callable[[Array], Array]
    tap: str
    over: str
    label: str

    @property
    def name(self) -> str:
        """The key in records: measure@tap."""
        return f"{self.fn.__name__}@{self.tap}"


MEASURES: tuple[Measure, ...] = (
    Measure(sink_rate, "attn_weights", "mean", "Sink$_0$(0.3)"),
    Measure(sink_strength, "attn_weights", "max", "sink strength of best head"),
    Measure(first_token_argmax, "attn_weights", "mean", "first token is largest key"),
    Measure(value_drain, "value", "min", "value drain $|v_0|/\\overline{|v|}$"),
    Measure(residual_peak, "block_out", "max", "residual peak $|h_0|/\\overline{|h|}$"),
    Measure(top1, "block_out", "max", "max $|h|$"),
    Measure(top1_over_median, "block_out", "max", "max/median $|h|$"),
    Measure(top1_over_mean, "block_out", "max", "max/mean $|h|$"),
    Measure(top1_over_mean, "down_in", "max", "max/mean $|$down_in$|$"),
    Measure(max_median_ratio, "block_out", "max", "MMR"),
    Measure(neuron_rms_kurtosis, "block_out", "max", "neuron-RMS kurtosis"),
    Measure(tensor_kurtosis, "block_out", "max", "tensor kurtosis"),
    Measure(first_token_kurtosis, "block_out", "max", "kurtosis of first token"),
    Measure(other_token_kurtosis, "block_out", "max", "kurtosis of other tokens"),
    Measure(spectral_dominance, "block_out", "max", "spectral dominance of states"),
)
