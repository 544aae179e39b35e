"""What is claimed of outliers, and what the records here say of it.

python -m experiments.claims                         # the ledger
python -m experiments.claims --check                 # decide all again; fail where one differs
python -m experiments.claims --run=removal_harms     # measure again, and decide from that
python -m experiments.claims --run=all --budget=30   # minutes
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from absl import flags
from rich.console import Console

from sysout_jax.errors import InputError
from sysout_jax.results import LATEST, named_run, plain, read_record, write_json
from sysout_jax.showing import Table

from .cli import launch
from .cli.tables import print_table
from .ledger import books as _books  # enters its claims  # noqa: F401
from .ledger import causal as _causal  # noqa: F401
from .ledger import laboratory as _laboratory  # noqa: F401
from .ledger import levers as _levers  # noqa: F401
from .ledger import source as _source  # noqa: F401
from .ledger.claim import FAILS, HOLDS, LEDGER, UNDECIDED, Claim, Record, Unmeasured, Verdict

FLAGS = flags.FLAGS
OFTEN = ("check", "write", "run", "budget", "workdir")  # what --help explains
ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
VERDICTS = RESULTS / "claims.json"
Rows = dict[str, dict[str, Any]]

_BOOKS = (
    "--corpus=tokens:.cache/books --tokenizer=.cache/books/tokenizer.json --preset=fruitfly "
    "--seq_len=256 --batch_size=32"  # what it was before shorter rows were found to do better
)
FRUITFLY = f"experiments.variants {_BOOKS} --steps=5500"
PAIR = (
    f"experiments.variants {_BOOKS} --steps=5000 --variants=softmax,context_scale --seeds=3,4,5,6,7"
)
SINKS = "experiments.variants --preset=sinks --corpus=stdlib --seeds=4,5,6,7,8"
# record -> the commands that make it anew, each given the run of the first where it says RUN
COMMANDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "variants/demo": ("experiments.variants",),
        "theory": ("theory.verify --json",),
        "analyze/backcopy": (
            "experiments.variants --corpus=backcopy --variants=softmax --checkpoint_every=50",
            "experiments.analyze --model=RUN --variant=softmax --sequences=64",
        ),
        "compress/backcopy": (
            "experiments.variants --corpus=backcopy", "experiments.compress --model=RUN"
        ),
        "convergence/backcopy": (
            "experiments.convergence --lrs=7.8e-4,2.3e-3,7e-3 --seeds=0,1,2,3,4 --steps=3000",
        ),
        "convergence/stdlib-tuned": (
            "experiments.convergence --corpus=stdlib --tokenizer=bpe:1024 "
            "--variants=softmax,context_scale --lrs=2e-3,3e-3,1e-3 --seeds=11,12,13,14,15,16 "
            "--steps=2000 --seq_len=64 --batch_size=16 --measure_every=100",
        ),
        "explicit/backcopy": (
            "experiments.variants --corpus=backcopy --variants=softmax",
            "experiments.explicit --model=RUN --finetune=200 --sequences=128",
        ),
        "laboratory": ("experiments.laboratory",),
        "causal/backcopy": (
            "experiments.variants --corpus=backcopy --variants=softmax --layers=3 "
            "--seeds=0,1,2,3,4 --steps=1500 --batch_size=8 --measure_every=500",
            "experiments.causal --model=RUN",
        ),
        "variants/fruitfly-h100": (FRUITFLY,),
        "analyze/fruitfly-h100": (
            FRUITFLY,
            "experiments.analyze --model=RUN --variant=softmax --seed=0 --seq_len=256 "
            "--only=existence,positions,relations,lifecycle,roles,measures,interventions",
        ),
        "analyze/fruitfly-h100-seed2": (
            FRUITFLY,
            "experiments.analyze --model=RUN --variant=softmax --seed=2 --seq_len=256 "
            "--sequences=32 --only=positions,relations,interventions",
        ),
        "variants/fruitfly-pair-h100": (PAIR,),
        "causal/fruitfly-h100": (
            PAIR, "experiments.causal --model=RUN --seq_len=256 --sequences=8 --controls=4"
        ),
        "compress/fruitfly-h100": (
            FRUITFLY,
            "experiments.compress --model=RUN --seq_len=256 --methods=w8-tensor,w8,w4,w3,gptq-w4,"
            "w8a8-tensor,w8a8,w6a6,w4a4,rotate-w4a4,kv4,magnitude-0.5,wanda-0.5,wanda-2:4,"
            "sparsegpt-0.5",
        ),
        "benchmark/fruitfly-h100": (
            f"experiments.benchmark {_BOOKS} --name=levers --seeds=8,9,10 --steps=4000 "
            "--steps_per_call=50 "
            "--variants=softmax,value_gate,attention_bias,context_scale --optimizers=adamw,muon "
            "--norms=own,sandwich "
            "--settings=own,llama,repeated,quarter_context,decay_0,decay_1,eps_1e-4 "
            "--bases=softmax,attention_bias,context_scale --methods=w4a4,magnitude-0.5",
        ),
        "benchmark/sinks": (
            "experiments.benchmark --preset=sinks --name=sinks --seeds=1,2,3 --variants=softmax,"
            "value_bias,context_bias,attention_bias,context_scale,sigmoid,softmax_off_by_one,"
            "sink_logit,value_gate --optimizers=adamw,muon --norms=own,rms,sandwich,qk "
            "--settings=own,llama,repeated,quarter_context,no_bos,decay_0,decay_1,eps_1e-4 "
            "--bases=softmax --methods=w4a4,magnitude-0.5",
        ),
        "benchmark/sinks-contexts": (
            "experiments.benchmark --preset=sinks --name=contexts --seeds=4,5,6,7,8 "
            "--variants=softmax --optimizers=adamw --norms=own "
            "--settings=own,quarter_context,four_contexts --measure_seq_len=16 --val_batches=16 "
            "--bases=softmax --methods=w4a4",
        ),
        "variants/sinks": (SINKS,),
        "explicit/sinks": (SINKS, "experiments.explicit --model=RUN"),
        "causal/sinks": (SINKS, "experiments.causal --model=RUN"),
        "explicit/fruitfly-h100": (
            PAIR,
            "experiments.explicit --model=RUN --seq_len=256 --finetune=30 --finetune_batch=8 "
            "--finetune_lr=3e-4",
        ),
    }
)  # fmt: skip


def decided(results: Path) -> Rows:
    """Every claim with its verdict, from the records below a directory.

    Raises:
      InputError: a record that cannot be read, or that has not what the claim reads.
    """
    return {name: _row(each, results) for name, each in LEDGER.items()}


def _row(each: Claim, results: Path) -> dict[str, Any]:
    if not (path := _place(results, each.record)).exists():
        raise InputError(str(path), None, "a clone with its results/", "no such record")
    return _judged(each, _read(path))


def _judged(each: Claim, record: Record) -> dict[str, Any]:
    started = record["provenance"]["started"]
    # A day does not say which came first on it; a time does.
    predicted = each.written < started[: len(each.written)]
    about = {"started": started, "scale": scale(record), "threshold_before_record": predicted}
    try:
        verdict = each.decide(record)
    except Unmeasured as error:
        verdict = Verdict(UNDECIDED, f"not measured yet: {error}")
    return _described(verdict, about)


def scale(record: Record) -> str:
    """How large the test was: text, parameters, seeds."""
    if "checks" in record:
        return "random heads, float64"
    if "runs" in record:
        runs, chains = len(record["runs"]), len(record["chains"])
        return f"backcopy, {runs} runs of {chains} chains in each cell"
    if "preset" in record:
        found = {round(cell["parameters"] / 1e3) for cell in record["cells"]}
        many = f"{min(found)}k" + (f" to {max(found)}k" if len(found) > 1 else "")
        text, seeds = _text(record["train"]["corpus"]), len(record["train"]["seeds"])
        return f"{text}, {many} parameters, {seeds} seeds in each cell"
    if "studies" in record:
        study = record["studies"][0]
        sizes = [each["parameters"] for each in study["variants"].values()]
        seeds = len(study["config"]["seeds"])
        return f"{study['name']}, {np.median(sizes) / 1e3:.0f}k parameters, {seeds} seeds"
    if "models" in record:
        seeds = len({model["seed"] for model in record["models"]})
        return f"{_text(record['models'][0]['corpus'])}, {seeds} seeds"
    seeds = len(record["config"]["seeds"]) if "config" in record else 1
    return f"{record['corpus']}, {seeds} seed{'s' * (seeds > 1)}"


def _text(corpus: str) -> str:
    return Path(corpus.removeprefix("tokens:")).name


def _described(verdict: Verdict, about: dict[str, Any]) -> dict[str, Any]:
    return {"verdict": verdict.says, "numbers": verdict.numbers, **about}


def _place(results: Path, record: str) -> Path:
    return results / record / ("verify.json" if record == "theory" else "result.json")


def _read(path: Path) -> Record:
    return json.loads(path.read_text()) if path.name == "verify.json" else read_record(path.parent)


# ------------------------------------------------------------------------- measuring again


def run(names: list[str], budget: float | None, workdir: Path, console: Console) -> None:
    """Make the records of claims anew below `workdir`, and say what they decide.

    Records are made in the order of the ledger, each once; one is begun only while there is budget.

    Raises:
      InputError: a command of a record failed.
    """
    begun = time.monotonic()
    wanted = list(dict.fromkeys(LEDGER[name].record for name in names))
    for record in wanted:
        mine = [name for name in names if LEDGER[name].record == record]
        if budget is not None and time.monotonic() - begun > 60.0 * budget:
            console.print(f"{', '.join(mine)}: not run, the budget is spent", soft_wrap=True)
            continue
        found = _made(record, workdir, console)
        for name in mine:
            row = _judged(LEDGER[name], found)
            console.print(f"{name}: {row['verdict']} ({row['numbers']})", soft_wrap=True)


def _made(record: str, workdir: Path, console: Console) -> Record:
    """The record that its commands make; the last one's."""
    first: Path | None = None
    for command in COMMANDS[record]:
        module, *arguments = command.replace("RUN", str(first)).split()
        console.print(f"python -m {module} {' '.join(arguments)}", soft_wrap=True, markup=False)
        if module == "theory.verify":
            verify = [sys.executable, "-m", module, *arguments]
            printed = subprocess.run(verify, cwd=ROOT, capture_output=True, check=False).stdout
            return dict(json.loads(printed))
        place = (workdir / module.partition(".")[2]).absolute()
        arguments.append(f"--workdir={workdir.absolute()}")
        done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, check=False)
        if done.returncode:
            raise InputError(
                "run", why=f"{command!r} ended with status {done.returncode}; see above"
            )
        named = [a.partition("=")[2] for a in arguments if a.startswith("--name=")]
        made = Path(named_run(str(place / (named or [LATEST])[0])))
        first = first or made
    return read_record(made)


# ------------------------------------------------------------------------------- the table


def table(rows: Rows) -> Table:
    """The ledger, as docs/claims.md shows it."""
    found = []
    for name, row in rows.items():
        each = LEDGER[name]
        when = "" if row.get("threshold_before_record", True) else " (set after the run)"
        found.append(
            [each.statement, row["verdict"], row["numbers"], each.threshold + when,
             row.get("scale", ""), each.source]
        )  # fmt: skip
    headings = ("claim", "verdict", "numbers", "threshold", "tested on", "source")
    return Table.of("", headings, found, "l")


def summary(rows: Rows) -> Table:
    """The names of the claims by verdict, as the README shows them."""
    found = []
    for verdict in (HOLDS, FAILS, UNDECIDED):
        names = [name for name, row in rows.items() if row["verdict"] == verdict]
        sides = (
            ", ".join(name.replace("_", " ") for name in names if LEDGER[name].disputed is disputed)
            for disputed in (False, True)
        )
        found.append([f"{verdict} ({len(names)})", *sides])
    return Table.of("", ("verdict", "of the paper", "of others, or disputed"), found, "l")


def named(rows: Rows) -> Table:
    """The ledger by name, as a terminal has room for it."""
    found = [
        (name, LEDGER[name].statement, row["verdict"], row["numbers"], row.get("scale", ""))
        for name, row in rows.items()
    ]
    return Table.of("", ("name", "claim", "verdict", "numbers", "tested on"), found, "l")


# ------------------------------------------------------------------------------ the binary


def main() -> None:
    console = Console()
    if FLAGS.run is not None:
        names = list(LEDGER) if FLAGS.run == ["all"] else FLAGS.run
        unknown = [name for name in names if name not in LEDGER]
        if unknown:
            raise InputError("run", unknown[0], f"all, {', '.join(LEDGER)}", "unknown")
        run(names, FLAGS.budget, Path(FLAGS.workdir), console)
        return
    rows = decided(RESULTS)
    if FLAGS.write:
        write_json(VERDICTS, rows)
    if FLAGS.markdown:
        print(f"{summary(rows).to_markdown()}\n\n{table(rows).to_markdown()}")
    else:
        print_table(console, named(rows))
    if FLAGS.check:
        check(rows, VERDICTS)


def check(rows: Rows, path: Path) -> None:
    """Compare what the records say with what the file says they do.

    Raises:
      InputError: they differ, or there is no such file.
    """
    try:
        stated = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(str(path), None, "what --write wrote", str(error)) from error
    found = plain(rows)
    differing = [name for name in {**found, **stated} if found.get(name) != stated.get(name)]
    if differing:
        raise InputError(
            str(path),
            None,
            "what the records say, as --write writes it",
            f"says otherwise of {', '.join(differing)}",
        )


def define_flags() -> None:
    """Define the flags of this binary."""
    flags.DEFINE_bool("check", False, "fail if results/claims.json is not what the records say")
    flags.DEFINE_bool("write", False, "write results/claims.json from the records")
    flags.DEFINE_bool("markdown", False, "print the ledger in Markdown")
    flags.DEFINE_list("run", None, "measure these claims again, or all")
    flags.DEFINE_float("budget", None, "with --run: minutes after which no measurement is begun")
    flags.DEFINE_string("workdir", "runs", "with --run: where run directories go")


if __name__ == "__main__":
    define_flags()
    launch.launch(main, OFTEN)
