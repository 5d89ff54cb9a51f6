//! What has gone wrong in trainers of this field, and the tests that would find it here.
//!
//! Each line is a class of failure that users of other programs have reported, most of them silent: the run
//! ends, the curve falls, and the model is wrong. The test below keeps the list true: every test that it
//! names exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

type Class = (&'static str, &'static [&'static str]);

/// The run ends and the model is wrong.
const SILENT: &[Class] = &[
    ("accumulated losses are averaged by micro-batch", &["how_a_window_is_split_changes_no_loss"]),
    (
        "the loss that is told depends on the accumulation",
        &["how_a_window_is_split_changes_no_loss"],
    ),
    (
        "the last, shorter window is divided by the whole one",
        &[
            "epochs_end_in_a_shorter_window_and_steps_go_on_in_the_next",
            "f32_losses_and_norms_are_those_of_float64_for_fifty_steps",
        ],
    ),
    (
        "the end token is masked where it is the padding token too",
        &[
            "masks_go_by_position_where_padding_or_begin_is_the_end_token",
            "a_model_whose_begin_and_end_are_one_token_learns_to_stop",
        ],
    ),
    (
        "an answer that never ends is learned",
        &["answers_that_never_end_are_refused_before_anything_is_learned"],
    ),
    (
        "the begin token stands twice",
        &[
            "a_chat_has_one_begin_token_whoever_writes_it",
            "a_begin_token_that_stands_twice_or_not_at_all_is_told_with_its_record",
        ],
    ),
    (
        "generation makes other tokens of a text than training",
        &["a_conversation_is_trained_and_asked_in_the_same_tokens"],
    ),
    (
        "the adapter is asked with another chat template than it was trained with",
        &["the_chat_template_of_an_adapter_is_used_and_another_one_of_the_model_told"],
    ),
    (
        "packed records see each other",
        &["records_packed_together_equal_each_alone", "every_family_holds_on_the_cpu"],
    ),
    ("rotary angles are computed in bf16", &["tables_are_those_of_the_reference"]),
    (
        "norms are computed in bf16, or with another epsilon",
        &["f32_logits_losses_and_gradients_are_those_of_float64"],
    ),
    (
        "embeddings are scaled by an unrounded root",
        &["gemma_embeddings_are_scaled_by_a_rounded_root"],
    ),
    (
        "merging forgets in which form the base was trained on",
        &["a_merged_model_is_what_base_and_adapter_were"],
    ),
    ("merging rounds a small update away", &["an_update_that_vanishes_is_noticed"]),
    (
        "an update of a head goes into the embeddings that share its numbers",
        &["head_and_embeddings_that_may_share_their_numbers_take_no_adapter"],
    ),
    (
        "an adapter is loaded of which no tensor fits",
        &["adapters_with_anything_unaccounted_for_are_refused"],
    ),
    (
        "the adapter's file is empty, or not what was trained",
        &["an_adapter_is_read_back_and_what_it_does_is_told"],
    ),
    (
        "the scale of the update is lost, or applied twice",
        &["the_update_is_scale_times_b_times_a", "scales_follow_patterns_first_match_first"],
    ),
    (
        "recomputation loses gradients",
        &[
            "recomputing_a_block_gives_the_same_bits_as_keeping_it",
            "what_is_kept_changes_no_bit_of_a_long_batch",
        ],
    ),
    (
        "the start of the answer is not found where tokens straddle it",
        &["the_prompts_own_ids_stand_where_a_token_would_straddle_the_border"],
    ),
    (
        "templates that rewrite earlier turns give wrong masks",
        &["answers_are_found_where_a_template_rewrites_earlier_turns"],
    ),
    (
        "all labels are cut away and the run goes on",
        &["lengths_that_cut_everything", "what_cutting_loses_is_counted_and_named"],
    ),
    (
        "special tokens of the template are split by the tokenizer",
        &["a_template_that_writes_special_tokens_which_the_tokenizer_splits_is_refused"],
    ),
    (
        "some sizes of quantization blocks are decoded wrongly",
        &[
            "every_path_gives_the_bits_of_the_rule_from_any_start",
            "positions_above_32_bits_find_their_block",
        ],
    ),
    (
        "scales of scales are ignored, or read past their end",
        &[
            "decoded_values_are_those_of_bitsandbytes",
            "each_group_of_256_is_read_with_its_own_scale",
        ],
    ),
    (
        "quantized moments drift where there is no gradient",
        &["five_hundred_steps_without_a_gradient_move_nothing"],
    ),
    (
        "the learning rate follows micro-batches",
        &["rates_are_those_of_transformers_one_step_earlier"],
    ),
    (
        "order, random numbers or moments are lost when a run goes on",
        &[
            "a_resumed_run_ends_in_the_bytes_of_an_uninterrupted_one",
            "fifty_kills_at_any_moment_change_no_byte",
        ],
    ),
    (
        "index arithmetic wraps above 32 bits",
        &[
            "products_of_many_rows_and_of_many_columns",
            "attention_of_far_records",
            "sizes_do_not_wrap_above_32_bits",
        ],
    ),
    (
        "files that are too short are read as zeros",
        &["offsets_and_shapes_that_cannot_be", "a_file_that_changes_or_ends_under_a_run_is_named"],
    ),
    (
        "padding or other records of the batch change a result",
        &["padding_on_either_side_changes_no_loss", "the_other_rows_of_a_batch_change_no_bit"],
    ),
    (
        "an adapter is used on another base",
        &["an_adapter_is_used_on_its_own_base_only_unless_told_otherwise"],
    ),
];

/// Memory runs out after hours.
const MEMORY: &[Class] = &[
    (
        "memory runs out at the first long record",
        &[
            "two_hundred_runs_on_the_cpu_take_what_was_planned",
            "the_planned_bytes_are_the_measured_ones",
        ],
    ),
    ("a step allocates", &["a_step_allocates_nothing"]),
    (
        "memory runs out at the save",
        &["a_save_takes_no_more_memory_than_an_adapter_and_a_map_of_it"],
    ),
    ("an evaluation keeps its logits", &["evaluation_keeps_no_logits"]),
    (
        "logits of a long sequence fill the memory",
        &["how_many_logits_are_held_at_once_changes_no_bit"],
    ),
    (
        "a card is too small and nobody said so",
        &["a_run_fits_on_a_card_of_64_mib_and_one_of_8_is_out_of_memory_with_the_plan_beside_it"],
    ),
];

/// Work is lost.
const LOST: &[Class] = &[
    (
        "a disk is full at the last checkpoint",
        &[
            "a_fault_at_any_call_loses_nothing_but_the_steps_since_the_last_checkpoint",
            "a_checkpoint_that_cannot_be_written_is_a_warning_where_that_is_asked_for",
        ],
    ),
    (
        "a half-written checkpoint is taken for the newest",
        &[
            "a_damaged_checkpoint_is_passed_over_and_named",
            "fifty_kills_at_any_moment_change_no_byte",
            "power_that_goes_at_any_call_costs_no_more_than_a_kill_a_call_earlier",
        ],
    ),
    (
        "old checkpoints go before the new one stands, or in the order of strings",
        &[
            "a_fault_at_any_call_loses_nothing_but_the_steps_since_the_last_checkpoint",
            "checkpoints_go_by_their_step_and_not_by_their_name",
        ],
    ),
    (
        "a signal loses the session",
        &[
            "a_signal_leaves_a_checkpoint_from_which_the_run_goes_on",
            "a_second_signal_leaves_at_once_and_nothing_half_written_counts",
            "a_stopped_run_goes_on_to_the_same_bytes",
        ],
    ),
    (
        "two runs write to one folder",
        &["a_second_run_is_kept_out_and_a_refused_one_leaves_nothing"],
    ),
    (
        "a run goes on with other data or settings",
        &["checkpoints_of_other_settings_are_neither_used_nor_overwritten"],
    ),
    (
        "a driver that is old or absent ends the program",
        &["a_gpu_that_cannot_be_used_is_refused_in_one_line"],
    ),
    (
        "a mapped file that shrinks ends the program",
        &["a_file_that_changes_or_ends_under_a_run_is_named"],
    ),
    (
        "results that nobody reads end the program",
        &[
            "a_reader_of_results_that_went_away_is_no_failure_and_a_full_disk_is_one",
            "streams_that_nobody_reads_end_no_run",
        ],
    ),
];

/// Numbers that are none.
const NUMBERS: &[Class] = &[
    (
        "a loss that is not finite goes on for hours",
        &[
            "a_record_that_overflows_costs_its_step_and_is_named",
            "too_many_steps_that_cannot_be_applied_end_the_run_with_a_checkpoint_of_those_before",
        ],
    ),
    ("a gradient leaps", &["what_would_spoil_an_adapter_is_left_out_and_nothing_else"]),
    (
        "large scores or logits overflow",
        &[
            "great_scores_do_not_overflow",
            "extreme_logits_give_finite_losses_and_a_nan_is_not_hidden",
        ],
    ),
];

/// Data.
const DATA: &[Class] = &[
    (
        "a bad line is told without its file, or by a wrong number",
        &["lines_count_physically_whatever_their_ends", "bytes_that_are_no_records"],
    ),
    (
        "byte-order marks, UTF-16, a last line without an end",
        &["good_data_in_odd_clothes", "files_that_are_not_text_are_named"],
    ),
    (
        "the system's language decides what bytes mean",
        &["the_language_of_the_system_changes_no_byte"],
    ),
    (
        "a line without an end fills the memory",
        &["a_record_of_seventy_megabytes_is_named_and_not_held"],
    ),
    (
        "a field is null, missing or of another type",
        &["records_of_wrong_shape", "wrong_types_name_the_field"],
    ),
    (
        "of two equal keys the last one is taken in silence",
        &["repeated_keys_are_refused_at_any_depth_and_in_any_spelling"],
    ),
];

/// Files from strangers.
const STRANGERS: &[Class] = &[
    (
        "an index leads out of the model's folder",
        &["an_index_reads_nothing_outside_its_folder_and_leaves_nothing_open"],
    ),
    ("a pickle runs code", &["files_that_are_something_else"]),
    ("a chat template runs code, or never ends", &["templates_from_strangers", "chat_templates"]),
    ("a crafted tokenizer ends the program", &["tokenizers_made_to_panic", "tokenizers"]),
    (
        "a header's length sizes an allocation",
        &["hostile_headers_are_refused_before_they_cost_much", "tensor_files"],
    ),
    (
        "names from files write to the terminal or into a page",
        &["names_from_files_cannot_write_to_the_terminal", "no_text_from_data_becomes_markup"],
    ),
];

#[test]
fn every_test_that_the_list_names_exists() {
    let (mut tests, mut missing) = (BTreeSet::new(), Vec::new());
    ["tests", "src"].iter().for_each(|folder| collect(Path::new(folder), &mut tests));
    for (class, named) in [SILENT, MEMORY, LOST, NUMBERS, DATA, STRANGERS].into_iter().flatten() {
        assert!(!named.is_empty(), "{class}");
        missing
            .extend(named.iter().filter(|name| !tests.contains(**name)).map(|name| (class, name)));
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// The names of all tests below `folder`.
fn collect(folder: &Path, tests: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, tests);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            for part in text.split("#[test]").skip(1) {
                let name = part.split_once("fn ").and_then(|(_, rest)| rest.split_once('('));
                tests.extend(name.map(|(name, _)| name.to_owned()));
            }
            // Those of the fuzzer are made by a macro from their names alone.
            let listed = text.split_once("\ntests! {").and_then(|(_, rest)| rest.split_once('}'));
            let listed = listed.map_or("", |(names, _)| names).split_whitespace();
            tests.extend(listed.map(str::to_owned));
        }
    }
}
