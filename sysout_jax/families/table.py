"""The table of families: everything that is said of one is in its own file."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sysout_jax.errors import InputError
from sysout_jax.families import (
    bloom,
    cohere,
    falcon,
    gemma,
    gpt2,
    gpt_neo,
    gpt_neox,
    gpt_oss,
    gptj,
    granite,
    llama,
    mistral,
    mixtral,
    mpt,
    olmo,
    opt,
    phi,
    phi3,
    qwen,
    smollm3,
    stablelm,
    starcoder2,
)
from sysout_jax.families.family import Family

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.name: family
        for family in (
            llama.LLAMA,
            mistral.MISTRAL,
            mixtral.MIXTRAL,
            opt.OPT,
            phi.PHI,
            mpt.MPT,
            falcon.FALCON,
            bloom.BLOOM,
            gpt2.GPT2,
            gpt_neo.GPT_NEO,
            gptj.GPTJ,
            gpt_neox.GPT_NEOX,
            qwen.QWEN2,
            qwen.QWEN3,
            qwen.QWEN3_MOE,
            smollm3.SMOLLM3,
            granite.GRANITE,
            cohere.COHERE,
            gemma.GEMMA,
            gemma.GEMMA2,
            gemma.GEMMA3,
            olmo.OLMO,
            olmo.OLMO2,
            olmo.OLMO3,
            olmo.OLMOE,
            gpt_oss.GPT_OSS,
            phi3.PHI3,
            stablelm.STABLELM,
            starcoder2.STARCODER2,
        )
    }
)


def by_model_type(model_type: Any, file: Path) -> Family:
    """The family of a config.json's "model_type".

    Raises:
      InputError: no family has it.
    """
    kinds = {kind: family for family in FAMILIES.values() for kind in family.model_types}
    kinds |= {f.within.model_type: f for f in FAMILIES.values() if f.within is not None}
    if isinstance(model_type, str) and model_type in kinds:
        return kinds[model_type]
    accepted = ", ".join(kinds)
    if model_type is None:
        raise InputError(str(file), None, f"a config.json with one of {accepted}", "no model_type")
    raise InputError(str(file), None, accepted, f"model_type {model_type!r}")
