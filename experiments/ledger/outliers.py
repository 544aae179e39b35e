"""Claims on which outliers form, and which mechanisms have them."""

from .claim import (
    ABC,
    AN,
    BACKCOPY,
    BC,
    BEST,
    BOOKS,
    CELLS,
    CELLS_FIVE,
    CELLS_FOUR,
    CELLS_TWO,
    CHEN,
    COPIES,
    DEMO,
    DF,
    FLY,
    FLY_AND_BIAS,
    GATE_AND_BIAS,
    GU,
    LAB,
    LABORATORY,
    LARGE,
    LARGEST,
    LEVERS,
    MASSIVE,
    MECHANISMS,
    MOVES,
    NO_BEST,
    NO_MOVES,
    NO_NOOP,
    NO_RATE,
    NOOP,
    ON_TEXTS,
    PAIR,
    PEAK,
    PREDICTED,
    QIU,
    RATED,
    SIX,
    SIX_SEEDS,
    SOURCE,
    SUN,
    TAKEN_APART,
    VALID,
    VALUES,
    Statement,
    Trial,
    forms,
    goes,
    models,
    than,
)
from .predicates import Control, Has, Level, Share

OUTLIERS = (
    # ------------------------------------------------------------------- which outliers form
    Statement("sinks_form", "Softmax attention develops attention sinks", f"{AN}, section 3", {
        BACKCOPY: Trial(Share(NOOP), DEMO, renews="b1e06f5 attention_outliers_form"),
        LABORATORY: Trial(Share(BEST, ("softmax", "softmax layers=2", "softmax layers=3")), LAB,
                         renews="5c5ecdc chains_keep_sinks, deeper_models_agree"),
        SOURCE: Trial(Share(RATED), f"{SIX}, {CELLS}", renews="f4755e4 source_biases_keep_sinks"),
        BOOKS: Trial(Share(RATED), f"{FLY}, {PAIR}",
                    renews="28ba12a text_attention_outliers_form"),
        **models(Share(Has("kind: an_attention", 0.5), most=0.95), ON_TEXTS),
    }),
    Statement("massive_activations_form", "Softmax models develop massive activations, by the "
              "published bound", f"{AN}, section 3; {SUN}", {
        BACKCOPY: Trial(Share(MASSIVE), DEMO, renews="b1e06f5 activation_outliers_form"),
        LABORATORY: Trial(Share(MASSIVE), LAB),
        SOURCE: Trial(Share(MASSIVE), f"{SIX}, {CELLS}"),
        BOOKS: Trial(Share(MASSIVE), f"{FLY}, {PAIR}",
                    renews="79254d0 text_activation_outliers_form"),
        **models(Share(Has("kind: sun", 0.5), most=0.95), ON_TEXTS),
    }),
    *(Statement(name, f"{what} have outliers, by the bound of 1,000 means", f"{AN}, section 3",
                models(Share(Has(f"kind: {kind}", 0.5), most=0.95), ON_TEXTS))
      for name, what, kind in (
        ("outputs_have_outliers", "Outputs of blocks", "an_block_out"),
        ("down_inputs_have_outliers", "Inputs of the down projection", "an_down_in"),
    )),
    Statement("large_activations_form", "Softmax models develop large activations, by a tenth of "
              "the published bound", "this project", {
        BACKCOPY: Trial(Share(LARGE), DEMO), LABORATORY: Trial(Share(LARGE), LAB),
        SOURCE: Trial(Share(LARGE), f"{SIX}, {CELLS}"),
        BOOKS: Trial(Share(LARGE), f"{FLY}, {PAIR}",
                    renews="79254d0 text_activation_outliers_form"),
    }),
    Statement("weight_outliers_form", "Softmax models develop weight outliers in the down "
              "projection", f"{AN}, section 3", {
        BACKCOPY: Trial(Share(Has("calibrated@down", 0.0)), "analyze/backcopy",
                       renews="b1e06f5 weight_outliers_form"),
        BOOKS: Trial(Share(Has("calibrated@down", 0.0)), TAKEN_APART),
    }),
    Statement("llama_style_has_sinks", "In LLaMA's style, too, softmax develops sinks",
              f"{AN}, section 3", {
        SOURCE: Trial(forms(RATED, "softmax setting=llama"), CELLS_FOUR,
                     renews="f4755e4 source_llama_keeps_sinks"),
        BOOKS: Trial(forms(RATED, "softmax setting=llama"), LEVERS,
                    renews="23a1401 llama_attention_outliers_form"),
    }),
    Statement("values_drain", "The sink's value is drained (a, b, c)",
              f"{GU}; Guo et al. 2024 (arXiv:2410.13835)", {
        BACKCOPY: Trial(Level("value_drain@value", 0.5, True, ABC), DEMO,
                       held="b1e06f5 values_of_sinks_drain"),
        LABORATORY: Trial(Level("value_drain@value", 0.5, True, ABC), LAB),
        SOURCE: Trial(Level("value_drain@value", 0.5, True, ABC), f"{SIX}, {CELLS}"),
        BOOKS: Trial(Level("value_drain@value", 0.5, True, ABC), FLY),
    }),
    Statement("sinks_need_massive_activations", "Models with sinks have large activations", SUN, {
        BACKCOPY: Trial(Share(LARGE, control=Control(NOOP)), DEMO,
                       renews="b1e06f5 sinks_need_massive_activations"),
        LABORATORY: Trial(Share(LARGE, control=Control(BEST)), LAB),
        SOURCE: Trial(Share(LARGE, control=Control(RATED)), f"{SIX}, {CELLS}"),
        BOOKS: Trial(Share(LARGE, control=Control(RATED)), f"{FLY}, {PAIR}"),
    }),
    # --------------------------------------------------------------- which mechanisms have them
    Statement("biases_keep_sinks", "Value bias and context-aware bias (b, c) keep sinks",
              f"{AN}, section 5", {
        BACKCOPY: Trial(forms(NOOP, *BC), DEMO, renews="b1e06f5 biases_keep_sinks"),
        LABORATORY: Trial(forms(BEST, *BC), LAB, renews="5c5ecdc chains_keep_sinks"),
        SOURCE: Trial(forms(RATED, *BC), f"{SIX}, {CELLS}",
                     renews="f4755e4 source_biases_keep_sinks"),
        BOOKS: Trial(forms(RATED, *BC), FLY, renews="79254d0 text_biases_keep_sinks"),
    }),
    Statement("bias_key_and_sigmoid_have_no_sinks", "Attention bias and sigmoid attention (d, f) "
              "have no sinks", f"{AN}, section 5", {
        BACKCOPY: Trial(goes(NO_NOOP, NOOP, *DF), DEMO,
                       renews="b1e06f5 explicit_factors_remove_sinks"),
        LABORATORY: Trial(goes(NO_BEST, BEST, *DF), LAB, renews="5c5ecdc chains_lose_sinks"),
        SOURCE: Trial(goes(NO_RATE, RATED, *DF), f"{SIX}, {CELLS}",
                     renews="f4755e4 source_explicit_factors_remove_sinks"),
        BOOKS: Trial(goes(NO_RATE, RATED, *DF), FLY,
                    renews="28ba12a text_explicit_factors_remove_sinks"),
    }),
    Statement("factor_leaves_no_sink", "With an explicit factor (e) the first token moves no "
              "output", f"{AN}, section 5", {
        BACKCOPY: Trial(goes(NO_MOVES, MOVES, "context_scale"), SIX_SEEDS,
                       renews="b1e06f5 explicit_factors_remove_sinks"),
        LABORATORY: Trial(goes(NO_MOVES, MOVES, *(f"context_scale{n}" for n in
                                                  ("", " layers=2", " layers=3"))), LAB,
                         renews="5c5ecdc chains_lose_sinks, deeper_models_agree"),
        SOURCE: Trial(goes(NO_MOVES, MOVES, "context_scale"), f"{SIX}, {CELLS}",
                     renews="f4755e4 source_explicit_factors_remove_sinks"),
        BOOKS: Trial(goes(NO_MOVES, MOVES, "context_scale"), f"{FLY}, {PAIR}",
                    renews="28ba12a text_explicit_factors_remove_sinks"),
    }),
    Statement("factor_sees_the_context", "The explicit factor closes where there is nothing to do",
              f"{AN}, sections 4 and 5", {
        BACKCOPY: Trial(Level("gate_noop / gate_active", 0.5, True, ("context_scale",)), DEMO,
                       renews="b1e06f5 the_factor_sees_the_context"),
    }),
    Statement("factor_and_bias_close", "With a bias beside it the factor closes as well",
              "theory T4", {
        BACKCOPY: Trial(Level("gate_noop / gate_active", 0.5, True, (GATE_AND_BIAS,)), SIX_SEEDS,
                       renews=PREDICTED),
    }),
    Statement("sink_value_has_no_sink", "A constant logit and a value per head take the sink's "
              "place", "theory T2, T4", {
        BACKCOPY: Trial(goes(NO_NOOP, NOOP, "sink_value"), SIX_SEEDS,
                       held=PREDICTED),
        SOURCE: Trial(goes(NO_RATE, RATED, "sink_value"), CELLS_FOUR),
        BOOKS: Trial(goes(NO_RATE, RATED, "sink_value"), FLY_AND_BIAS),
    }),
    Statement("one_is_not_enough", "Softmax-off-by-one and sink logits keep sinks, both",
              "a prediction from theory A2 that does not follow", {
        LABORATORY: Trial(forms(BEST, "softmax_off_by_one", "sink_logit"), LAB,
                         renews="5c5ecdc one_is_not_enough"),
        SOURCE: Trial(forms(RATED, "softmax_off_by_one", "sink_logit"), CELLS_FOUR,
                     renews="f4755e4 source_one_is_not_enough"),
    }),
    Statement("temperatures_keep_sinks", "A learned temperature by the number of keys keeps sinks",
              "theory B1", {
        LABORATORY: Trial(forms(BEST, "scalable_softmax"), LAB),
        SOURCE: Trial(forms(RATED, "scalable_softmax"), MECHANISMS),
    }),
    Statement("value_state_gates_keep_sinks", "Gates that see the value alone keep sinks",
              "theory A1; disputed by arXiv:2510.09017", {
        LABORATORY: Trial(forms(BEST, "value_state_gate"), LAB),
        SOURCE: Trial(forms(RATED, "value_state_gate"), VALUES),
    }),
    Statement("rows_that_sum_to_one_have_sinks", "Where the weights of a sigmoid or of elu + 1 are "
              "divided by their sum, sinks form", f"a prediction from theory B1; {GU}", {
        LABORATORY: Trial(forms(BEST, "normalised_sigmoid", "normalised_elu_plus_one"), LAB),
    }),
    Statement("sigmoids_without_offset_have_no_sink", "Sigmoid attention has no sink without the "
              "offset of log S, either", f"theory B1; {GU}", {
        LABORATORY: Trial(goes(NO_BEST, BEST, "plain_sigmoid"), LAB),
    }),
    Statement("exclusive_attention_has_no_sink", "Without its own value in the output a head needs "
              "no sink", "theory B5; Zhai 2026 (arXiv:2603.09078)", {
        LABORATORY: Trial(goes(NO_BEST, BEST, "exclusive"), LAB),
        SOURCE: Trial(goes(NO_RATE, RATED, "exclusive"), MECHANISMS),
    }),
    Statement("differential_attention_has_no_sink", "A head that subtracts a second map needs no "
              "sink", "theory A1, T2; Ye et al. 2025 (arXiv:2410.05258)", {
        LABORATORY: Trial(goes(NO_BEST, BEST, "differential"), LAB),
        SOURCE: Trial(goes(NO_RATE, RATED, "differential"), MECHANISMS),
    }),
    *(Statement(f"{variant}_has_no_sink", says, source, {
        LABORATORY: Trial(goes(NO_BEST, BEST, variant), LAB),
        SOURCE: Trial(goes(NO_RATE, RATED, variant), CELLS_FIVE),
    }) for variant, says, source in (
        ("stick_breaking", "Where later keys leave less to earlier ones, and rows need not sum to "
         "one, the first token is no sink", "theory B1; Tan et al. 2025 (arXiv:2410.17980)"),
        ("forgetting", "With a forget gate the first token is no sink",
         "Lin et al. 2025 (arXiv:2503.02130)"),
        ("elastic_softmax", "Weights that are cut below a learned share have no sink",
         "theory B1; arXiv:2601.00919"),
    )),
    Statement("exact_zeros_keep_sinks", "Weights with exact zeros that sum to one (entmax) keep "
              "sinks", "a prediction from theory B1", {
        LABORATORY: Trial(forms(BEST, "entmax"), LAB),
        SOURCE: Trial(forms(RATED, "entmax"), CELLS_FIVE),
    }),
    Statement("gates_as_published_have_no_sink", "With gates half open at first, "
              "the first token moves no output", f"{QIU}; theory T2", {
        LABORATORY: Trial(goes(NO_MOVES, MOVES, "plain_head_gate", "plain_element_gate"), LAB),
        SOURCE: Trial(goes(NO_MOVES, MOVES, "plain_head_gate", "plain_element_gate"), CELLS_TWO),
    }),
    Statement("v_scale_keeps_sinks", "Values that shrink where they are small (V-scale) keep "
              "sinks", f"theory A1; {CHEN}", {
        LABORATORY: Trial(forms(BEST, "v_scale", equal=COPIES), LAB),
        SOURCE: Trial(forms(RATED, "v_scale", equal=VALID), VALUES),
    }),
    Statement("v_scale_shrinks_peaks", "With V-scale the first token's large states shrink", CHEN, {
        LABORATORY: Trial(than(PEAK, "v_scale", ratio=0.5, equal=COPIES), LAB),
        SOURCE: Trial(than(PEAK, "v_scale", ratio=0.5, equal=VALID), VALUES),
    }),
    Statement("value_gates_shrink_spikes", "Gates on values remove large activations", QIU, {
        LABORATORY: Trial(than(LARGEST, "value_gate", ratio=0.5, control=Control(LARGE)), LAB,
                         renews="7a02250 value_gates"),
        BOOKS: Trial(than(LARGEST, "value_gate", ratio=0.5, control=Control(LARGE)), LEVERS,
                    renews="23a1401 text_value_gates"),
    }),
    # By attention, which a gate on values does not scale. What the first token adds to outputs is
    # above 0.1 of them where heads attend evenly, too (`sink_effect`).
    Statement("value_gates_keep_sinks", "With gates on values attention sinks stay", QIU, {
        LABORATORY: Trial(forms(BEST, "value_gate"), LAB, renews="f737d2f value_gates_keep_sinks"),
        SOURCE: Trial(forms(RATED, "value_gate"), CELLS_FOUR,
                     renews="f737d2f value_gates_keep_sinks"),
        BOOKS: Trial(forms(RATED, "value_gate"), LEVERS, renews="f737d2f value_gates_keep_sinks"),
    }),
    Statement("factor_removes_large_activations", "Large activations go with the sinks when the "
              "factor is explicit", f"{AN}, section 5", {
        LABORATORY: Trial(than(LARGEST, "context_scale", ratio=0.5, control=Control(LARGE)), LAB),
        SOURCE: Trial(than(LARGEST, "context_scale", ratio=0.5, control=Control(LARGE)),
                     f"{SIX}, {CELLS}"),
        BOOKS: Trial(than(LARGEST, "context_scale", ratio=0.5, control=Control(LARGE)), PAIR,
                    held="28ba12a text_factor_removes_large_activations"),
    }),
    Statement("llama_factor_removes_large_activations", "In LLaMA's style, too, large "
              "activations go with an explicit factor",
              f"{AN}, section 5", {
        BOOKS: Trial(than(LARGEST, "context_scale setting=llama", "softmax setting=llama", 0.5,
                          control=Control(LARGE, "softmax setting=llama")), LEVERS,
                    renews="23a1401 llama_factor_removes_large_activations"),
    }),
    Statement("attention_bias_fails_on_llama", "Attention bias (d) leaves large activations in "
              "LLaMA's style", "Owen et al. 2025 (arXiv:2503.22329)", {
        BOOKS: Trial(than(LARGEST, "attention_bias setting=llama", "softmax setting=llama", 0.5,
                          below=False, control=Control(LARGE, "softmax setting=llama")), LEVERS,
                    renews="23a1401 attention_bias_fails_on_llama"),
    }),
    Statement("massive_without_sinks", "Large activations stay where sinks are gone (d, f)",
              f"Bondarenko et al. 2023; {QIU}", {
        BOOKS: Trial(forms(LARGE, *DF), FLY, renews="b1e06f5 massive_without_sinks"),
    }),
)  # fmt: skip
