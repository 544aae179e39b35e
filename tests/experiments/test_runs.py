"""The list of runs: what became of each, told from what is on disk."""

import pytest

from sysout_jax.errors import InputError
from sysout_jax.results import RunDirectory


def test_what_became_of_each(run_runs, tmp_path, monkeypatch):
    with RunDirectory(tmp_path, "analyze", of=["gpt2"]).record("analysis") as record:
        began = record["provenance"]["started"]
    with pytest.raises(InputError), RunDirectory(tmp_path, "compress", "broke").record("study"):
        raise InputError("--a: no")
    killed = RunDirectory(tmp_path, "variants", "killed")
    killed._metrics.close()
    (killed.path / "result.json").write_text("{")
    goes_on = RunDirectory(tmp_path, "variants", "all/shard-0-of-2")
    (goes_on.path / "states").mkdir()
    (goes_on.path / "states" / "big").write_bytes(bytes(1_234_567))
    monkeypatch.setenv("COLUMNS", "120")
    outcome = run_runs(f"--workdir={tmp_path}")
    goes_on._metrics.close()
    assert (outcome.status, outcome.err) == (0, "")
    found = [line.split() for line in outcome.out.splitlines()[-5:] if line.strip()]
    began = began[:16].split("T")
    assert [line[:3] for line in found] == [
        ["analyze", (tmp_path / "analyze" / "latest").resolve().name, "complete"],
        ["compress", "broke", "failed"],
        ["variants", "all/shard-0-of-2", "running"],
        ["variants", "killed", "killed"],
    ]  # fmt: skip
    assert found[0][3:] == [*began, "0.0"]
    assert found[2][-1] == "1.2"


def test_no_such_place(run_runs, tmp_path):
    outcome = run_runs(f"--workdir={tmp_path / 'none'}")
    assert outcome.status == 2
    assert outcome.err == (
        f"error: --workdir={tmp_path / 'none'}: no such directory; accepted: where runs are\n"
    )
