"""How each record that a claim is decided by is made."""

from collections.abc import Mapping
from types import MappingProxyType

_BOOKS = (
    "--corpus=tokens:.cache/books --tokenizer=.cache/books/tokenizer.json --preset=fruitfly "
    "--seq_len=256 --batch_size=32"  # what it was before shorter rows were found to do better
)
FRUITFLY = f"experiments.variants {_BOOKS} --steps=5500"
PAIR = (
    f"experiments.variants {_BOOKS} --steps=5000 --variants=softmax,context_scale --seeds=3,4,5,6,7"
)
ON_TEXT = (  # the variants that the theory asks for
    "experiments.variants --variants=softmax,context_scale,value_bias+context_scale,sink_value"
)
SINKS = "experiments.variants --preset=sinks --corpus=stdlib --seeds=4,5,6,7,8"
SMOLLM2: Mapping[str, str] = MappingProxyType(  # records of the published model, for each text
    {
        "analyze/smollm2-135m": "experiments.analyze --model=smollm2-135m --sequences=64 "
        "--seq_len=256 --only=existence,positions,relations,lifecycle,interventions",
        "analyze/smollm2-135m-relations": "experiments.analyze --model=smollm2-135m --sequences=64 "
        "--seq_len=256 --only=relations",
        "causal/smollm2-135m": "experiments.causal --model=smollm2-135m --factors=0,1 "
        "--controls=20 --sequences=64 --seq_len=64",
        "convert/smollm2-135m-leave": "experiments.convert --model=smollm2-135m --weak=leave "
        "--sequences=64 --out=.cache/converted-leave-{text}",
        "compress/smollm2-135m": "experiments.compress --model=smollm2-135m --sequences=64 "
        "--seq_len=256 --conversions=bound,prefix,prefix+bound --methods=w8a8-tensor,w8a8-atensor,"
        "w8a8,smoothall-w8a8-tensor-minmax,rotate-w8a8-tensor,w4a4,kv4,magnitude-0.5",
    }
)
# Of the second published model, on texts that no pilot read: rows are shorter, as its vocabulary
# is 262,144 tokens and every loss is over all of them.
GEMMA3: Mapping[str, str] = MappingProxyType(
    {
        "analyze/gemma3-270m": "experiments.analyze --model=gemma3-270m --sequences=64 "
        "--seq_len=64 --only=existence,positions,relations,lifecycle,interventions",
        "compress/gemma3-270m": "experiments.compress --model=gemma3-270m --sequences=64 "
        "--seq_len=64 --conversions=bound,prefix+bound --methods=w8a8-tensor,w8a8-atensor,w8a8,"
        "magnitude-0.5",
    }
)
_CHAINS = "--name=chains --chains=3,4,5,6,7,8,9,10,11,12,13,14 --seeds=37,38"
_TEXTS = (
    (SMOLLM2, (("books", ".cache/books_val.txt"), ("stdlib", "stdlib"))),
    (GEMMA3, (("books", ".cache/books_train_2.txt.xz"), ("stdlib", "stdlib"))),
)
# record -> the commands that make it anew, each given the run of the first where it says RUN
COMMANDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "variants/demo": ("experiments.variants",),
        "variants/backcopy": ("experiments.variants --seeds=6,7,8,9,10,11,12,13",),
        "variants/factor-and-bias": (
            "experiments.variants --corpus=backcopy --variants=softmax,value_bias,attention_bias,"
            "context_scale,value_bias+context_scale,sink_logit,sink_value --seeds=0,1,2,3,4,5",
        ),
        "variants/sinks-factor-and-bias": (
            f"{ON_TEXT} --preset=sinks --corpus=stdlib --seeds=14,15,16",
        ),
        "variants/sinks-mechanisms": (
            "experiments.variants --preset=sinks --corpus=stdlib --seeds=17,18,19,20,21,22 "
            "--variants=softmax,differential,exclusive,scalable_softmax",
        ),
        "variants/sinks-values": (
            "experiments.variants --preset=sinks --corpus=stdlib --seeds=17,18,19,20,21,22 "
            "--variants=softmax,value_state_gate,v_scale",
        ),
        "variants/fruitfly-factor-and-bias": (
            f"{ON_TEXT} --preset=fruitfly --corpus=tokens:.cache/books "
            "--tokenizer=.cache/books/tokenizer.json --seeds=11,12,13",
        ),
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
        "laboratory": (
            f"experiments.laboratory {_CHAINS} --bases=softmax --variants=softmax,value_bias,"
            "context_bias,attention_bias,context_scale,sigmoid,softmax_off_by_one,sink_logit,"
            "value_gate,exclusive,value_state_gate,scalable_softmax,differential,"
            "head_norm+differential,plain_head_gate,plain_element_gate,v_scale,plain_sigmoid,"
            "normalised_sigmoid,normalised_elu_plus_one,sink_value,value_bias+context_scale,"
            "stick_breaking,forgetting,elastic_softmax,entmax "
            "--epsilons=1e-8,1e-4 --norms=own,layer,unscaled,single_scale,sandwich,qk,gated,"
            "pre_affine,tanh --penalties=none,tweo",
            f"experiments.laboratory {_CHAINS} --variants=softmax,context_scale "
            "--bases=context_scale --optimizers=adamw,muon --layers=1,2,3 --decays=1e-4 "
            "--epsilons=1e-8 --norms=own --penalties=none",
        ),
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
        "compress/stdlib": (
            "experiments.variants --corpus=stdlib --tokenizer=bpe:2048 --model=gpt2-tiny "
            "--layers=4 --width=128 --heads=2 --seq_len=128 --batch_size=8 --steps=800 --lr=3e-3 "
            "--seeds=0,1,2",
            "experiments.compress --model=RUN --methods=w4a4,magnitude-0.5",
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
        "benchmark/sinks-contexts-second": (
            "experiments.benchmark --preset=sinks --name=contexts --seeds="
            "40,41,42,43,44,45,46,47,48,49 --variants=softmax --optimizers=adamw --norms=own "
            "--settings=own,quarter_context,four_contexts --measure_seq_len=16 --val_batches=16 "
            "--bases=softmax --methods=w4a4",
        ),
        "benchmark/sinks-second": (
            "experiments.benchmark --preset=sinks --name=second --seeds=23,24,25,26,27,28 "
            "--variants=softmax,plain_head_gate,plain_element_gate --optimizers=adamw "
            "--norms=own,gated,pre_affine,tanh,single_scale --settings=own,tweo --bases=softmax "
            "--methods=w8a8-tensor,w4a4,magnitude-0.5",
        ),
        "benchmark/sinks-third": (
            "experiments.benchmark --preset=sinks --name=third --seeds=29,30,31,32,33 "
            "--variants=softmax,exclusive,differential,sink_value,value_state_gate,v_scale,"
            "scalable_softmax --optimizers=adamw --norms=own --settings=own --bases=softmax "
            "--methods=w8a8-tensor,w4a4,magnitude-0.5",
        ),
        "benchmark/sinks-fourth": (
            "experiments.benchmark --preset=sinks --name=fourth --seeds=34,35,36,37,38,39 "
            "--variants=softmax --optimizers=adamw,muon --norms=own,rms,sandwich,qk "
            "--settings=own,no_bos,decay_0,decay_1,eps_1e-4 --bases=softmax --methods=w4a4",
            "experiments.benchmark --preset=sinks --name=fourth --seeds=34,35,36,37,38,39 "
            "--variants=softmax,value_gate,sink_logit,softmax_off_by_one,sink_value "
            "--optimizers=adamw --norms=own --settings=own,llama --bases=softmax --methods=w4a4",
        ),
        "benchmark/sinks-fifth": (
            "experiments.benchmark --preset=sinks --name=fifth --seeds=50,51,52,53,54,55 "
            "--variants=softmax,stick_breaking,forgetting,elastic_softmax,entmax "
            "--optimizers=adamw --norms=own --settings=own --bases=softmax --methods=w4a4",
        ),
        "variants/sinks": (SINKS,),
        "explicit/sinks": (SINKS, "experiments.explicit --model=RUN"),
        "causal/sinks": (SINKS, "experiments.causal --model=RUN"),
        **{
            f"{record}-{text}": (f"{command.format(text=text)} --corpus={corpus}",)
            for of_model, texts in _TEXTS
            for text, corpus in texts
            for record, command in of_model.items()
        },
        "assumptions/smollm2-135m": (
            "experiments.assumptions --model=smollm2-135m --corpus=.cache/books_val.txt",
        ),
        "assumptions/sinks": (
            "experiments.variants --preset=sinks --corpus=stdlib --variants=softmax --seeds=4",
            "experiments.assumptions --model=RUN --seq_len=64",
        ),
        "assumptions/fruitfly": (
            "experiments.variants --preset=fruitfly --corpus=.cache/books_train.txt.xz "
            "--variants=softmax --seeds=0",
            "experiments.assumptions --model=RUN --corpus=.cache/books_val.txt --seq_len=64",
        ),
        "compress/smollm2-135m-boosts": (
            "experiments.compress --model=smollm2-135m --methods=hqq-w3-g64 "
            "--boost=sensitivity,kurtosis,first_last,random:0,random:1,random:2,random:3,random:4 "
            "--corpus=.cache/books_val.txt --sequences=32 --seq_len=256",
        ),
        "compress/smollm2-135m-boosts-converted": (
            "experiments.compress --model=smollm2-135m --methods=hqq-w3-g64 "
            "--conversions=prefix+bound "
            "--boost=sensitivity,random:0,random:1,random:2,random:3,random:4 "
            "--corpus=.cache/books_val.txt --sequences=32 --seq_len=256",
        ),
        "compress/smollm2-135m-books-more": (
            "experiments.compress --model=smollm2-135m --corpus=.cache/books_val.txt "
            "--sequences=64 --seq_len=256 --conversions=prefix+bound "
            "--methods=w8a8-tensor-minmax,w6a6,w4a8-g64,rotate-w4a4,wanda-0.5,sparsegpt-0.5",
        ),
        "compress/smollm2-135m-books-smooth": (
            "experiments.compress --model=smollm2-135m --corpus=.cache/books_val.txt "
            "--sequences=64 --seq_len=256 --conversions=prefix+bound "
            "--methods=smooth-w8a8-tensor-minmax",
        ),
        "explicit/smollm2-135m": (
            "experiments.explicit --model=smollm2-135m --corpus=.cache/books_val.txt "
            "--sequences=32 --calibration=32 --seq_len=256 --methods=w8a8-tensor,w8a8 "
            "--distil=120 --finetune=0 --finetune_batch=2",
        ),
        "convert/smollm2-135m-prefix": (
            "experiments.convert --model=smollm2-135m --weak=prefix+bound --export=prefix "
            "--corpus=.cache/books_val.txt --out=.cache/converted-prefix",
        ),
        "explicit/fruitfly-h100": (
            PAIR,
            "experiments.explicit --model=RUN --seq_len=256 --finetune=30 --finetune_batch=8 "
            "--finetune_lr=3e-4",
        ),
    }
)  # fmt: skip
