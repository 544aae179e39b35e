"""Methods by name: every word does what it says, and what does not go together is one line."""

import pytest

from experiments.compress import METHODS
from sysout_jax.analysis.compress.schemes import NAMES, Pruning, Rounding, scheme
from sysout_jax.core.quantise import FORMATS
from tests.refusing import refusal


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("w8", Rounding("int8")),
        ("w16a16", Rounding()),
        ("w4a8", Rounding("int4", "int8")),
        ("a6", Rounding(None, "int6")),
        ("kv4", Rounding(cache="int4")),
        ("w3a5kv7", Rounding("int3", "int5", "int7")),
        ("we4m3ae5m2", Rounding("fp8_e4m3", "fp8_e5m2")),
        ("wnf4", Rounding("nf4")),
        ("wmxfp4amxfp4", Rounding("mxfp4", "mxfp4")),
        ("wnvfp4anvfp4kvnvfp4", Rounding("nvfp4", "nvfp4", "nvfp4")),
        ("w4-g32", Rounding("int4", per="group", group=32)),
        ("w4a8-g32-atensor", Rounding("int4", "int8", per="group", group=32, inputs_per="tensor")),
        ("zero-w8-tensor", Rounding("int8", per="tensor", zero_point=True)),
        ("gptq-w4", Rounding("int4", by="gptq")),
        (
            "gptq-order-w4-g32",
            Rounding("int4", per="group", group=32, by="gptq", largest_first=True),
        ),
        ("awq-sequential-w4", Rounding("int4", by="awq", sequential=True)),
        ("awq-w3-g64", Rounding("int3", per="group", group=64, by="awq")),
        ("rotate-gptq-w4a4", Rounding("int4", "int4", by="gptq", basis="rotate")),
        (
            "smooth-w8a8-tensor-minmax",
            Rounding("int8", "int8", per="tensor", basis="smooth", ranges="minmax"),
        ),
        ("smoothall-w8a8", Rounding("int8", "int8", basis="smoothall")),
        ("w8a8-tensor-keep1", Rounding("int8", "int8", per="tensor", keep=1)),
        ("window64", Rounding(window=64)),
        ("keep4-window60-kv4", Rounding(cache="int4", window=60, keep=4)),
        ("keep4-window60", Rounding(window=60, keep=4)),
        ("split6-w8a8", Rounding("int8", "int8", split=6.0)),
        ("a8-split2.5-minmax", Rounding(None, "int8", split=2.5, ranges="minmax")),
        ("zero-kv2-kchannel", Rounding(cache="int2", zero_point=True, by_channel=True)),
        ("rotate-kv4", Rounding(cache="int4", basis="rotate")),
        ("w4-a8-kv4", Rounding("int4", "int8", "int4")),
        ("w8-vector", Rounding("int8")),
        ("magnitude-0.5", Pruning("magnitude", 0.5)),
        ("global-.25", Pruning("global", 0.25)),
        ("wanda-2:4", Pruning("wanda", (2, 4))),
        ("sparsegpt-4:8", Pruning("sparsegpt", (4, 8))),
        ("wanda-2:4-sequential", Pruning("wanda", (2, 4), sequential=True)),
        ("magnitude-0.7-owl", Pruning("magnitude", 0.7, by_layer=True)),
        ("wanda-0.7-owl-sequential", Pruning("wanda", 0.7, sequential=True, by_layer=True)),
        ("sparsegpt-0.5-sequential", Pruning("sparsegpt", 0.5, sequential=True)),
    ],
)
def test_words_say_what_is_done(method, expected):
    assert scheme(method) == expected


def test_the_order_of_words_does_not_matter():
    assert scheme("w8a8-tensor-smooth-minmax") == scheme("smooth-minmax-tensor-w8a8")


def test_every_format_has_a_name():
    assert {name for name in NAMES.values() if name} == set(FORMATS) - {"int16"}


@pytest.mark.parametrize("method", METHODS)
def test_the_default_methods_are_methods(method):
    scheme(method)


@pytest.mark.parametrize(
    "method",
    [
        "", "-", "w", "w1", "w9", "w8-", "w8-w4", "w8-tensor-vector", "tensor", "gptq", "gptq-a8",
        "awq-smooth-w8a8", "smooth-w8", "minmax-w8", "zero-wnf4", "zero-w8ae4m3", "zero-w8a8-mse",
        "w8amxfp4-minmax", "w8-g0", "w8-nonsense", "W8", "w8 ", "wanda", "wanda-0.0", "wanda-1.5",
        "w8anvfp4-mse", "gptq-wnvfp4",
        "wanda-4:2", "wanda-2:2", "wanda-0:4", "global-2:4", "magnitude-0.5-0.5", "magnitude-w8",
        "rotate", "window0", "window", "window8-tensor", "zero-window8", "keep4",
        "keep1-w8", "keep0-a8", "keep-a8", "kchannel-w8a8", "kchannel-kvmxfp4",
        "split6-kv4", "split6-gptq-w4", "split6-smooth-w8a8", "zero-split6-w8a8", "split6-w8a8-mse",
        "split-w8a8",
        "kv4-tensor", "kv4-g32", "a8-g32", "wnf4-tensor", "gptq-wnf4-tensor",
        "wmxfp4-g128", "wnvfp4anf4-tensor", "w16a16-tensor", "w8-atensor", "w8a8-atensor-atensor",
        "smooth-w8a8-mse", "smoothall-w8a8-percentile", "smoothall-w8", "smooth-smoothall-w8a8",
        "w4amxfp4-atensor", "w8a8-atensor-minmax", "wmxfp4-vector", "kv4-vector",
        "order-w4", "awq-order-w4", "gptq-order-wmxfp4", "sequential-w4", "hqq-sequential-w4",
        "smooth-sequential-w8a8", "magnitude-0.5-sequential", "global-0.5-sequential",
        "wanda-2:4-owl", "global-0.5-owl", "wanda-0.5-owl-owl", "wanda-owl",
        "wanda-sequential", "wanda-sequential-0.5", "wanda-0.5-order",
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_line(method):
    assert refusal(scheme, method).startswith(f"methods={method}: ")


@pytest.mark.parametrize(
    ("method", "needed"),
    [
        ("w8a8", False), ("rotate-w8a8", False), ("gptq-w4", True), ("awq-w4", True),
        ("smooth-w8a8", True), ("w8a8-minmax", True), ("magnitude-0.5", False),
        ("magnitude-0.5-owl", True), ("split6-w8", True), ("keep1-w8a8", False),
        ("global-0.5", False), ("wanda-0.5", True), ("sparsegpt-0.5", True),
    ],
)  # fmt: skip
def test_what_needs_calibration(method, needed):
    assert scheme(method).calibrated is needed
