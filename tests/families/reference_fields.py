"""What the reference implementation reads of each family's config.json, found in its own source.

Needs the extra `reference`. Run as a module, it renews sysout_jax/families/reference.json:

    python -m tests.families.reference_fields
"""

import ast
import dataclasses
import importlib
import inspect
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PLACE = Path(__file__).parents[2] / "sysout_jax" / "families" / "reference.json"
# Read by code that all models share: whether masks are causal, ties, one config for each layer.
SHARED = {"tie_word_embeddings", "is_causal", "per_layer_config"}
ROTARY = {"rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor"}
# Heads that are not those of a language model read fields of their own.
OTHER_HEADS = ("Classification", "QuestionAnswering", "DoubleHeadsModel", "SequenceSummary")
_CONVERSIONS = ("__post_init__", "convert_rope_params_to_dict")


def fields_of(model_type: str) -> dict[str, Any]:
    """What the reference declares of one kind of config.json, and what it reads of it.

    Returns:
      "declares": each name with its default; "reads": the names that its code looks at; "aliases":
      another spelling -> name.
    """
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    declared = {f.name: _plain(f.default) for f in dataclasses.fields(kind)}
    source = importlib.import_module(kind.__module__.replace("configuration_", "modeling_"))
    tree = ast.parse(inspect.getsource(source))
    reads = SHARED | set(_of_model(tree)) | set(_of_class(kind))
    if "attn_config" in reads:
        declared |= _nested_defaults(kind)
        reads |= {f"attn_config.{name}" for name in _attributes(tree, "attn_config")}
    hidden = {name for name in reads if name.startswith("_") and name not in declared}
    reads -= hidden | {name for name in reads if inspect.isfunction(getattr(kind, name, None))}
    aliases = dict(kind.attribute_map)
    everywhere = set(shared_fields())
    return {
        "declares": {k: v for k, v in sorted(declared.items()) if k not in everywhere or v},
        "reads": sorted({aliases.get(name, name) for name in reads} - {"default_theta"}),
        "aliases": aliases,
    }


def shared_fields() -> list[str]:
    """What every config class of the reference declares, and what it takes out of config.json as
    settings of text generation."""
    from transformers import GenerationConfig, PreTrainedConfig

    own = {f.name for f in dataclasses.fields(PreTrainedConfig)}
    return sorted(own | set(GenerationConfig._get_default_generation_params()))


def _plain(default: Any) -> Any:
    return None if default is dataclasses.MISSING else default


def _of_model(tree: ast.Module) -> Iterator[str]:
    """Attributes of anything called config, outside of other heads and of what sees images."""
    for top in tree.body:
        found = set(_attributes(top, "config"))
        other = isinstance(top, ast.ClassDef) and any(head in top.name for head in OTHER_HEADS)
        if not other and found.isdisjoint({"vision_config", "text_config"}):
            yield from found


def _of_class(kind: type) -> Iterator[str]:
    """What the config class turns into other fields when it is made."""
    methods = [vars(kind)[name] for name in _CONVERSIONS if name in vars(kind)]
    for method in methods:
        tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
        yield from (*_attributes(tree, "self", stored=False), *_popped(tree))
    if "rope_parameters" in {f.name for f in dataclasses.fields(kind)}:
        own = "convert_rope_params_to_dict" in vars(kind)
        yield from {"rope_parameters", "rope_scaling", "original_max_position_embeddings"}
        yield from () if own else ROTARY


def _attributes(tree: ast.AST, owner: str, stored: bool = True) -> Iterator[str]:
    """NAME of every x.OWNER.NAME, OWNER.NAME and getattr(OWNER, "NAME")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _called(node.value) == owner:
            if stored or isinstance(node.ctx, ast.Load):
                yield node.attr
        elif isinstance(node, ast.Call) and _called(node.func) == "getattr":
            of, name = node.args[0], node.args[1]
            if _called(of) == owner and isinstance(name, ast.Constant):
                yield str(name.value)


def _popped(tree: ast.AST) -> Iterator[str]:
    """NAME of every kwargs.pop("NAME"), kwargs.get("NAME") and kwargs.setdefault("NAME")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of, name = node.func.value, node.args[0] if node.args else None
            if _called(of) == "kwargs" and isinstance(name, ast.Constant):
                yield str(name.value)


def _called(node: ast.AST) -> str:
    """The last name of a dotted expression."""
    return getattr(node, "attr", None) or getattr(node, "id", "")


def _nested_defaults(kind: type) -> dict[str, Any]:
    """The declared fields of MPT's attn_config, as "attn_config.NAME"."""
    inner = dataclasses.fields(kind.sub_configs["attn_config"])
    everywhere = set(shared_fields())
    return {f"attn_config.{f.name}": _plain(f.default) for f in inner if f.name not in everywhere}


def all_fields() -> dict[str, Any]:
    """The content of the file."""
    import transformers

    from sysout_jax.families.table import FAMILIES

    kinds = [family.model_types[0] for family in FAMILIES.values()]
    return {
        "transformers": transformers.__version__,
        "everywhere": shared_fields(),
        "families": {kind: fields_of(kind) for kind in kinds},
    }


if __name__ == "__main__":
    PLACE.write_text(json.dumps(all_fields(), indent=1) + "\n")
