"""What the reference implementation, transformers, reads of each family's config.json.

reference.json is found in its source by `python -m tests.families.reference_fields`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

# The reference reads these and no number of a forward pass in inference depends on them.
HARMLESS = frozenset(
    {
        # dropped in training alone
        "attention_dropout", "attn_pdrop", "attn_config.attn_pdrop", "dropout", "embd_pdrop",
        "embed_dropout", "embedding_dropout", "hidden_dropout", "layerdrop", "resid_dropout",
        "resid_pdrop", "residual_dropout", "router_jitter_noise",
        # a loss of training, first weights, the row that gets no gradient
        "output_router_logits", "router_aux_loss_coef", "initializer_range", "pad_token_id",
        # what is returned and kept, and at which precision weights are stored and maps computed
        "output_attentions", "output_hidden_states", "return_dict", "use_cache", "dtype",
        "reorder_and_upcast_attn",
        "pretraining_tp",  # in how many parts a sum is made (BLOOM, where slow_but_exact)
    }
)  # fmt: skip
# What tools write into any config.json to say how it came about.
_WRITTEN = frozenset(
    {
        "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path",
        "_num_labels", "attn_implementation", "auto_map", "finetuning_task",
        "gradient_checkpointing", "model_type", "name_or_path", "num_labels", "output_attentions",
        "prefix", "task_specific_params", "tokenizer_class", "torch_dtype",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """What the reference does with one kind of config.json.

    Attributes:
      defaults: what each declared field means where it is absent; null fields without a default.
      reads: the fields that its code looks at.
      aliases: another spelling of a field -> the field; where both are given the alias counts.
      known: fields that say something there, read or not.
    """

    defaults: Mapping[str, Any]
    reads: frozenset[str]
    aliases: Mapping[str, str]
    known: frozenset[str]

    @property
    def matters(self) -> frozenset[str]:
        """The fields that a number of a forward pass may depend on."""
        return self.reads - HARMLESS


@cache
def reference_of(model_type: str) -> Reference:
    """What the reference does with the config.json of a family's own model_type."""
    table = json.loads(resources.files(__package__).joinpath("reference.json").read_text())
    entry = table["families"][model_type]
    aliases, reads = entry["aliases"], frozenset(entry["reads"])
    defaults = {aliases.get(name, name): value for name, value in entry["declares"].items()}
    known = {*defaults, *reads, *aliases, *table["everywhere"]}
    return Reference(defaults, reads, aliases, frozenset(known | _WRITTEN))
