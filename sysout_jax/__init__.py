"""sysout_jax: systematic outliers in language models, stated, measured and removed.

The names below are the public API. Each is imported when it is first used, so importing the
package touches no device and loads neither Flax nor a plotting library.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sysout_jax.checking import check as check
    from sysout_jax.compressing import compress as compress
    from sysout_jax.converting import convert as convert
    from sysout_jax.core import measures as measures
    from sysout_jax.core.attention import Param as Param
    from sysout_jax.core.attention import variant as variant
    from sysout_jax.core.attention import variants as variants
    from sysout_jax.errors import Diverged as Diverged
    from sysout_jax.errors import InputError as InputError
    from sysout_jax.families.export import export as export
    from sysout_jax.loading import init as init
    from sysout_jax.loading import load as load
    from sysout_jax.loading import save as save
    from sysout_jax.model.config import ModelConfig as ModelConfig
    from sysout_jax.model.execution import Execution as Execution
    from sysout_jax.model.model import Model as Model
    from sysout_jax.model.rope import Rope as Rope
    from sysout_jax.model.taps import Edit as Edit
    from sysout_jax.model.taps import Tap as Tap
    from sysout_jax.report.findings import analyze as analyze
    from sysout_jax.rotating import rotate as rotate
    from sysout_jax.running import apply as apply
    from sysout_jax.running import encode as encode
    from sysout_jax.running import gradient as gradient
    from sysout_jax.running import logit_lens as logit_lens
    from sysout_jax.running import losses as losses
    from sysout_jax.running import massive_dimensions as massive_dimensions
    from sysout_jax.training.config import TrainConfig as TrainConfig
    from sysout_jax.training.loop import train as train
    from sysout_jax.training.optimizer import OptimizerConfig as OptimizerConfig

__version__ = "0.1.0"

_HOMES = {
    "Diverged": "sysout_jax.errors",
    "Edit": "sysout_jax.model.taps",
    "Execution": "sysout_jax.model.execution",
    "InputError": "sysout_jax.errors",
    "Model": "sysout_jax.model.model",
    "ModelConfig": "sysout_jax.model.config",
    "OptimizerConfig": "sysout_jax.training.optimizer",
    "Param": "sysout_jax.core.attention",
    "Rope": "sysout_jax.model.rope",
    "Tap": "sysout_jax.model.taps",
    "TrainConfig": "sysout_jax.training.config",
    "analyze": "sysout_jax.report.findings",
    "apply": "sysout_jax.running",
    "check": "sysout_jax.checking",
    "compress": "sysout_jax.compressing",
    "convert": "sysout_jax.converting",
    "encode": "sysout_jax.running",
    "export": "sysout_jax.families.export",
    "gradient": "sysout_jax.running",
    "init": "sysout_jax.loading",
    "load": "sysout_jax.loading",
    "logit_lens": "sysout_jax.running",
    "losses": "sysout_jax.running",
    "massive_dimensions": "sysout_jax.running",
    "measures": "sysout_jax.core.measures",
    "rotate": "sysout_jax.rotating",
    "save": "sysout_jax.loading",
    "train": "sysout_jax.training.loop",
    "variant": "sysout_jax.core.attention",
    "variants": "sysout_jax.core.attention",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sysout_jax' has no attribute {name!r}")
    home = importlib.import_module(_HOMES[name])
    return home if name == "measures" else getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
