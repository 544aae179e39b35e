"""The picture of the architecture as assertions: who imports whom, how long, how documented."""

import ast
import importlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import sysout_jax

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sysout_jax"
CLONE_ONLY = ("experiments", "theory", "benchmarks")  # run from the clone, never installed

# room -> what it may import of this project; a prefix stands for everything below it
MAY_IMPORT = {
    "sysout_jax.__main__": ("sysout_jax.errors",),  # and a command, by its name
    "sysout_jax.errors": (),
    "sysout_jax.files": ("sysout_jax.errors",),
    "sysout_jax.showing": ("sysout_jax.errors",),
    "sysout_jax.core": ("sysout_jax.core",),
    "sysout_jax.model": (
        "sysout_jax.core", "sysout_jax.model", "sysout_jax.showing", "sysout_jax.errors",
    ),
    # the task Bigram-Backcopy is arrays in core, because theory/ trains on it without any data/
    "sysout_jax.data": (
        "sysout_jax.core.backcopy", "sysout_jax.data", "sysout_jax.errors", "sysout_jax.files",
    ),
    "sysout_jax.analysis": (
        "sysout_jax.core", "sysout_jax.model", "sysout_jax.analysis", "sysout_jax.showing",
        "sysout_jax.errors",
    ),
    "sysout_jax.training": (
        "sysout_jax.core", "sysout_jax.model", "sysout_jax.data", "sysout_jax.analysis",
        "sysout_jax.training", "sysout_jax.showing", "sysout_jax.errors", "sysout_jax.files",
        "sysout_jax.results",
    ),
    # a training config in, the memory and time of a machine that is not at hand out
    "sysout_jax.planning": (
        "sysout_jax.core", "sysout_jax.model", "sysout_jax.data", "sysout_jax.analysis",
        "sysout_jax.training", "sysout_jax.planning", "sysout_jax.errors",
    ),
    "sysout_jax.families": (
        "sysout_jax.core", "sysout_jax.model", "sysout_jax.data", "sysout_jax.families",
        "sysout_jax.errors", "sysout_jax.files",
    ),
    "sysout_jax.loading": (
        "sysout_jax.families", "sysout_jax.training.checkpoint", "sysout_jax.model",
        "sysout_jax.errors", "sysout_jax.files",
    ),
    # a model in, what is wrong with it out
    "sysout_jax.checking": (
        "sysout_jax.core", "sysout_jax.model", "sysout_jax.data.prompt", "sysout_jax.running",
    ),
    # a model and text in, the same model without its sink's massive state out
    "sysout_jax.converting": (
        "sysout_jax.core", "sysout_jax.model", "sysout_jax.analysis", "sysout_jax.errors",
    ),
    # the same in another basis
    "sysout_jax.rotating": ("sysout_jax.core", "sysout_jax.model", "sysout_jax.analysis"),
    # a model and text in, the model quantised or pruned out
    "sysout_jax.compressing": (
        "sysout_jax.analysis", "sysout_jax.model", "sysout_jax.running", "sysout_jax.errors",
    ),
    # a model and text in, arrays out: what notebooks call
    "sysout_jax.running": (
        "sysout_jax.core", "sysout_jax.model", "sysout_jax.data.prompt", "sysout_jax.errors",
    ),
    "sysout_jax.results": ("sysout_jax.errors", "sysout_jax.files"),
    "sysout_jax.plots": (
        "sysout_jax.results", "sysout_jax.analysis.statistics", "sysout_jax.plots",
        "sysout_jax.analysis.intervene.relocation", "sysout_jax.errors", "sysout_jax.files",
    ),
    # a model and text in; record, figures and page out
    "sysout_jax.report": (
        "sysout_jax.core", "sysout_jax.model", "sysout_jax.data.prompt", "sysout_jax.analysis",
        "sysout_jax.results", "sysout_jax.plots", "sysout_jax.report", "sysout_jax.showing",
        "sysout_jax.errors", "sysout_jax.files",
    ),
    "theory.figures": ("sysout_jax.plots", "theory"),  # when drawn: the checks need core alone
    "theory.verify": ("sysout_jax.results", "theory"),  # provenance of its record
    "theory": ("sysout_jax.core", "theory"),
    # commands stand on reports and claims; neither knows the other, and no room knows a command
    "experiments.cli": ("sysout_jax", "experiments.cli"),
    "experiments.inputs": ("sysout_jax", "experiments.cli", "experiments.inputs"),
    "experiments.records": ("sysout_jax", "experiments.records"),
    "experiments.reports": (
        "sysout_jax", "experiments.cli", "experiments.records", "experiments.reports",
    ),
    "experiments.ledger": ("sysout_jax", "experiments.records", "experiments.ledger"),
    "experiments": (
        "sysout_jax", "experiments.cli", "experiments.inputs", "experiments.records",
        "experiments.reports", "experiments.ledger",
    ),
    "benchmarks": ("sysout_jax", "benchmarks", "experiments.cli.launch"),
}  # fmt: skip
FACADE = "sysout_jax"  # its imports are checked against its own table below

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("sysout_jax", *CLONE_ONLY)
    for path in sorted((ROOT / folder).rglob("*.py"))
}
OURS = sorted(name for name in MODULES if name.startswith("sysout_jax"))


@cache
def tree(module):
    return ast.parse(MODULES[module].read_text())


def absolute(module, node):
    """The module that an import statement names. Only experiments/ imports relatively: the wheel
    carries it under another name."""
    if not node.level:
        assert not below(node.module, ["experiments"]) or not below(module, ["experiments"])
        return node.module
    assert below(module, ["experiments"]), f"{module}:{node.lineno}: relative import"
    package = module.split(".")[: None if MODULES[module].name == "__init__.py" else -1]
    return ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])


def imported(module, nodes=None):
    """The dotted names that a module imports; `from a import b` gives a.b where that is one."""
    found = set()
    for node in nodes if nodes is not None else ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = absolute(module, node)
            names = {f"{home}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else home for name in names}
    return found


def at_import(module):
    """The import statements that run when the module is imported."""
    todo, found = list(tree(module).body), []
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append(node)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo += ast.iter_child_nodes(node)
    return found


def below(name, prefixes):
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


# ------------------------------------------------------------------------- arrows


@pytest.mark.parametrize("module", [name for name in MODULES if name != FACADE])
def test_no_import_against_the_picture(module):
    room = next((room for room in MAY_IMPORT if below(module, [room])), None)
    assert room, f"{module} is in no room: say in MAY_IMPORT what it may import"
    ours = {name for name in imported(module) if below(name, ("sysout_jax", *CLONE_ONLY))}
    against = {name for name in ours if not below(name, MAY_IMPORT[room])}
    assert not against, f"{module} imports {', '.join(sorted(against))}"


@pytest.mark.parametrize("module", [name for name in OURS if below(name, ["sysout_jax.core"])])
def test_core_is_arrays_and_nothing_else(module):
    roots = {name.partition(".")[0] for name in imported(module)}
    allowed = {"jax", "numpy", "jaxtyping", "sysout_jax", "scipy"} | set(sys.stdlib_module_names)
    assert not roots - allowed
    assert not roots & {"os", "io", "pathlib", "json", "subprocess", "random", "time", "logging"}


def test_only_figures_import_matplotlib_and_only_when_drawn():
    drawing = ("matplotlib", "mpl_toolkits")
    users = {name for name in MODULES if any(below(x, drawing) for x in imported(name))}
    allowed = ("sysout_jax.plots", "sysout_jax.report.findings", "theory.figures")
    assert all(below(name, allowed) for name in users)
    for module in (*OURS, "theory.figures"):
        names = imported(module, at_import(module))
        assert not any(below(name, drawing) for name in names), module


def test_no_flag_is_defined_in_the_package():
    assert not [name for name in OURS if any(below(x, ["absl"]) for x in imported(name))]


def test_no_clock_decides():
    """A wrong one changes nothing: clocks name run directories and date records."""
    clocks = re.compile(r"time\.time(_ns)?\(|\.now\(")
    read = {module for module, path in MODULES.items() if clocks.search(path.read_text())}
    assert read == {"sysout_jax.results"}
    # Of files, times are compared with each other: where they mislead, a file is read again.
    stamps = re.compile(r"st_[acm]time|get[acm]time\(")
    read = {module for module, path in MODULES.items() if stamps.search(path.read_text())}
    assert read == {"sysout_jax.data.unchanged"}


def test_no_room_for_odds_and_ends():
    names = {part for path in MODULES.values() for part in path.relative_to(ROOT).parts}
    assert not names & {"utils.py", "common.py", "helpers.py", "misc.py", "utils", "common"}


# ------------------------------------------------------------------------- the facade

PROBE = """
import sys, time
begun = time.perf_counter()
import sysout_jax
seconds = time.perf_counter() - begun
loaded = sorted({name.partition(".")[0] for name in sys.modules} & set(%(heavy)r))
for name in sysout_jax.__all__:
    getattr(sysout_jax, name)
flags = []
if "absl.flags" in sys.modules:
    by_module = sys.modules["absl.flags"].FLAGS.flags_by_module_dict()
    flags = [module for module in by_module if module.startswith(("sysout_jax", "experiments"))]
from jax._src import xla_bridge
print(repr((seconds, loaded, flags, xla_bridge.backends_are_initialized(),
            "matplotlib" in sys.modules)))
"""


def test_importing_is_fast_and_without_effect():
    heavy = ["matplotlib", "flax", "jax", "absl", "optax", "orbax"]
    done = subprocess.run(
        [sys.executable, "-c", PROBE % {"heavy": heavy}],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds, loaded, flags, device_touched, matplotlib = ast.literal_eval(done.stdout)
    assert seconds < 3
    assert loaded == []
    assert flags == []
    assert not device_touched
    assert not matplotlib
    assert done.stderr == ""


def test_the_public_names():
    for name in sysout_jax.__all__:
        assert getattr(sysout_jax, name) is not None
        assert name in dir(sysout_jax)
    assert sysout_jax.__all__ == sorted(set(sysout_jax.__all__))
    assert sysout_jax.measures is importlib.import_module("sysout_jax.core.measures")
    assert sysout_jax.train is importlib.import_module("sysout_jax.training.loop").train
    assert "__all__" in dir(sysout_jax)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = sysout_jax.trian


def test_type_checkers_see_the_public_names():
    seen = {
        alias.asname: node.module
        for node in ast.walk(tree(FACADE))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    homes = {name: home for name, home in sysout_jax._HOMES.items() if name != "measures"}
    assert seen == homes | {"measures": "sysout_jax.core"}


# ------------------------------------------------------------------------- size and words


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_are_short(module):
    assert len(MODULES[module].read_text().splitlines()) <= 400
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{module}.{node.name}: {length} lines"


def undocumented(module):
    """Public classes, functions and methods without a docstring."""

    def visit(node, prefix):
        for child in node.body:
            if not isinstance(child, ast.FunctionDef | ast.ClassDef) or child.name.startswith("_"):
                continue
            if ast.get_docstring(child) is None:
                yield child, f"{prefix}{child.name}"
            if isinstance(child, ast.ClassDef):
                yield from visit(child, f"{prefix}{child.name}.")

    return visit(tree(module), "")


def decorators(node):
    return {ast.unparse(d).partition("(")[0] for d in node.decorator_list}


# The formula of a variant is in its table. The methods of tokenizers are documented once, in the
# protocol, and its properties in the text of the class.
METHODS = {"encode", "encode_many", "decode", "pieces", "save"}
EXCEPTIONS = {
    "sysout_jax.data.tokenizer": {
        *(f"ByteTokenizer.{name}" for name in METHODS),
        *(f"SubwordTokenizer.{name}" for name in METHODS | {"vocab", "fingerprint", "cut"}),
        *(f"Tokenizer.{name}" for name in ("vocab", "eot", "bos", "adds_bos")),
        *(f"Tokenizer.{name}" for name in ("fingerprint", "cut")),
    },
    # Linen modules of a few lines; flax prescribes the methods of its metadata.
    "sysout_jax.model.block": {
        "Norm", "Attention", "Mlp", "BoxedParam.unbox", "BoxedParam.replace_boxed",
        "BoxedParam.add_axis", "BoxedParam.remove_axis",
    },
}  # fmt: skip


@pytest.mark.parametrize("module", OURS)
def test_public_names_are_documented(module):
    assert ast.get_docstring(tree(module))
    missing = {
        name
        for node, name in undocumented(module)
        if not (below(module, ["sysout_jax.core.attention"]) and "variant" in decorators(node))
    }
    assert missing == EXCEPTIONS.get(module, set())


def test_no_path_of_a_machine_is_committed():
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        pytest.skip("not a git clone: which files are committed is not known")
    machine = re.compile(r"(?<![\w.}])/(?:work|root|tmp|home/\w+)/")
    files = [ROOT / name for name in done.stdout.split("\0") if name]
    assert len(files) > 20
    found = []
    for path in files:
        if path.relative_to(ROOT).parts[0] == "tests" or not path.is_file():
            continue
        raw = path.read_bytes()
        if b"\0" not in raw and machine.search(raw.decode(errors="replace")):
            found.append(str(path.relative_to(ROOT)))
    assert not found
