"""Flags that would have no effect are refused; the commands of the records are accepted."""

import importlib

import pytest
from absl import flags

from experiments.records.commands import COMMANDS
from tests import usage
from tests.refusing import refusal

SHORT = "--variants=softmax,sigmoid"


def config_of(command):
    """What a command runs by, without running it."""
    name, *arguments = command.split()
    module = importlib.import_module(name)
    usage.define(module)
    flags.FLAGS([name, *arguments])
    return module.config_from_flags()


@pytest.mark.parametrize("command", sorted({each for of in COMMANDS.values() for each in of}))
def test_commands_of_records_are_accepted(command):
    assert config_of(command)


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("compress --top=3", "top=3: no effect; accepted: with boost"),
        ("compress --rungs=3", "rungs=3: no effect; accepted: with boost"),
        ("compress --budget=4", "budget=4.0: no effect; accepted: with boost"),
        ("compress --methods=w8 --alpha=0.4", "alpha=0.4: no effect; accepted: with a smooth"),
        ("explicit --finetune=0 --draws=2", "draws=2: no effect; accepted: with distil or"),
        ("explicit --finetune=0 --finetune_lr=1", "finetune_lr=1.0: no effect; accepted: with dis"),
        ("explicit --finetune=0 --finetune_batch=2", "finetune_batch=2: no effect; accepted: with"),
        (
            "compress --methods=w8,kv4 --calibration_corpus=x",
            "calibration_corpus=x: no effect; accepted: with a method or a conversion",
        ),
        ("convergence --tokenizer=gpt2:x", "tokenizer=gpt2:x: no effect on backcopy; accepted: wi"),
        ("variants --corpus=backcopy --tokenizer=bpe:300", "tokenizer=bpe:300: no effect on backc"),
        ("explicit --methods=w8,w8", "methods=w8,w8: accepted: at least one, none of them twice"),
        (f"benchmark {SHORT} --bases=sigmoid,sigmoid", "bases=sigmoid,sigmoid: accepted: at"),
        (f"benchmark {SHORT} --bases=sink_logit", "bases=sink_logit: no effect; accepted: of var"),
        (f"laboratory {SHORT} --bases=sigmoid,sigmoid", "bases=sigmoid,sigmoid: accepted: at"),
        (f"laboratory {SHORT} --bases=sink_logit", "bases=sink_logit: no effect; accepted: of "),
        ("variants --momentum=0.5", "momentum=0.5: no effect; accepted: with sgd or muon"),
        ("variants --corpus=stdlib --steps=30 --warmup=30", "warmup=30: the learning rate reaches"),
        ("benchmark --preset=sinks --steps=40 --warmup=50", "warmup=50: the learning rate reache"),
        ("laboratory --warmup=1500", "warmup=1500: the learning rate reaches its peak at no step"),
        ("variants --optimizer=sgd --eps=1e-6", "eps=1e-06: no effect; accepted: with adamw or m"),
        ("variants --optimizer=sgd --beta2=0.9", "beta2=0.9: no effect; accepted: with adamw or "),
        ("convergence --optimizer=lion --eps=1e-6", "eps=1e-06: no effect; accepted: with adamw o"),
        ("convergence --schedule=constant --lr_floor=0", "lr_floor=0.0: no effect; accepted: with"),
        ("benchmark --optimizers=adamw --momentum=0.5", "momentum=0.5: no effect; accepted: with"),
        ("laboratory --cooldown=0.5", "cooldown=0.5: no effect; accepted: with wsd"),
        ("laboratory --variants=softmx", "variants='softmx': unknown"),
        ("laboratory --optimizers=adam", "optimizers='adam': unknown"),
        ("laboratory --losses=some", "losses='some': unknown"),
        ("laboratory --methods=w9", "methods=w9: "),
        ("laboratory --chains=1,1", "chains=1,1: accepted: at least one, none of them twice"),
        ("laboratory --chains=-1", "chains=-1: accepted: integers from 0"),
        ("laboratory --layers=0", "layers=0: accepted"),
        ("laboratory --layers=a", "layers=a: accepted: integers"),
        ("laboratory --decays=-0.1", "decays=-0.1: accepted: numbers of at least 0"),
        ("laboratory --epsilons=0", "epsilons=0.0: accepted: numbers above 0"),
        ("laboratory --norms=batch", "norms='batch': unknown; accepted: own, layer"),
        ("laboratory --penalties=l2", "penalties='l2': unknown; accepted: none, tweo"),
        ("laboratory --name=../x", "name=../x: accepted: letters"),
        ("convergence --variants=softmx", "variants='softmx': unknown"),
        (
            "convergence --variants=softmax,softmax",
            "variants=softmax,softmax: accepted: at least one",
        ),
        ("convergence --variants=sigmoid", "baseline=softmax: accepted: one of variants=sigmoid"),
        ("convergence --baseline=relu", "baseline=relu: accepted: one of variants"),
        ("convergence --lrs=", "lrs=: accepted: at least one"),
        (
            "convergence --lrs=1e-3,0.001",
            "lrs=0.001,0.001: accepted: at least one, none of them twice",
        ),
        ("convergence --lrs=a", "lrs=a: accepted: numbers"),
        ("convergence --lrs=-1", "lrs=-1: accepted: finite numbers above 0"),
        ("convergence --rounds=0", "rounds=0: accepted: an integer of at least 1"),
        ("convergence --model=foo", "model='foo': unknown"),
        ("tour --calibration=2", "calibration=2: accepted: an integer of at least 4"),
        ("tour --seq_len=8", "seq_len=8: accepted: an integer of at least 32"),
        (
            "causal --model=x --factors=1,2",
            "factors=1,2: accepted: different numbers, 0 and 1 among them",
        ),
        ("causal --model=x --factors=0,1,inf", "factors=0,1,inf: accepted: finite numbers"),
        ("causal --model=x --controls=0", "controls=0: accepted: an integer of at least 1"),
    ],
)
def test_what_has_no_effect_or_is_not_accepted_is_refused(command, line):
    assert refusal(config_of, f"experiments.{command}").startswith(line)


@pytest.mark.parametrize(
    ("binary", "argument", "told"),
    [
        ("laboratory", "--layers=0", "--layers=0: accepted: an integer of at least 1"),
        ("convergence", "--rounds=0", "--rounds=0: accepted: an integer of at least 1"),
        ("convergence", "--corpus=nowhere.txt", "nowhere.txt"),
        ("causal", "--model=x --controls=0", "--controls=0: accepted: an integer of at least 1"),
        ("tour", "--model=x --seq_len=8", "--seq_len=8: accepted: an integer of at least 32"),
    ],
)
def test_a_refusal_is_one_line_and_writes_nothing(
    request, tmp_path, monkeypatch, binary, argument, told
):
    monkeypatch.chdir(tmp_path)
    assert told in request.getfixturevalue(f"run_{binary}")(*argument.split()).refusal
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        "compress --methods=smooth-w8a8 --alpha=0.4 --rungs=2",
        "explicit --finetune=0 --draws=1 --finetune_lr=1e-3",
        "compress --methods=wanda-0.5 --calibration_corpus=x",
        "compress --methods=w8 --conversions=bound --calibration_corpus=x",
        "variants --tokenizer=bpe:300",
        "explicit --finetune=0 --distil=5 --draws=2",
        f"benchmark {SHORT}",
        f"laboratory {SHORT} --bases=",
        "variants --optimizer=sgd --momentum=0.5 --beta2=0.95",
        "variants --schedule=wsd --cooldown=0.5 --lr_floor=0",
        "laboratory --momentum=0.5 --beta1=0.8",
        "laboratory --optimizers=sgd --beta2=0.99",
        "laboratory --warmup=1499",
        "benchmark --momentum=0.5 --schedule=cosine --lr_floor=0",
    ],
)
def test_flags_at_their_defaults_or_with_effect_are_not(command):
    assert config_of(f"experiments.{command}")
