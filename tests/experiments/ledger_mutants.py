"""Errors of the ledger, each a line changed for another, that its tests must catch.

python -m tests.experiments.ledger_mutants    # breaks each line in turn and names survivors
"""

import contextlib
import io
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType

import pytest

ROOT = Path(__file__).parent.parent.parent
TESTS = [str(Path(__file__).parent / f"test_{name}.py") for name in ("predicates", "claims")]
OF = "experiments/ledger/"

# what is wrong -> (file, line or part of it, what it becomes)
MUTANTS: dict[str, tuple[str, str, str]] = {
    # ------------------------------------------------------------------------- evidence
    "sides swapped": (OF + "evidence.py", "mean < bound if below else mean > bound",
                      "mean > bound if below else mean < bound"),
    "bound 0": (OF + "evidence.py", "ttest_1samp(units, bound)", "ttest_1samp(units, 0.0)"),
    "chains times seeds": (OF + "evidence.py", "return found.mean(axis=0) if found.ndim == 2 else",
                           "return found.ravel() if found.ndim == 2 else"),
    "the mean of seeds": (OF + "evidence.py", "found.mean(axis=0)", "found.mean(axis=1)"),
    "one part supports": (OF + "evidence.py", "else max(each.p for each in pieces)",
                          "else min(each.p for each in pieces)"),
    "parts uncounted": (OF + "evidence.py", "len(pieces) * min(against)", "min(against)"),
    "no t is certain": (OF + "evidence.py", "return INCONCLUSIVE, nan", "return SUPPORTED, 0.0"),
    "verdicts swapped": (OF + "evidence.py", "REFUTED if against else SUPPORTED",
                         "SUPPORTED if against else REFUTED"),
    "level 0.1": (OF + "evidence.py", "ALPHA = 0.05", "ALPHA = 0.1"),
    "one side of two": (OF + "evidence.py", "float(max(low, high))", "float(min(low, high))"),
    "the lower side alone": (OF + "evidence.py", "float(max(low, high))", "float(low)"),
    "the margin on one side": (OF + "evidence.py", "(units, -margin,", "(units, margin,"),
    "the best is shown": (OF + "evidence.py", "worst = min(", "worst = max("),
    # ----------------------------------------------------------------------- predicates
    "above for below": (OF + "predicates.py", "found < self.bound if self.below else found >",
                        "found > self.bound if self.below else found <"),
    "the bound itself": (OF + "predicates.py", "else found > self.bound",
                         "else found >= self.bound"),
    "any cell": (OF + "predicates.py", "holds.all(axis=0)", "holds.any(axis=0)"),
    "any chain": (OF + "predicates.py", "-1).all(axis=1)", "-1).any(axis=1)"),
    "half is most": (OF + "predicates.py", "if found.mean() > 0.5", "if found.mean() >= 0.5"),
    "no control": (OF + "predicates.py", "[control.refusal(records)] if control else []", "[]"),
    "any loss": (OF + "predicates.py", "for pair in pairs] if equal else []",
                 "for pair in ()] if equal else []"),
    "a part of the loss": (OF + "predicates.py", "for part in self.parts:",
                           "for part in self.parts[:1]:"),
    "losses equal": (OF + "predicates.py", "if not within(difference, self.margin) < ALPHA",
                     "if within(difference, self.margin) > 0.99"),
    "loss of another": (OF + "predicates.py", "pooled(records, one, part) - pooled(records, other",
                        "pooled(records, one, part) - pooled(records, one"),
    "absent without control": (OF + "predicates.py", "and self.control is None", "and False"),
    "another share": (OF + "predicates.py", "binomtest(k, n, self.most)", "binomtest(k, n)"),
    "one-sided count": (OF + "predicates.py", "binomtest(k, n, self.most)",
                        "binomtest(k, n, self.most, 'greater')"),
    "too few decide": (OF + "predicates.py", "for each in (0, n)) >= ALPHA",
                       "for each in (0, n)) >= 1.1"),
    "first measure alone": (OF + "predicates.py", "((self.measure, self.bound), *self.also):",
                            "((self.measure, self.bound),):"),
    "cells swapped": (OF + "predicates.py", "found = a / b if self.ratio else a - b",
                      "found = b / a if self.ratio else b - a"),
    "difference for ratio": (OF + "predicates.py", "a / b if self.ratio else a - b", "a - b"),
    "the last third dropped": (OF + "predicates.py", "for measure in (self.measure, *self.also):",
                               "for measure in (self.measure,):"),
    "control of the dose dropped": (OF + "predicates.py", 'change("") - change(" beside=1")',
                                    'change("")'),
    "no change is a fall": (OF + "predicates.py", "piece(found, -self.falls, below=True)",
                            "piece(found, 0.0, below=True)"),
    "any cost": (OF + "predicates.py", "cost - self.share * removal", "cost - removal"),
    "share 0": (OF + "predicates.py", "cost - self.share * removal", "cost"),
    "constant forgotten": (OF + "predicates.py", "if self.than:\n            other", "if False:\n"
                           "            other"),
    "removal is free": (OF + "predicates.py", "if not (price.towards and price.p < ALPHA)",
                        "if not price.p < ALPHA"),
    "equal before different": (OF + "predicates.py",
                               "if p < ALPHA and not far:\n            says = SUPPORTED if",
                               "if p < 0.0:\n            says = SUPPORTED if"),
    "recall dropped": (OF + "predicates.py", "recall.low > chance, ", ""),
    "precision dropped": (OF + "predicates.py", "beyond = [precision.low > self.precision, ",
                          "beyond = ["),
    "chance of precision": (OF + "predicates.py", '* row["mean_given"] / row["mean_found"]',
                            '* row["mean_found"] / row["mean_given"]'),
    # ------------------------------------------------------------------- table, registry
    "removal_harms by 0": (OF + "claim.py", "HARM = 0.01", "HARM = 0.0"),
    "value drain 0.9": (OF + "outliers.py", 'Level("value_drain@value", 0.5, True, ABC), DEMO',
                        'Level("value_drain@value", 0.9, True, ABC), DEMO'),
    "factor and softmax swapped": (OF + "causes.py", 'than("train_loss", "context_scale",',
                                   'than("train_loss", "softmax", "context_scale",'),
    "last third of source": (OF + "causes.py", 'also=("loss_last_third",), ', ""),
    "copying forgotten": (OF + "claim.py", '("loss_bigram", "loss_copy")', '("loss_bigram",)'),
    "uncorrected": (OF + "table.py", "and not rate < ALPHA", "and not row['p'] < ALPHA"),
    "Bonferroni for Holm": (OF + "table.py", "(p.size - np.arange(p.size)) *", "p.size *"),
    "Holm in another order": (OF + "table.py", "adjusted[order] =", "adjusted[:] ="),
    "the latest version": (OF + "registry.py", '"--reverse", "--format=%h %aI"',
                           '"--format=%h %aI"'),
    "any seeds": (OF + "registry.py", "if seeds_of(version) == seeds_of(record):", "if True:"),
    "after predicts": (OF + "registry.py", "_time(written) < _time(first)",
                       "_time(written) > _time(first)"),
    "time of the rebase": (OF + "registry.py", '"--reverse", "--format=%h %aI"',
                           '"--reverse", "--format=%h %cI"'),
    "changed in silence": (OF + "registry.py", "if changed and", "if False and"),
    "renewed for ever": (OF + "registry.py", 'in ("", before.get("renews"))', 'in ("",)'),
    "exit status ignored": ("experiments/claims.py", "if done.returncode:", "if False:"),
    "made again": ("experiments/claims.py", "if commands in made:", "if False:"),
    "registration unchecked": ("experiments/claims.py", "REGISTERED if pending",
                               "REGISTERED if True"),
}  # fmt: skip


def survivors() -> list[str]:
    """The mutants with which every test passes.

    Raises:
      LookupError: a line is not in its file once.
    """
    plain = SourceFileLoader.get_code
    alive = []
    for name, (file, old, new) in MUTANTS.items():
        path = ROOT / file
        text = path.read_text()
        if text.count(old) != 1:
            raise LookupError(f"{name}: {text.count(old)} times in {file}: {old}")
        broken = compile(text.replace(old, new), str(path), "exec")

        def get_code(
            self: SourceFileLoader, module: str, at: Path = path, code: CodeType = broken
        ) -> CodeType | None:
            return code if self.path == str(at) else plain(self, module)

        SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
        if _passes():
            alive.append(name)
        SourceFileLoader.get_code = plain  # type: ignore[method-assign]
    return alive


def _passes() -> bool:
    """Whether the tests pass with the modules as they are loaded now, from the beginning."""
    for module in list(sys.modules):
        if module.startswith(("experiments", "tests.experiments")) and module != __name__:
            del sys.modules[module]
    with contextlib.redirect_stdout(io.StringIO()):
        return pytest.main(["-x", "-q", "-n0", "-pno:cacheprovider", *TESTS]) == pytest.ExitCode.OK


if __name__ == "__main__":
    if not _passes():
        sys.exit("the tests fail without any mutant")
    found = survivors()
    print(f"{len(MUTANTS) - len(found)} of {len(MUTANTS)} mutants are caught")
    sys.exit(f"survive: {', '.join(found)}" if found else 0)
