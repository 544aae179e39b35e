"""Compression as a user meets it: a run in; tables, record and figures, or one line out."""

import copy
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from experiments import compress
from experiments.reports.compress_noise import agreements
from experiments.reports.compress_report import BEFORE, sections
from sysout_jax import plots
from sysout_jax.analysis.compress.compressed import Compressed, losses, losses_by_token
from sysout_jax.analysis.compress.compression import Compressor
from sysout_jax.analysis.compress.schemes import scheme
from sysout_jax.data import load_corpus
from sysout_jax.data.tokenizer import ByteTokenizer
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import init
from sysout_jax.plots import compression
from sysout_jax.training.checkpoint import load, save
from tests.analysis import first_sink as planted

METHODS = ("w16a16", "w4", "smooth-w8a8-tensor-minmax", "gptq-w3", "wanda-2:4", "kv4")


@pytest.fixture(scope="module")
def finished(trained, run_compress, tmp_path_factory):
    place = tmp_path_factory.mktemp("compressed")
    return run_compress(
        f"--model={trained}", f"--methods={','.join(METHODS)}", "--sequences=6", "--calibration=3",
        "--seq_len=13", f"--workdir={place}",
    )  # fmt: skip


def test_every_model_of_the_run_by_every_method(record):
    found = [(model["name"], model["seed"]) for model in record["models"]]
    names = ("backcopy-context_scale", "backcopy-softmax")
    assert found == [(name, seed) for name in names for seed in (3, 5)]
    assert record["status"] == "complete"
    for model in record["models"]:
        assert tuple(model["methods"]) == METHODS
        assert model["tokens"] == {"calibration": 3 * 14, "evaluation": 6 * 13}
        same = model["methods"]["w16a16"]
        assert same["loss"] == model["loss"]
        assert same["change"] == [0.0, 0.0, 0.0]
        assert model["methods"]["w4"]["change"][0] != 0.0
        assert model["methods"]["wanda-2:4"]["zeros"]["down"] == [0.5]


def test_the_loss_is_that_of_the_model(record, trained):
    rows = load_corpus("backcopy", "bytes", True).batch("val", 0, 0, 6, 13)
    model = load(trained / "models" / "backcopy-softmax", 5)
    expected = losses(model.config, Compressed(model.params), rows).mean()
    entry = next(m for m in record["models"] if (m["variant"], m["seed"]) == ("softmax", 5))
    assert entry["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_table_shows_the_record(record, finished):
    table = next(iter(sections(record))).table
    rows = table.texts
    assert "2 seeds" in table.title
    assert [row[0] for row in rows] == ["method", BEFORE, *METHODS]
    of = [m for m in record["models"] if m["variant"] == "softmax"]
    column = rows[0].index("(a) softmax")
    losses = np.mean([m["methods"]["gptq-w3"]["loss"] for m in of])
    change = np.mean([m["methods"]["gptq-w3"]["change"][0] for m in of])
    cell = rows[2 + METHODS.index("gptq-w3")][column]
    assert cell.startswith(f"{np.exp(losses):.4g} ({change:+.3f} ±")
    assert cell in finished.out


def test_a_change_of_one_sequence_has_no_interval(record):
    one = {**record, "models": [dict(record["models"][0])]}
    one["models"][0]["methods"] = {
        name: {**found, "change": [0.25, None, None]}
        for name, found in record["models"][0]["methods"].items()
    }
    _, _, *rows = next(iter(sections(one))).table.texts
    assert all(row[2].endswith("(+0.250)") for row in rows)
    assert "loss" in dict(compression.figures(one))


def test_predictions_are_compared_over_all_tensors(record):
    found = {(kind, bits): each.n for kind, bits, what, each in agreements(record)}
    # 4 models of one layer: 4 inputs, and 6 projections without a gate
    assert found == {
        (kind, bits): 4 * n for kind, n in (("activation", 4), ("weight", 6)) for bits in "864"
    }


def test_what_is_flushed_to_zero_is_said_by_tensor(record, finished):
    section = next(each for each in sections(record) if each.name == "flushed")
    tensors = [each for model in record["models"] for each in model["noise"]]
    assert len(section.table.rows) == 4 + 6
    for kind, name, mean, largest, layer, outliers, rest, without, mxfp4 in section.table.rows:
        mine = [each for each in tensors if (each["kind"], each["name"]) == (kind, name)]
        for shown, (key, of) in {
            mean: ("flushed", "nvfp4"), rest: ("flushed_rest", "nvfp4"),
            without: ("flushed_without", "nvfp4"), mxfp4: ("flushed", "mxfp4"),
        }.items():  # fmt: skip
            assert shown == f"{np.mean([each[key][of] for each in mine]):.1%}"
        assert largest == f"{max(max(each['flushed']['nvfp4']) for each in mine):.1%}"
        assert layer == 0  # the only one
        assert outliers == f"{np.mean([each['outlier_inputs'] for each in mine]):.1f}"
    (line,) = section.lines
    assert "because of outlier inputs in " in line or "in no kind of tensor" in line
    assert line in " ".join(finished.out.split())
    planted = finished.record
    for model in planted["models"]:
        model["noise"][2]["flushed_rest"]["nvfp4"] = [0.9]
        model["noise"][2]["flushed_without"]["nvfp4"] = [0.4]
    worst = next(each for each in sections(planted) if each.name == "flushed").lines[0]
    name = planted["models"][0]["noise"][2]["name"]
    assert f"in activation {name}: 90.0% of the other inputs' entries beside them, 40.0%" in worst


def test_of_models_of_several_depths_the_layer_is_its_own(record):
    deep = copy.deepcopy(record)
    for number, model in enumerate(deep["models"]):
        for each in model["noise"]:
            layers = 2 + number
            for key in ("flushed", "flushed_rest", "flushed_without"):
                each[key] = {of: [0.1] * (layers - 1) + [0.2 + number / 10] for of in each[key]}
            each["outlier_inputs"] = [1.0] * layers
    section = next(each for each in sections(deep) if each.name == "flushed")
    assert {row[4] for row in section.table.rows} == {len(deep["models"])}


def test_a_seed_whose_loss_is_not_finite_is_in_no_mean(record):
    broken = copy.deepcopy(record)
    first = broken["models"][0]
    method = next(iter(first["methods"]))
    first["methods"][method]["change"] = [None, None, None]
    with plots.figures(broken) as drawn:
        (axes,) = dict(drawn)["loss"].axes
    assert [text.get_text() for text in axes.texts] == ["not finite"]


def test_records_from_before_say_nothing_of_it(finished):
    old = finished.record
    for model in old["models"]:
        for each in model["noise"]:
            del each["flushed"]
    assert "flushed" not in [each.name for each in sections(old)]


def test_figures_and_redraw_need_the_record_alone(finished, run_compress, tmp_path):
    figures = {path.name for path in (finished.directory / "figures").glob("*.*")}
    stems = ("loss", "layers", "noise")
    assert figures == {f"{s}{e}" for s in stems for e in (".png", ".pdf")}
    (tmp_path / "result.json").write_text((finished.directory / "result.json").read_text())
    done = run_compress(f"--redraw={tmp_path}", "--markdown")
    assert done.status == 0, done.err
    assert done.out.startswith(
        "| method | bits | (a) softmax | (e) context_scale |\n| --- | ---: |"
    )
    assert len(list((tmp_path / "figures").glob("*.*"))) == 6


def test_the_worst_tokens_are_those_whose_loss_rises_most(record, trained):
    """Beside the losses of whole passes, ranked by hand."""
    rows = load_corpus("backcopy", "bytes", True).batch("val", 0, 0, 6, 13)
    model = load(trained / "models" / "backcopy-softmax", 5)
    compressor = Compressor(model.config, model.params, rows[:3])  # w4 calibrates nothing
    before, after = (
        losses_by_token(model.config, of, rows)
        for of in (Compressed(model.params), compressor.compress(scheme("w4")))
    )
    assert before.shape == (6, 13)
    np.testing.assert_allclose(losses(model.config, Compressed(model.params), rows), before.mean(1))
    entry = next(m for m in record["models"] if (m["variant"], m["seed"]) == ("softmax", 5))
    worst = entry["methods"]["w4"]["worst"]
    assert len(worst) == 10
    ranked = sorted((after - before).ravel(), reverse=True)
    rises = [each["after"] - each["before"] for each in worst]
    np.testing.assert_allclose(rises, ranked[:10], atol=1e-4)
    for each in worst:
        row, end = rows[each["sequence"]], each["position"]
        assert each["token"] == str(row[end])
        assert each["after_text"] == " ".join(map(str, row[max(0, end - 12) : end]))


def test_the_page_names_tensors_layers_and_tokens(finished, record):
    whole = (finished.directory / "report.html").read_text()
    names = [f"{m['name']}-{m['seed']}" for m in record["models"]]
    for name in names:
        assert f"{name}, worst tensors" in whole
        assert f"{name}, layers" in whole
        assert f"{name}, worst tokens under" in whole
    noise = record["models"][0]["noise"]
    lowest = min(each["measured"]["8"][0] for each in noise)  # of one layer
    tables = {section.name: section.table for section in sections(record) if section.asked}
    assert tables[f"{names[0]}-tensors"].rows[0][4] == lowest
    assert lowest in tables[f"{names[0]}-layers"].rows[0]
    assert whole.count("<img ") == 3
    assert f"report   {finished.directory / 'report.html'}" in finished.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--methods=w8,w8",), "--methods=w8,w8: accepted: at least one, none of them twice"),
        (("--methods=w1",), "--methods=w1: 'w1' is none of the words; accepted: formats as"),
        (("--methods=wanda-3:7",), "--methods: 3:7 of the 16 inputs at attn_norm; accepted: N:M"),
        (("--sites=attn_norm,nowhere",), "--sites=attn_norm,nowhere: accepted: some of attn_norm"),
        (
            ("--methods=w8-g32", "--boost=first_last"),
            "--boost: w8-g32 is the ladder's last rung; accepted: a lower one",
        ),
        (
            ("--methods=hqq-w3-g64", "--boost=kurtosis", "--budget=3"),
            "--budget=3.0: accepted: more than the 3.254 bits a weight of hqq-w3-g64",
        ),
        (("--alpha=2",), "--alpha=2.0: accepted: a number from 0 to 1"),
        (("--sequences=0",), "--sequences=0: accepted: an integer of at least 1"),
        (("--variant=relu",), "--variant=relu: fits 0 of the models"),
        (("--seed=4",), "--seed=4"),
        (("--model=nowhere",), "--model=nowhere"),
        (("--conversions=bound,bound",), "--conversions=bound,bound: accepted: at least one, "),
        (("--conversions=bond",), "--conversions="),
        # before the model as trained is compressed
        (("--conversions=leave", "--calibration=3"), "--calibration=3: accepted: an integer of at"),
        (("--conversions=leave",), "text: 32 of 13 tokens is too short; accepted: at least 4 tex"),
        (("--boost=size",), "--boost=size: accepted: sensitivity, kurtosis,"),
        (("--boost=kurtosis",), "w8 has no rung"),
        (("--boost=kurtosis", "--methods=w3-g64", "--top=1", "--budget=3"), "both say how many"),
        (("--boost=kurtosis", "--methods=w3-g64", "--budget=0"), "--budget=0.0: accepted:"),
        (("--boost=random:1,random:1", "--methods=w3-g64"), "none of them twice"),
    ],
)
def test_one_clear_line(trained, run_compress, tmp_path, arguments, told):
    given = (f"--model={trained}", "--methods=w8", "--seq_len=13", f"--workdir={tmp_path}")
    assert told in run_compress(*given, *arguments).refusal
    assert not any(tmp_path.iterdir()) or "3:7" in told  # which is of a size that a model has


def test_a_tensor_of_zeros_is_left_out(finished):
    """Its ratios are 0 or no number: no warning, and the agreement is of the others."""
    record = finished.record
    (model, *_) = record["models"]
    zeros, *others = (each for each in model["noise"] if each["kind"] == "weight")
    layers = len(zeros["kurtosis"])
    for name in ("peak_over_rms", "max_median_ratio", "kurtosis"):
        zeros[name] = [0.0] * layers
    for name in ("measured", "predicted"):
        zeros[name] = {bits: [None] * layers for bits in zeros[name]}
    record["models"] = [model]
    without = record | {"models": [model | {"noise": others}]}
    found = [each for each in agreements(record) if each[0] == "weight"]
    wanted = [each for each in agreements(without) if each[0] == "weight"]
    np.testing.assert_equal(found, wanted)


@pytest.fixture(scope="module")
def planted_run(tmp_path_factory):
    """Flags of a planted model whose sink is constant, and of text that it reads."""
    place = tmp_path_factory.mktemp("planted")
    planted.write(place, "planted")
    return f"--model={place}/planted", f"--corpus=tokens:{place}/text", "--bos=no", "--sequences=4"


@pytest.fixture(scope="module")
def converted(planted_run, run_compress, tmp_path_factory):
    place = tmp_path_factory.mktemp("converted")
    return run_compress(
        *planted_run, "--methods=w16a16,w4a4-tensor",
        "--conversions=leave,bound,fold,rotate,bound+rotate",
        "--calibration=5", "--seq_len=64", f"--workdir={place}",
    )  # fmt: skip


def test_converted_models_are_compressed_beside_the_model_as_trained(converted):
    models = {model["name"]: model for model in converted.record["models"]}
    ways = ("", "+bound", "+bound+rotate", "+fold", "+leave", "+rotate")
    assert sorted(models) == [f"planted{way}" for way in ways]
    for of in models.values():
        assert of["tokens"]["evaluation"] == 4 * 64
        assert of["methods"]["w16a16"]["losses"] == of["losses"]
        assert np.mean(of["losses"]) == pytest.approx(of["loss"], rel=1e-5)
    assert models["planted+leave"]["conversion"] == "leave"
    assert models["planted+leave"]["kind"] == "constants"
    np.testing.assert_allclose(models["planted+leave"]["losses"], models["planted"]["losses"], 0.02)


def test_rotated_models_lose_what_they_did_until_they_are_rounded(converted):
    models = {model["name"]: model for model in converted.record["models"]}
    for name in ("planted", "planted+bound"):
        before, after = models[name], models[f"{name}+rotate"]
        np.testing.assert_allclose(after["losses"], before["losses"], rtol=1e-4)
        assert after["said"][-1].endswith("in a random basis (so.rotate, seed 0)")
        rounded = [of["methods"]["w4a4-tensor"]["loss"] for of in (before, after)]
        assert abs(rounded[0] - rounded[1]) > 10 * abs(before["loss"] - after["loss"])
    np.testing.assert_allclose(models["planted+fold"]["losses"], models["planted"]["losses"], 1e-4)
    kinds = [models[f"planted{way}"]["kind"] for way in ("+rotate", "+fold", "+bound+rotate")]
    assert kinds == ["rotated", "rotated", "constants"]


def test_what_cannot_be_rotated_is_refused_first(planted_run, run_compress, tmp_path):
    config = replace(planted.CONFIG, norm_placement="post")
    so.save(so.init(config), tmp_path / "model")
    done = run_compress(
        f"--model={tmp_path}/model", *planted_run[1:], "--methods=w8", "--conversions=rotate",
        f"--workdir={tmp_path}/runs",
    )  # fmt: skip
    assert "model: norm_placement=post: the stream cannot be rotated; accepted: pre" in done.refusal
    assert not (tmp_path / "runs").exists()


def test_what_a_conversion_buys_by_hand(converted):
    record = converted.record
    models = {model["name"]: model for model in record["models"]}
    base = np.array(models["planted"]["losses"])
    for name, rise in (("planted", 1.0), ("planted+bound", 2.0), ("planted+leave", 0.1)):
        models[name]["methods"]["w4a4-tensor"]["losses"] = (base + rise * np.arange(1, 5)).tolist()
    section = next(s for s in sections(record) if s.name.endswith("-bought"))
    headings, none, same, rounded = section.table.texts
    assert headings == ["method", BEFORE, "bound", "bound+rotate", "fold", "leave", "rotate"]
    assert [none[0], same[0], rounded[0]] == [BEFORE, "w16a16", "w4a4-tensor"]
    assert none[1].startswith("+0.000")
    assert rounded[1].startswith("+2.500 ±")
    assert rounded[2].endswith("(-100% [-100%, -100%])")
    assert rounded[5].startswith("+0.250 ±")
    assert rounded[5].endswith("(90% [90%, 90%])")
    assert any("are constants in layers 3 to 5" in line for line in section.lines)
    assert "how much of what the method adds is gone" in " ".join(converted.out.split())


def test_a_loss_that_is_not_finite_is_said(converted):
    """Of the model as trained it is the best case of a conversion, and no empty cell."""
    record = converted.record
    models = {model["name"]: model for model in record["models"]}
    for name in ("planted", "planted+bound"):
        models[name]["methods"]["w4a4-tensor"] |= {"loss": None, "losses": [None] * 4}
    section = next(s for s in sections(record) if s.name.endswith("-bought"))
    trained, bound, _, _, leave, _ = section.table.texts[-1][1:]
    assert trained == bound == "not finite"
    assert re.fullmatch(r"[+-]\d\.\d{3} ±\d\.\d{3}", leave)


def test_noise_is_of_the_models_as_trained(converted):
    """A conversion leaves the weights, so that they would be counted again for each."""
    record = converted.record
    (trained,) = [model for model in record["models"] if "trained" not in model]
    alone = record | {"models": [trained]}
    np.testing.assert_equal(list(agreements(record)), list(agreements(alone)))
    of_noise = [s for s in sections(record) if s.name in ("noise", "flushed")]
    assert of_noise == [s for s in sections(alone) if s.name in ("noise", "flushed")]


@pytest.mark.parametrize(
    ("method", "bits"),
    [
        ("w8a8", "8.00"), ("w4-g32", "4.51"), ("wmxfp4", "4.25"), ("wnvfp4anvfp4", "4.50"),
        ("wnf4", "4.12"), ("we4m3ae4m3", "8.00"), ("kv4", ""), ("wanda-0.5", ""),
        ("w8a8-atensor-minmax", ""),  # of an older record: refused now
        ("hqq-w3-g64+kurtosis", "3.10 to 3.70"),
    ],
)  # fmt: skip
def test_bits_a_weight_are_shown(finished, method, bits):
    record = finished.record
    record["methods"] = [method]
    for at, model in enumerate(record["models"]):
        (found, *_) = model["methods"].values()
        model["methods"] = {method: found | ({"bits": 3.1 + 0.2 * at} if "+" in method else {})}
    heading, _, row = next(iter(sections(record))).table.texts
    assert (heading[1], row[1]) == ("bits", bits)


def test_a_file_of_few_bits_is_named_beside_methods_of_few(finished):
    """Rounded again to the grid that it was on, a model loses nothing."""
    record = finished.record
    assert "w4" in record["methods"]

    def said(origin, methods):
        made = record | {"origins": origin, "methods": methods}
        return " ".join(next(iter(sections(made))).lines)

    file = {"m": {"weights": "GGUF Q4_1 (210 Q4_1)"}}
    assert said(file, ["w4"]).startswith("m was rounded before, to GGUF Q4_1 (210 Q4_1): weights")
    assert said(file, ["w8a8", "kv4", "wanda-2:4"]) == ""
    assert said({"m": {"weights": "bfloat16"}}, ["w4"]) == said({}, ["w4"]) == ""


def test_calibration_with_fewer_tokens_than_inputs_is_said(trained, run_compress, tmp_path):
    given = (f"--model={trained}", "--seq_len=13", "--calibration=1", f"--workdir={tmp_path}")
    few = run_compress(*given, "--methods=gptq-w4", "--name=few")
    assert "13 calibration tokens cannot tell 64 inputs of a product apart" in few.out
    enough = run_compress(*given, "--methods=smooth-w8a8,split2-w8", "--name=enough")
    assert "cannot tell" not in enough.out
    split = [model["methods"]["split2-w8"] for model in enough.record["models"]]
    assert all(8.0 < of["bits"] < 16.0 for of in split)
    assert [s.name for s in sections(enough.record)][:2] == ["backcopy", "noise"]  # no boosts


def test_a_bos_among_the_keys_is_not_read_again(trained, monkeypatch, run_compress, tmp_path):
    """The loss of the token after it is none of any model's, so that equal tokens are compared."""
    rows = load_corpus("backcopy", "bytes", True).batch("val", 0, 0, 6, 13)
    bos = int(rows[0, 0])

    def by_prefix(chosen, text):
        return {"prefix": so.convert(chosen.model, prefix=[bos])}

    monkeypatch.setattr(compress, "_converted", by_prefix)
    monkeypatch.setattr(compress, "enough", lambda rows: None)  # to convert: none is
    done = run_compress(
        f"--model={trained}", "--variant=softmax", "--seed=5", "--methods=w4", "--sequences=6",
        "--conversions=prefix", "--calibration=4", "--seq_len=13", f"--workdir={tmp_path}",
        drawn=False,
    )  # fmt: skip
    model = load(trained / "models" / "backcopy-softmax", 5)
    expected = losses(model.config, Compressed(model.params), rows, skip=1)
    for of in done.record["models"]:
        assert of["tokens"]["evaluation"] == 6 * 12
        np.testing.assert_allclose(of["losses"], expected, atol=2e-5)


def test_a_conversion_that_reads_bos_is_not_compared_without_it(run_compress, tmp_path):
    for name, word in (("split", "is not"), ("other", "comes before")):
        lines = (f"Line {n} {word} {n + 1}.\n" for n in range(300))
        (tmp_path / f"{name}.txt").write_text("".join(lines))
    planted_text_model(tmp_path / "model", context=40)
    done = run_compress(
        f"--model={tmp_path}/model", f"--corpus={tmp_path}/split.txt", "--protocol=wikitext2",
        f"--calibration_corpus={tmp_path}/other.txt", "--methods=w4", "--conversions=prefix",
        "--calibration=4", f"--workdir={tmp_path}",
    )  # fmt: skip
    assert "--conversions: windows of wikitext2 have no BOS" in done.refusal


def test_the_published_protocol(trained, run_compress, tmp_path):
    """The usual script: one stream, windows without overlap, nats of the predicted tokens."""
    from sysout_jax.model.decoder import forward

    text = "to be or not to be, that is the question: " * 4
    (tmp_path / "split.txt").write_text(text)
    model = planted_text_model(tmp_path / "model")
    size = model.config.context
    done = run_compress(
        f"--model={tmp_path}/model", f"--corpus={tmp_path}/split.txt", "--protocol=wikitext2",
        "--methods=w4,kv4", f"--workdir={tmp_path}",
    )  # fmt: skip
    (entry,) = done.record["models"]
    stream = np.concatenate([[257], np.frombuffer(text.encode(), np.uint8)])  # BOS, then bytes
    count, total = len(stream) // size, 0.0
    for n in range(count):
        window = stream[n * size : (n + 1) * size]
        logits = np.float64(
            forward(model.config, model.params, jnp.asarray(window[None]))[0][0, :-1]
        )
        chosen = logits[np.arange(size - 1), window[1:]]
        total += (np.log(np.exp(logits).sum(-1)) - chosen).mean() * size
    assert entry["perplexity"] == pytest.approx(np.exp(total / (count * size)), rel=1e-5)
    assert entry["tokens"] == {"calibration": 0, "evaluation": count * (size - 1)}
    assert list(entry["methods"]) == ["w4", "kv4"]


def planted_text_model(place, context=32):
    """A model of bytes with learned positions, as a run leaves it."""
    config = ModelConfig(
        vocab=258, layers=2, width=16, heads=2, mlp_width=24, context=context, variant="softmax"
    )
    params = init(config, jax.random.key(0))
    save(place, config, jax.tree.map(lambda x: x[None], params), [3], ByteTokenizer())
    return load(place, 3)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--protocol=ptb"], "--protocol='ptb': unknown; accepted: sequences, wikitext2"),
        (["--methods=w4"], "--corpus: not given; accepted: PATH of the split's text"),
        (["--methods=w4", "--corpus=x", "--seq_len=64"], "no effect with --protocol=wikitext2"),
        (["--methods=w4", "--corpus=x", "--sequences=9"], "no effect with --protocol=wikitext2"),
        (["--methods=w4,gptq-w4", "--corpus=x"], "--calibration_corpus: not given, and gptq-w4"),
        (
            ["--methods=hqq-w3-g32", "--boost=kurtosis,random:1", "--corpus=x"],
            "--calibration_corpus: not given, and random:1 learn from text",
        ),
        (["--methods=w4", "--corpus=backcopy"], "--corpus=backcopy: accepted: PATH of a text"),
        (["--methods=w4", "--corpus=SHORT"], "6 tokens; accepted: text of at least 32 tokens"),
        (["--methods=w4", "--corpus=SHORT*"], "|endoftext|>; accepted: PATH of one text"),
    ],
)
def test_what_the_protocol_refuses(flags, said, trained, run_compress, tmp_path):
    for name in ("short.txt", "short.txt.md"):
        (tmp_path / name).write_text("short")
    given = [flag.replace("SHORT", str(tmp_path / "short.txt")) for flag in flags]
    protocol = [] if "--protocol" in flags[0] else ["--protocol=wikitext2"]
    model = trained
    if "SHORT" in flags[-1]:
        planted_text_model(model := tmp_path / "model")
    done = run_compress(f"--model={model}", *given, *protocol, f"--workdir={tmp_path}")
    assert said in done.refusal


def test_more_bits_for_some_matrices(planted_run, run_compress, tmp_path):
    done = run_compress(
        *planted_run, "--methods=hqq-w3-g32", "--boost=kurtosis,random:1,first_last", "--top=1",
        "--calibration=3", "--seq_len=13", f"--workdir={tmp_path}", drawn=False,
    )  # fmt: skip
    record = done.record
    (model,) = record["models"]
    names = ["hqq-w3-g32" + each for each in ("", "+kurtosis", "+random:1", "+first_last")]
    assert list(model["methods"]) == record["methods"] == names
    bits = [model["methods"][name]["bits"] for name in names]
    assert bits[0] == pytest.approx(3.5078, abs=1e-4)
    assert bits[0] < bits[1] <= bits[3]
    section = next(s for s in sections(record) if s.name.endswith("-boosts"))
    assert [row[0] for row in section.table.texts[1:]] == names
    assert section.table.texts[2][4].count(" ") == 1  # a matrix and its layer
    drawn = [name for name, _ in compression.figures(record)]
    assert "boost-planted-3-hqq-w3-g32+kurtosis" in drawn


def test_a_mixture_is_compressed_by_what_learns_nothing(run_compress, tmp_path):
    planted.write(tmp_path, "model")  # for the text
    config = replace(planted.CONFIG, experts=3, experts_per_token=2)
    made = jax.tree.map(lambda x: x[None], init(config, jax.random.key(0)))
    save(tmp_path / "mixture", config, made, [3])
    flags = (
        f"--model={tmp_path}/mixture", f"--corpus=tokens:{tmp_path}/text", "--bos=no",
        "--sequences=2", "--calibration=2", "--seq_len=16", f"--workdir={tmp_path}/runs",
    )  # fmt: skip
    assert run_compress(*flags, "--methods=w8,gptq-w4").refusal == (
        "--methods: the inputs of the 3 experts are not told apart in calibration text; "
        "accepted: methods without calibration, or --sites=attn_norm,attn_mix"
    )
    assert not (tmp_path / "runs").exists()
    (model,) = run_compress(*flags, "--methods=w4,w8a8,magnitude-0.5").record["models"]
    assert list(model["methods"]) == ["w4", "w8a8", "magnitude-0.5"]
    assert model["methods"]["magnitude-0.5"]["zeros"]["up"] == pytest.approx([0.5] * 6, abs=0.01)
