"""Claims on what makes outliers, what they do, and what a model without them gains."""

from .claim import (
    AN,
    BACKCOPY,
    BEST,
    BEST_WAY,
    BOOKS,
    CELLS,
    CELLS_FOUR,
    CELLS_THREE,
    CELLS_TWO,
    CHAINED,
    COMPRESSED,
    COPIES,
    DISTILLED,
    DOSED,
    EXACT,
    FLY_AND_BIAS,
    GATE_AND_BIAS,
    GATED,
    GU,
    HARM,
    KURTOSIS,
    LAB,
    LABORATORY,
    LARGE,
    LARGEST,
    LEVERS,
    MECHANISMS,
    NO_BEST,
    NO_RATE,
    ON_TEXTS,
    PAIR,
    PEAK,
    PREDICTED,
    PUBLISHED,
    RATE,
    RATED,
    RELATED,
    SINKS_AND_BIAS,
    SIX_SEEDS,
    SOURCE,
    SUN,
    TAKEN_APART,
    VALID,
    Statement,
    Trial,
    forms,
    goes,
    models,
    than,
    was,
)
from .predicates import Control, Cost, Dose, Equivalence, Has, Level, Paired, Relation

QIU26, LIANG = "Qiu et al. 2026 (arXiv:2601.22966)", "Liang et al. 2025 (arXiv:2511.23225)"
TWEO = "softmax setting=tweo"
NEW_NORMS = tuple(f"softmax norm={name}" for name in ("gated", "pre_affine", "tanh"))
NO_SINK = ("exclusive", "differential", "sink_value")
NORMS_SHRINK = tuple((norm, "softmax") for norm in NEW_NORMS[:2])

CAUSES = (
    # ------------------------------------------------------------------------ what makes them
    Statement("sink_needs_no_loss_at_bos", "Sinks form where predicting what follows BOS is not "
              "trained", "this project", {
        LABORATORY: Trial(forms(BEST, "softmax loss=masked"), LAB,
                         renews="5c5ecdc the_sink_needs_no_loss_at_bos"),
    }),
    Statement("no_sink_without_bos", "Without BOS no sink forms on the first token", "theory B5", {
        LABORATORY: Trial(goes(NO_BEST, BEST, "softmax start=none", equal=COPIES), LAB,
                         renews="5c5ecdc no_sink_without_bos"),
        SOURCE: Trial(goes(NO_RATE, RATED, "softmax setting=no_bos"), CELLS_FOUR,
                     renews="f4755e4 source_no_sink_without_bos"),
    }),
    Statement("norms_keep_sinks", "Other norms before the branches, and of queries and keys, keep "
              "sinks", f"{GU}; Sun et al. 2026 (arXiv:2603.05498)", {
        LABORATORY: Trial(forms(BEST, *(f"softmax norm={n}" for n in ("layer", "unscaled", "qk")),
                                equal=COPIES), LAB, renews="737ab83 norms_keep_sinks"),
        SOURCE: Trial(forms(RATED, "softmax norm=rms", "softmax norm=qk", equal=VALID), CELLS_FOUR,
                     renews="f4755e4 source_norms_keep_sinks"),
    }),
    Statement("sandwich_norms_keep_sinks", "Norms behind the branches too (sandwich) keep sinks",
              f"{GU}; Sun et al. 2026 (arXiv:2603.05498)", {
        LABORATORY: Trial(forms(BEST, "softmax norm=sandwich", equal=COPIES), LAB,
                         renews="737ab83 norms_keep_sinks"),
        SOURCE: Trial(forms(RATED, "softmax norm=sandwich", equal=VALID), CELLS_FOUR,
                     renews="f4755e4 source_norms_keep_sinks"),
    }),
    Statement("sandwich_norms_remove_peaks", "With sandwich norms large states go",
              "Sun et al. 2026 (arXiv:2603.05498)", {
        LABORATORY: Trial(than(PEAK, "softmax norm=sandwich", equal=COPIES), LAB,
                         renews="737ab83 sandwich_norms_remove_peaks"),
        BOOKS: Trial(than(LARGEST, "softmax norm=sandwich", ratio=0.5, equal=VALID), LEVERS,
                    held="23a1401 text_sandwich_norms_remove_large_states"),
    }),
    *(Statement(name, says, source, {
        LABORATORY: Trial(on_chains, LAB), SOURCE: Trial(on_text, CELLS_TWO)
    }) for name, says, source, on_chains, on_text in (
        ("gated_norms_keep_sinks", "A gate or a scale of the norm's own (GatedNorm, PreAffine) and "
         "tanh in its place keep sinks", QIU26,
         forms(BEST, *NEW_NORMS, equal=COPIES), forms(RATED, *NEW_NORMS, equal=VALID)),
        ("gated_norms_shrink_peaks", "With GatedNorm and PreAffine large states shrink", QIU26,
         Paired(PEAK, NORMS_SHRINK, equal=COPIES), Paired(PEAK, NORMS_SHRINK, equal=VALID)),
        ("penalties_keep_sinks", "A penalty on large states (TWEO) keeps sinks", "theory A1, T3",
         forms(BEST, "softmax penalty=tweo", equal=COPIES), forms(RATED, TWEO, equal=VALID)),
        ("penalties_shrink_peaks", "A penalty on large states (TWEO) shrinks the first token's",
         LIANG, than(PEAK, "softmax penalty=tweo", ratio=0.5, equal=COPIES),
         than(PEAK, TWEO, ratio=0.5, equal=VALID)),
    )),
    Statement("penalties_quantise_better", "With a penalty on large states (TWEO) models quantise "
              "better", LIANG, {
        SOURCE: Trial(than("w4a4", TWEO, digits=4, control=Control(Has("w4a4", HARM))), CELLS_TWO),
    }),
    Statement("sinkless_models_quantise_better", "Models without a sink (exclusive, differential, "
              "a constant logit and a value) quantise better", f"{AN}, section 6", {
        setting: Trial(Paired("w4a4", tuple((name, "softmax") for name in NO_SINK), digits=4,
                              control=Control(Has("w4a4", HARM))), record)
        for setting, record in ((LABORATORY, LAB), (SOURCE, CELLS_THREE))
    }),
    Statement("unscaled_norms_remove_outlier_channels", "Norms without a scale for each channel "
              "make smaller outlier channels", "Park et al. 2025 (arXiv:2506.19697)", {
        LABORATORY: Trial(than(KURTOSIS, "softmax norm=unscaled", equal=COPIES), LAB,
                         renews="737ab83 unscaled_norms_remove_outlier_channels"),
    }),
    Statement("single_scale_norms_keep_sinks", "Norms with one scale for all channels keep sinks",
              "theory B1; Park et al. 2025 (arXiv:2506.19697)", {
        LABORATORY: Trial(forms(BEST, "softmax norm=single_scale", equal=COPIES), LAB),
        SOURCE: Trial(forms(RATED, "softmax norm=single_scale", equal=VALID), CELLS_TWO),
    }),
    Statement("single_scale_norms_remove_outlier_channels", "Norms with one scale for all channels "
              "make smaller outlier channels", "Park et al. 2025 (arXiv:2506.19697)", {
        LABORATORY: Trial(than(KURTOSIS, "softmax norm=single_scale", equal=COPIES), LAB),
        SOURCE: Trial(than(KURTOSIS, "softmax norm=single_scale", equal=VALID), CELLS_TWO),
    }),
    Statement("muon_makes_sinks", "Sinks form where Muon trains the hidden matrices, Adam the rest",
              GU, {
        LABORATORY: Trial(forms(BEST, "softmax optimizer=muon"), LAB),
        SOURCE: Trial(forms(RATED, "softmax optimizer=muon"), CELLS_FOUR,
                     renews="f4755e4 source_muon_makes_sinks"),
    }),
    Statement("adam_makes_peaks", "Adam makes large states; SGD, and Muon on hidden matrices, not",
              "Kaul et al. 2024 (arXiv:2410.17174); Guo et al. 2024 (arXiv:2410.13835)", {
        LABORATORY: Trial(Paired(PEAK, tuple((f"softmax optimizer={name}", "softmax")
                                            for name in ("sgd", "muon")), equal=COPIES), LAB,
                         renews="5c5ecdc optimisers"),
        BOOKS: Trial(than(LARGEST, "softmax optimizer=muon", ratio=0.5, equal=VALID), LEVERS,
                    held="23a1401 text_optimisers"),
    }),
    Statement("larger_eps_removes_outlier_channels", "A larger eps of Adam makes smaller outlier "
              "channels", "He et al. 2024 (arXiv:2405.19279)", {
        LABORATORY: Trial(than(KURTOSIS, "softmax eps=1e-4", equal=COPIES), LAB,
                         renews="737ab83 larger_eps_removes_outlier_channels"),
        SOURCE: Trial(than(KURTOSIS, "softmax setting=eps_1e-4", equal=VALID), CELLS_FOUR,
                     held="f4755e4 source_larger_eps_removes_outlier_channels"),
        BOOKS: Trial(than(KURTOSIS, "softmax setting=eps_1e-4", equal=VALID), LEVERS,
                    held="23a1401 text_larger_eps_removes_outlier_channels"),
    }),
    Statement("weight_decay", "Sinks against weight decay are an inverted U", GU, {
        LABORATORY: Trial(Paired(BEST.measure, (("softmax", "softmax decay=0"),
                                               ("softmax", "softmax decay=3")), below=False), LAB,
                         renews="7a02250 weight_decay"),
        **{setting: Trial(Paired(RATE, (("softmax", "softmax setting=decay_0"),
                                       ("softmax", "softmax setting=decay_1")), below=False),
                         record, held=held)
           for setting, record, held in ((SOURCE, CELLS_FOUR, "f4755e4 source_weight_decay"),
                                         (BOOKS, LEVERS, "23a1401 text_weight_decay"))},
    }),
    Statement("repeated_text_makes_fewer_sinks", "Less text makes fewer sinks", GU, {
        SOURCE: Trial(than(RATE, "softmax setting=repeated"), CELLS,
                     held="f4755e4 source_less_text_makes_fewer_sinks"),
        BOOKS: Trial(than(RATE, "softmax setting=repeated"), LEVERS,
                    held="23a1401 less_text_makes_fewer_sinks"),
    }),
    Statement("longer_contexts_on_equal_rows", "Longer contexts make stronger sinks",
              "Barbero et al. 2025 (arXiv:2504.02732)", {
        SOURCE: Trial(Paired(RATE, (("softmax", "softmax setting=quarter_context"),
                                   ("softmax setting=four_contexts", "softmax")), below=False),
                     CHAINED,
                     held="ae4b9f4 source_longer_contexts_make_stronger_sinks"),
    }),
    Statement("longer_contexts_on_own_rows", "Longer contexts make stronger sinks, "
              "each measured on rows of its own length",
              "Barbero et al. 2025 (arXiv:2504.02732)", {
        setting: Trial(than(RATE, "softmax", "softmax setting=quarter_context", below=False),
                      record, held=held, superseded="longer_contexts_on_equal_rows")
        for setting, record, held in (
            (SOURCE, CELLS, "f4755e4 source_longer_contexts_make_stronger_sinks"),
            (BOOKS, LEVERS, "23a1401 longer_contexts_make_stronger_sinks"))
    }),
    Statement("sink_logits_grow_like_log", "The sink's logit grows like the logarithm of the step",
              "theory C2, F2, of gradient flow; asked of AdamW, for which C2 has a line", {
        LABORATORY: Trial(Level("r_squared: logarithmic", 0.9, also=(
            ("r_squared: logarithmic - r_squared: linear", 0.0),)), LAB,
                         renews="5c5ecdc sink_logits_grow_like_log"),
    }),
    # ------------------------------------------------------------------------- what they do
    *(Statement(name, says, source, {
        BACKCOPY: Trial(predicate, "explicit/backcopy", **was(b)),
        SOURCE: Trial(predicate, "explicit/sinks", **was(s)),
        BOOKS: Trial(predicate, "explicit/fruitfly-h100", **was(k)),
        **({PUBLISHED: Trial(predicate, "assumptions/smollm2-135m")}
           if name == "queries_tell_the_factor" else models(predicate, ON_TEXTS)),
    }) for name, says, source, predicate, b, s, k in (
        ("removal_harms", "Taking the sink away harms the model", f"{AN}, section 4",
         Level("cost", HARM, cells=("dropped",), digits=3), "renews b1e06f5 removal_harms",
         "held ae4b9f4 source_removal_harms", "held 7bf100e text_removal_harms"),
        ("factor_replaces_the_sink", "The factor S in the sink's place restores it",
         f"{AN}, section 4; theory A1", Cost("factor"),
         "renews b1e06f5 the_factor_replaces_them", "renews ae4b9f4 source_outliers_are_a_factor",
         "renews 28ba12a text_outliers_are_a_factor"),
        ("gate_replaces_the_sink", "A gate fitted to S restores it without training, and better "
         "than a constant", "this project", Cost("gate", than="constant"),
         "renews b1e06f5 the_factor_can_be_made_explicit",
         "renews ae4b9f4 source_the_factor_can_be_made_explicit", "held "),
        ("queries_tell_the_factor", "A gate that sees the query explains most of S",
         f"{AN}, section 4", Level("explained", 0.5, cells=("gate",)), "held ", "held ", "held "),
    )),
    *(Statement(f"{form}_and_bias_replace_the_sink", f"{says} and a constant bias in its place "
                "restore it, without training", "theory T4", models(Cost(f"{form}_bias"), ON_TEXTS))
      for form, says in (("factor", "The factor S"), ("gate", "A gate fitted to S"))),
    *(Statement(name, says, f"{AN}, section 3; {SUN}", {
        setting: Trial(Dose(treatment, 0.0), record, held=f"{commit} {prefix}{name}")
        for setting, record, commit, prefix in (
            (BACKCOPY, "causal/backcopy", "c940761", ""),
            (SOURCE, "causal/sinks", "ae4b9f4", "source_"),
            (BOOKS, "causal/fruitfly-h100", "79254d0", "text_"))
    } | {PUBLISHED: Trial(Dose(treatment, 0.0), DOSED)}) for name, treatment, says in (
        ("activations_cause_sinks", "activation",
         "The sink goes with the first token's largest channel"),
        ("weights_cause_sinks", "weight",
         "The sink goes with the row of W_down that writes most into the first token"),
    )),
    Statement("massive_activations_are_critical", "A model without its largest activation is worse",
              f"{SUN}, disputed by Owen et al. 2025 (arXiv:2503.22329)", {
        BOOKS: Trial(Level("set to zero", HARM, control=Control(LARGE), digits=3), TAKEN_APART,
                    renews="8fb1673 massive_activations_are_critical"),
        **models(Level("set to zero", HARM, digits=3), ON_TEXTS),
    }),
    # Gemma 3's texts begin with BOS, whose state is the same in all: there this is an identity, as
    # a conversion is that writes it as constants; and what removes it is read of one prompt.
    Statement("set_to_mean", "A massive activation set to its mean over texts is harmless", SUN, {
        PUBLISHED: Trial(Level("set to mean", HARM, below=True, digits=3), ON_TEXTS),
    }),
    Statement("last_layers_remove_them", "The last layers write the negative of the outlier",
              f"{AN}, section 3", {
        BOOKS: Trial(Level("removed", -0.9, below=True, control=Control(Has("outlier", 0.5))),
                    TAKEN_APART, renews="b1e06f5 last_layers_remove_them"),
        PUBLISHED: Trial(Level("removed", -0.9, below=True), ON_TEXTS),
    }),
    *(Statement(name, says, f"{AN}, table 1", {
        BOOKS: Trial(Relation(given, found), TAKEN_APART, renews=f"b1e06f5 {old}"),
        **models(Relation(given, found), ON_TEXTS),
        PUBLISHED: Trial(Relation(given, found), RELATED),
    }) for name, given, found, old, says in (
        ("weights_and_activations_share_channels", "weights", "activations",
         "weights_make_activations", "Weight and activation outliers share their channels"),
        ("activations_and_attention_share_tokens", "activations", "attention",
         "activations_make_attention", "Activation and attention outliers share their tokens"),
    )),
    # ---------------------------------------------------------------- what making it explicit buys
    Statement("converges_faster", "Models with an explicit factor converge faster",
              f"{AN}, section 6", {
        BACKCOPY: Trial(Equivalence("loss", "context_scale", "softmax", 0.005),
                       "convergence/backcopy", renews="b1e06f5 converges_faster"),
        SOURCE: Trial(than("loss", "context_scale", also=("loss_last_third",), digits=3),
                     "convergence/stdlib-tuned", renews="513f466 text_converges_faster"),
        BOOKS: Trial(than("train_loss", "context_scale", digits=3), PAIR,
                    held="28ba12a text_learns_faster"),
    }),
    *(Statement(name, says, "theory T4", {
        setting: Trial(Equivalence("loss", form, "context_scale", 0.02, claimed=True, mean=0.01,
                                   level=0.025), record, **was(old))
        for setting, record, old in (
            (BACKCOPY, SIX_SEEDS, f"held {PREDICTED}"),
            (SOURCE, SINKS_AND_BIAS, f"renews c806a8f {name}"),
            (BOOKS, FLY_AND_BIAS, f"renews c806a8f {name}"))
    }) for name, says, form in (
        ("factor_and_bias_do_as_well", "A bias beside the explicit factor changes no loss",
         GATE_AND_BIAS),
        ("sink_value_does_as_well", "A constant logit and a value per head have the loss of an "
         "explicit factor", "sink_value"),
    )),
    *(Statement(f"{form}_lowers_loss", f"{says} lowers the loss", source, {
        SOURCE: Trial(than("loss", form, digits=3), MECHANISMS),
    }) for form, says, source in (
        ("exclusive", "Exclusive self-attention", "Zhai 2026 (arXiv:2603.09078)"),
        ("differential", "Differential attention", "Ye et al. 2025 (arXiv:2410.05258)"),
    )),
    Statement("conversion_is_exact", "The sink written as constants, its token masked, changes no "
              "loss", "theory T1", {
        PUBLISHED: Trial(Equivalence("loss", "converted", "trained", 0.005, claimed=True), EXACT),
    }),
    Statement("no_large_state_is_left", "The converted model's largest state is below 300 "
              "medians, a mean over texts",
              "this project", {
        PUBLISHED: Trial(Level("largest", 300.0, below=True, cells=("converted",), digits=0),
                         "convert/smollm2-135m-prefix"),
    }),
    Statement("eight_bits_without_the_sink", "After conversion at most 15% of what W8A8 with a "
              "scale a tensor adds to the loss is left", "this project",
              models(Cost(BEST_WAY, 0.15, removal="trained", measure="w8a8-tensor"), COMPRESSED)),
    *(Statement(name, says, "this project", models(
        Level(method, bound, below=True, cells=(BEST_WAY,), digits=3), COMPRESSED
    )) for name, says, method, bound in (
        ("eight_bits_by_channel", "W8A8 with a scale an output channel and an input tensor costs "
         "the converted model less than 0.05 nats", "w8a8-atensor", 0.05),
        ("eight_bits_by_token", "W8A8 with a scale an output channel and a token costs the "
         "converted model less than 0.01 nats", "w8a8", 0.01))),
    *(Statement(name, says, "this project", {PUBLISHED: Trial(predicate, DISTILLED)})
      for name, says, predicate in (
        ("trained_gate_keeps_the_model", "A gate and a bias per head in the sink's place, trained "
         "alone, keep the loss", Equivalence("loss", GATED, "trained", 0.01, claimed=True)),
        ("trained_logit_keeps_the_model", "A constant logit and a value per head in its place, "
         "trained alone, keep it too",
         Equivalence("loss", "logit by=distilled", "trained", 0.01, claimed=True)),
        ("trained_gate_has_no_large_state", "With that gate and bias the largest state is below "
         "100 medians, a mean over texts",
         Level("largest", 100.0, below=True, cells=(GATED,), digits=0)),
        ("trained_gate_quantises_better", "With that gate and bias the model quantises better",
         than("w8a8-tensor", GATED, "trained", digits=3)),
    )),
    *(Statement(name, says, f"{AN}, section 6", {
        setting: Trial(than(measure, "context_scale", digits=4, control=Control(
            Has(measure, HARM))), record, **was(old))
        for setting, record, measure, old in tests
    })
      for name, says, tests in (
        ("quantises_better", "Models with an explicit factor quantise better", (
            (BACKCOPY, "compress/backcopy", "w8a8-tensor", "renews b1e06f5 quantises_better"),
            (SOURCE, "compress/stdlib", "w4a4", "held "),
            (BOOKS, "compress/fruitfly-h100", "w4a4", "held 28ba12a text_quantises_better"))),
        ("prunes_better", "Models with an explicit factor prune better", (
            (BACKCOPY, "compress/backcopy", "magnitude-0.5", "renews b1e06f5 prunes_better"),
            (SOURCE, "compress/stdlib", "magnitude-0.5", "held "),
            (BOOKS, "compress/fruitfly-h100", "magnitude-0.5", 
             "held 28ba12a text_prunes_better"))),
    )),
    *(Statement(f"converted_{verb}_better", f"The converted model {verb} better", "this project",
                models(than(measure, "converted", "trained", digits=3), COMPRESSED,
                       held=f"f737d2f {verb}_better"))
      for verb, measure in (("quantises", "w8a8-tensor"), ("prunes", "magnitude-0.5"))),
)  # fmt: skip
