//! `README.md` of an adapter: the model card that the Hugging Face hub and `peft` read.

use qlora_train::checkpoint::adapter::{AdapterConfig, TargetModules};
use qlora_train::train::metrics::Summary;
use serde_json::Value;

use super::table::grouped;

/// The card's text.
pub fn card(adapter: &AdapterConfig, summary: &Summary) -> String {
    let base = adapter.base_model.as_deref().unwrap_or("unknown");
    // A JSON string is a YAML string, whatever the name holds.
    let quoted = Value::from(base);
    let tag = Value::from(format!("base_model:adapter:{base}"));
    let modules = match &adapter.target_modules {
        TargetModules::Suffixes(names) => names.join(", "),
        TargetModules::Pattern(pattern) => pattern.clone(),
    };
    let Summary { steps, epochs, first_loss, last_loss, .. } = summary;
    format!(
        "---\n\
         base_model: {quoted}\n\
         library_name: peft\n\
         pipeline_tag: text-generation\n\
         tags:\n- {tag}\n- lora\n- qlora\n- qlora-train\n\
         ---\n\n\
         # LoRA adapter\n\n\
         Trained by `qlora-train` on a frozen base; all settings are in `train_config.toml`, the \
         course of the training in `metrics.jsonl`.\n\n\
         | | |\n| --- | --- |\n\
         | base model | `{base}` |\n\
         | rank, alpha, dropout | {}, {}, {} |\n\
         | modules | {modules} |\n\
         | trained numbers | {} |\n\
         | steps, epochs | {steps}, {epochs:.2} |\n\
         | tokens, supervised | {}, {} |\n\
         | loss of the first and the last step | {first_loss:.4}, {last_loss:.4} |\n\n\
         ```python\n\
         from peft import PeftModel\n\
         from transformers import AutoModelForCausalLM\n\n\
         model = AutoModelForCausalLM.from_pretrained({quoted})\n\
         model = PeftModel.from_pretrained(model, \"path/to/this/folder\")\n\
         ```\n",
        adapter.rank,
        adapter.alpha,
        adapter.dropout,
        grouped(summary.trainable_parameters),
        grouped(summary.num_input_tokens_seen),
        grouped(summary.num_supervised_tokens_seen),
    )
}
