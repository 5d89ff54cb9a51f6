//! What has gone wrong in trainers of this field, each a test here by its name.
//!
//! A class is a failure that users of other programs have reported, most of them silent: the run ends, the
//! curve falls, and the model is wrong. Behind its name stand the tests that would find it in this program,
//! wherever they are; a class fails here if one of them is gone.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

macro_rules! classes {
    ($($(#[$doc:meta])* mod $group:ident { $($class:ident: $($test:ident)+;)* })*) => {
        $(
            $(#[$doc])*
            mod $group {
                $(
                    #[test]
                    fn $class() {
                        super::assert_found_by(&[$(stringify!($test)),+]);
                    }
                )*
            }
        )*
    };
}

classes! {
    /// The run ends and the model is wrong.
    mod silent {
        accumulated_losses_are_averaged_by_micro_batch: how_a_window_is_split_changes_no_loss;
        the_loss_that_is_told_depends_on_the_accumulation: how_a_window_is_split_changes_no_loss;
        the_last_shorter_window_is_divided_by_the_whole_one:
            epochs_end_in_a_shorter_window_and_steps_go_on_in_the_next
            f32_losses_and_norms_are_those_of_float64_for_fifty_steps;
        the_end_token_is_masked_where_it_is_the_padding_token_too:
            masks_go_by_position_where_padding_or_begin_is_the_end_token
            a_model_whose_begin_and_end_are_one_token_learns_to_stop;
        an_answer_that_never_ends_is_learned: answers_that_never_end_are_refused_before_anything_is_learned;
        the_begin_token_stands_twice:
            a_chat_has_one_begin_token_whoever_writes_it
            a_begin_token_that_stands_twice_or_not_at_all_is_told_with_its_record;
        generation_makes_other_tokens_of_a_text_than_training:
            a_conversation_is_trained_and_asked_in_the_same_tokens;
        the_adapter_is_asked_with_another_chat_template_than_it_was_trained_with:
            the_chat_template_of_an_adapter_is_used_and_another_one_of_the_model_told;
        packed_records_see_each_other: records_packed_together_equal_each_alone every_family_holds_on_the_cpu;
        rotary_angles_are_computed_in_bf16: tables_are_those_of_the_reference;
        norms_are_computed_in_bf16_or_with_another_epsilon: f32_logits_losses_and_gradients_are_those_of_float64;
        embeddings_are_scaled_by_an_unrounded_root: gemma_embeddings_are_scaled_by_a_rounded_root;
        merging_forgets_in_which_form_the_base_was_trained_on: a_merged_model_is_what_base_and_adapter_were;
        merging_rounds_a_small_update_away: an_update_that_vanishes_is_noticed;
        an_update_of_a_head_goes_into_the_embeddings_that_share_its_numbers:
            head_and_embeddings_that_may_share_their_numbers_take_no_adapter;
        an_adapter_is_loaded_of_which_no_tensor_fits: adapters_with_anything_unaccounted_for_are_refused;
        the_adapters_file_is_empty_or_not_what_was_trained: an_adapter_is_read_back_and_what_it_does_is_told;
        the_scale_of_the_update_is_lost_or_applied_twice:
            the_update_is_scale_times_b_times_a
            scales_follow_patterns_first_match_first;
        recomputation_loses_gradients:
            recomputing_a_block_gives_the_same_bits_as_keeping_it
            what_is_kept_changes_no_bit_of_a_long_batch;
        the_start_of_the_answer_is_not_found_where_tokens_straddle_it:
            the_prompts_own_ids_stand_where_a_token_would_straddle_the_border;
        templates_that_rewrite_earlier_turns_give_wrong_masks:
            answers_are_found_where_a_template_rewrites_earlier_turns;
        all_labels_are_cut_away_and_the_run_goes_on:
            lengths_that_cut_everything
            what_cutting_loses_is_counted_and_named;
        special_tokens_of_the_template_are_split_by_the_tokenizer:
            a_template_that_writes_special_tokens_which_the_tokenizer_splits_is_refused;
        some_sizes_of_quantization_blocks_are_decoded_wrongly:
            every_path_gives_the_bits_of_the_rule_from_any_start
            positions_above_32_bits_find_their_block;
        scales_of_scales_are_ignored_or_read_past_their_end:
            decoded_values_are_those_of_bitsandbytes
            each_group_of_256_is_read_with_its_own_scale;
        quantized_moments_drift_where_there_is_no_gradient: five_hundred_steps_without_a_gradient_move_nothing;
        the_learning_rate_follows_micro_batches: rates_are_those_of_transformers_one_step_earlier;
        order_random_numbers_or_moments_are_lost_when_a_run_goes_on:
            a_resumed_run_ends_in_the_bytes_of_an_uninterrupted_one
            fifty_kills_at_any_moment_change_no_byte;
        index_arithmetic_wraps_above_32_bits:
            products_of_many_rows_and_of_many_columns
            attention_of_far_records
            sizes_do_not_wrap_above_32_bits;
        files_that_are_too_short_are_read_as_zeros:
            offsets_and_shapes_that_cannot_be
            a_file_that_changes_or_ends_under_a_run_is_named;
        padding_or_other_records_of_the_batch_change_a_result:
            padding_on_either_side_changes_no_loss
            the_other_rows_of_a_batch_change_no_bit;
        an_adapter_is_used_on_another_base: an_adapter_is_used_on_its_own_base_only_unless_told_otherwise;
    }

    /// Memory runs out after hours.
    mod memory {
        memory_runs_out_at_the_first_long_record:
            two_hundred_runs_on_the_cpu_take_what_was_planned
            the_planned_bytes_are_the_measured_ones;
        a_step_allocates: a_step_allocates_nothing;
        memory_runs_out_at_the_save: a_save_takes_no_more_memory_than_an_adapter_and_a_map_of_it;
        an_evaluation_keeps_its_logits: evaluation_keeps_no_logits;
        logits_of_a_long_sequence_fill_the_memory: how_many_logits_are_held_at_once_changes_no_bit;
        a_card_is_too_small_and_nobody_said_so:
            a_run_fits_on_a_card_of_128_mib_and_one_of_8_is_out_of_memory_with_the_plan_beside_it;
    }

    /// Work is lost.
    mod lost_work {
        a_disk_is_full_at_the_last_checkpoint:
            a_fault_at_any_call_loses_nothing_but_the_steps_since_the_last_checkpoint
            a_checkpoint_that_cannot_be_written_is_a_warning_where_that_is_asked_for;
        a_half_written_checkpoint_is_taken_for_the_newest:
            a_damaged_checkpoint_is_passed_over_and_named
            fifty_kills_at_any_moment_change_no_byte
            power_that_goes_at_any_call_costs_no_more_than_a_kill_a_call_earlier;
        old_checkpoints_go_before_the_new_one_stands_or_in_the_order_of_strings:
            a_fault_at_any_call_loses_nothing_but_the_steps_since_the_last_checkpoint
            checkpoints_go_by_their_step_and_not_by_their_name;
        a_signal_loses_the_session:
            a_signal_leaves_a_checkpoint_from_which_the_run_goes_on
            a_second_signal_leaves_at_once_and_nothing_half_written_counts
            a_stopped_run_goes_on_to_the_same_bytes;
        two_runs_write_to_one_folder: a_second_run_is_kept_out_and_a_refused_one_leaves_nothing;
        a_run_goes_on_with_other_data_or_settings: checkpoints_of_other_settings_are_neither_used_nor_overwritten;
        a_driver_that_is_old_or_absent_ends_the_program: a_gpu_that_cannot_be_used_is_refused_in_one_line;
        a_mapped_file_that_shrinks_ends_the_program: a_file_that_changes_or_ends_under_a_run_is_named;
        results_that_nobody_reads_end_the_program:
            a_reader_of_results_that_went_away_is_no_failure_and_a_full_disk_is_one
            streams_that_nobody_reads_end_no_run;
    }

    /// Numbers that are none.
    mod numbers {
        a_loss_that_is_not_finite_goes_on_for_hours:
            a_record_that_overflows_costs_its_step_and_is_named
            too_many_steps_that_cannot_be_applied_end_the_run_with_a_checkpoint_of_those_before;
        a_gradient_leaps: what_would_spoil_an_adapter_is_left_out_and_nothing_else;
        large_scores_or_logits_overflow:
            great_scores_do_not_overflow
            extreme_logits_give_finite_losses_and_a_nan_is_not_hidden;
    }

    /// Data.
    mod data {
        a_bad_line_is_told_without_its_file_or_by_a_wrong_number:
            lines_count_physically_whatever_their_ends
            bytes_that_are_no_records;
        byte_order_marks_utf_16_a_last_line_without_an_end:
            good_data_in_odd_clothes
            files_that_are_not_text_are_named;
        the_systems_language_decides_what_bytes_mean: the_language_of_the_system_changes_no_byte;
        a_line_without_an_end_fills_the_memory: a_record_of_seventy_megabytes_is_named_and_not_held;
        a_field_is_null_missing_or_of_another_type: records_of_wrong_shape wrong_types_name_the_field;
        of_two_equal_keys_the_last_one_is_taken_in_silence:
            repeated_keys_are_refused_at_any_depth_and_in_any_spelling;
    }

    /// Files from strangers.
    mod files_from_strangers {
        an_index_leads_out_of_the_models_folder: an_index_reads_nothing_outside_its_folder_and_leaves_nothing_open;
        a_pickle_runs_code: files_that_are_something_else;
        a_chat_template_runs_code_or_never_ends: templates_from_strangers chat_templates;
        a_crafted_tokenizer_ends_the_program: tokenizers_made_to_panic tokenizers;
        a_headers_length_sizes_an_allocation: hostile_headers_are_refused_before_they_cost_much tensor_files;
        names_from_files_write_to_the_terminal_or_into_a_page:
            names_from_files_cannot_write_to_the_terminal
            no_text_from_data_becomes_markup;
    }
}

/// Each of the tests exists.
fn assert_found_by(named: &[&str]) {
    let mut tests = BTreeSet::new();
    ["tests", "src"].iter().for_each(|folder| collect(Path::new(folder), &mut tests));
    let gone: Vec<_> = named.iter().filter(|name| !tests.contains(**name)).collect();
    assert!(gone.is_empty(), "gone: {gone:?}");
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
