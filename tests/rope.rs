//! Rotary tables, from the text of a config to the numbers, against those of the reference.
//!
//! The expected numbers were computed by transformers 5.23 with its arithmetic widened from f32 to
//! f64, on the same configs: cos and sin of the pairs 1, 11 and of the last one.

use std::ops::Range;
use std::path::Path;

use qlora_train::model::config::Config;
use qlora_train::model::rope::Rope;

struct Case {
    name: &'static str,
    /// The rotary fields of the config.
    rotary: &'static str,
    /// Tokens of the sequence.
    length: usize,
    width: usize,
    /// Position, and cos, sin of the three pairs.
    rows: &'static [(u32, [f64; 6])],
}

#[test]
fn tables_are_those_of_the_reference() {
    for case in CASES {
        let (name, half) = (case.name, case.width / 2);
        let rope = rope(case.rotary);
        assert_eq!(rope.width(), case.width, "{name}");
        for (position, expected) in case.rows {
            let row = rows(&rope, *position..position + 1, case.length);
            let found = [1, 11, half - 1].map(|pair| [row[pair], row[half + pair]]);
            for (found, expected) in found.as_flattened().iter().zip(expected) {
                assert!(
                    (f64::from(*found) - expected).abs() < 1e-6,
                    "{name}, {position}: {found} {expected}"
                );
            }
        }
    }
}

#[test]
fn a_row_is_the_same_alone_in_a_range_and_after_other_calls() {
    for case in CASES {
        let (fresh, used) = (rope(case.rotary), rope(case.rotary));
        rows(&used, 0..9, 9);
        rows(&used, 0..7, 100_000);
        let range = rows(&used, 5..40, case.length);
        for (position, row) in (5..40).zip(range.chunks(case.width)) {
            let alone = rows(&fresh, position..position + 1, case.length);
            assert_eq!(row, alone, "{}", case.name);
        }
    }
}

#[test]
fn the_length_of_a_sequence_chooses_the_table_exactly_at_the_limit() {
    for (name, limit) in [("dynamic, longer than in training", 4096), ("longrope, long", 2048)] {
        let case = CASES.iter().find(|case| case.name == name).unwrap();
        let rope = rope(case.rotary);
        let at = |length| rows(&rope, 2000..2001, length);
        assert_eq!(at(2), at(limit), "{name}");
        assert_ne!(at(limit), at(limit + 1), "{name}");
    }
}

#[test]
fn an_empty_range_writes_nothing() {
    rope(CASES[0].rotary).fill(7..7, 9, &mut []);
}

fn rows(rope: &Rope, positions: Range<u32>, length: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; positions.len() * rope.width()];
    rope.fill(positions, length, &mut out);
    out
}

/// The table of a config with heads of 64 numbers, or for longrope, which is Phi-3's, of 32.
fn rope(rotary: &str) -> Rope {
    let (architecture, hidden) = match rotary.contains("longrope") {
        true => ("Phi3ForCausalLM", 128),
        false => ("LlamaForCausalLM", 256),
    };
    let text = format!(
        r#"{{"architectures": ["{architecture}"], "hidden_size": {hidden}, "num_hidden_layers": 1,
        "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 64, "hidden_act": "silu",
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, {rotary}}}"#
    );
    let map = serde_json::from_str(&text).unwrap();
    Config::parse(map, Path::new("config.json")).unwrap().ropes.swap_remove(0)
}

#[rustfmt::skip] // one row a line
const CASES: &[Case] = &[
    Case {
        name: "default",
        rotary: r#""rope_theta": 500000.0"#,
        length: 131_072,
        width: 64,
        rows: &[
            (0, [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]),
            (1, [0.78777913, 0.61595782, 0.99993962, 0.01098931, 1.0, 0.00000301]),
            (255, [0.90992726, -0.41476787, -0.94300023, 0.33279208, 0.9999997, 0.00076853]),
            (4095, [-0.99953256, 0.03057223, 0.52351745, 0.85201495, 0.99992384, 0.01234144]),
            (131_071, [0.73602363, 0.67695584, 0.01173685, 0.99993112, 0.92298525, 0.38483533]),
        ],
    },
    Case {
        name: "linear",
        rotary: r#""rope_scaling": {"type": "linear", "factor": 8.0}"#,
        length: 131_072,
        width: 64,
        rows: &[
            (0, [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]),
            (1, [0.99560992, 0.09359957, 0.99998611, 0.00527118, 1.0, 0.00001667]),
            (255, [0.33436656, -0.9424431, 0.22470348, 0.97442719, 0.99999097, 0.00425059]),
            (4095, [0.83766919, 0.54617792, -0.91888207, 0.3945323, 0.99767122, 0.06820663]),
            (131_071, [-0.82765534, 0.5612367, 0.96937981, -0.24556624, -0.57616477, 0.81733357]),
        ],
    },
    Case {
        name: "dynamic, as long as in training",
        rotary: r#""rope_scaling": {"type": "dynamic", "factor": 2.0}"#,
        length: 4_096,
        width: 64,
        rows: &[
            (0, [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]),
            (1, [0.73176098, 0.68156135, 0.99911099, 0.04215715, 0.99999999, 0.00013335]),
            (255, [-0.91546736, 0.40239224, -0.23994913, -0.97078546, 0.99942189, 0.03399824]),
            (4095, [-0.08991009, -0.99594989, -0.99471275, 0.10269642, 0.85456844, 0.51933878]),
        ],
    },
    Case {
        name: "dynamic, longer than in training",
        rotary: r#""rope_scaling": {"type": "dynamic", "factor": 2.0}"#,
        length: 131_072,
        width: 64,
        rows: &[
            (0, [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]),
            (1, [0.79238961, 0.61001533, 0.99995301, 0.00969432, 1.0, 0.00000212]),
            (255, [-0.69958983, -0.71454466, -0.7841312, 0.62059508, 0.99999985, 0.00053976]),
            (4095, [-0.83337024, -0.55271515, -0.41593375, 0.90939492, 0.99996243, 0.00866778]),
            (131_071, [0.19045892, 0.98169517, 0.10939978, 0.99399783, 0.96176029, 0.27389259]),
        ],
    },
    Case {
        name: "yarn",
        rotary: r#""rope_theta": 1000000.0, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}"#,
        length: 131_072,
        width: 64,
        rows: &[
            (0, [1.13862944, 0.0, 1.13862944, 0.0, 1.13862944, 0.0]),
            (1, [0.90687038, 0.68852241, 1.13861276, 0.00616255, 1.13862944, 0.00000044]),
            (255, [-0.69694451, 0.90041398, 0.21578458, 1.11799553, 1.13862943, 0.00011178]),
            (4095, [0.15933883, 1.12742544, -1.12180378, -0.1950212, 1.13862802, 0.00179505]),
            (131_071, [-1.13584639, 0.07956105, 0.93498225, -0.64983474, 1.13718015, 0.05743078]),
        ],
    },
    Case {
        name: "yarn with weights, limits and a ramp between pairs",
        rotary: r#""rope_scaling": {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 1024, "beta_fast": 24, "beta_slow": 2.0, "mscale": 1.0, "mscale_all_dim": 0.7, "truncate": false}"#,
        length: 131_072,
        width: 64,
        rows: &[
            (0, [1.08795461, 0.0, 1.08795461, 0.0, 1.08795461, 0.0]),
            (1, [0.79612273, 0.74150781, 1.08770366, 0.02336592, 1.08795461, 0.00000363]),
            (255, [-0.99598693, 0.4377845, 0.75317326, -0.78509571, 1.08795421, 0.00092489]),
            (4095, [-0.0978181, -1.08354827, 1.08790227, -0.01067125, 1.08785323, 0.01485221]),
            (131_071, [0.05942183, 1.08633065, 1.02126265, 0.3750571, 0.98573065, 0.46041321]),
        ],
    },
    Case {
        name: "yarn with its attention factor",
        rotary: r#""rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048, "attention_factor": 0.75}"#,
        length: 131_072,
        width: 64,
        rows: &[
            (0, [0.75, 0.0, 0.75, 0.0, 0.75, 0.0]),
            (1, [0.54882073, 0.51117101, 0.74954405, 0.02614799, 0.75, 0.000025]),
            (255, [-0.68660052, 0.30179418, -0.64609508, 0.38086894, 0.7499729, 0.00637582]),
            (4095, [-0.06743257, -0.74696241, -0.10873092, -0.74207654, 0.74302178, 0.10207169]),
            (131_071, [0.04096345, 0.7488805, -0.68078421, 0.31469486, -0.25205124, -0.70637821]),
        ],
    },
    Case {
        name: "llama3",
        rotary: r#""rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1024}"#,
        length: 131_072,
        width: 64,
        rows: &[
            (0, [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]),
            (1, [0.78777913, 0.61595782, 0.99999236, 0.0039091, 1.0, 0.00000038]),
            (255, [0.90992726, -0.41476787, 0.54297203, 0.83975078, 1.0, 0.00009607]),
            (4095, [-0.99953256, 0.03057223, -0.9553783, -0.29538501, 0.99999881, 0.00154272]),
            (131_071, [0.73602363, 0.67695584, -0.95770568, -0.2877496, 0.99878112, 0.04935861]),
        ],
    },
    Case {
        name: "longrope, short, of three quarters of a head",
        rotary: r#""partial_rotary_factor": 0.75, "original_max_position_embeddings": 2048, "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.35, 1.4, 1.45, 1.5, 1.55], "long_factor": [1.0, 2.0, 5.0, 10.0, 17.0, 26.0, 37.0, 50.0, 65.0, 82.0, 101.0, 122.0]}"#,
        length: 2_048,
        width: 24,
        rows: &[
            (0, [1.04446594, 0.0, 1.04446594, 0.0, 1.04446594, 0.0]),
            (1, [0.94406559, 0.44682128, 1.04446593, 0.00014518, 1.04446593, 0.00014518]),
            (255, [0.97263326, -0.38064897, 1.04380994, 0.03701222, 1.04380994, 0.03701222]),
            (2047, [1.03814063, 0.11477418, 1.00247346, 0.29318261, 1.00247346, 0.29318261]),
        ],
    },
    Case {
        name: "longrope, long",
        rotary: r#""partial_rotary_factor": 0.75, "original_max_position_embeddings": 2048, "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.35, 1.4, 1.45, 1.5, 1.55], "long_factor": [1.0, 2.0, 5.0, 10.0, 17.0, 26.0, 37.0, 50.0, 65.0, 82.0, 101.0, 122.0]}"#,
        length: 131_072,
        width: 24,
        rows: &[
            (0, [1.04446594, 0.0, 1.04446594, 0.0, 1.04446594, 0.0]),
            (1, [1.01646404, 0.24022895, 1.04446594, 0.00000184, 1.04446594, 0.00000184]),
            (255, [-0.91155049, 0.50988705, 1.04446583, 0.00047034, 1.04446583, 0.00047034]),
            (4095, [-0.03502061, 1.04387866, 1.04443863, 0.00755297, 1.04443863, 0.00755297]),
            (131_071, [-0.41981034, 0.95638296, 1.01661212, 0.23960152, 1.01661212, 0.23960152]),
        ],
    },
];
