"""Strictness in one place: shapes and dtypes are checked at every call, nothing is promoted."""

from pathlib import Path

from jaxtyping import install_import_hook

# Before either package is first imported.
install_import_hook(["sysout_jax", "theory"], "beartype.beartype")

import jax  # noqa: E402
import pytest  # noqa: E402

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoded corpora go to a directory of the test run, shared by its tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real text, tokenizer and weights beside the project, where they exist."""
    if not SHARED.exists():
        pytest.skip("no real data beside the project (../shared/data)")
    return SHARED
