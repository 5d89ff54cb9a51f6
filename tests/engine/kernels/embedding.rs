//! Rows of a table by token.

use half::bf16;
use qlora_train::ffi::Embedding;

use super::near::assert_same;
use super::{Card, Grid, bf16_bytes, numbers, orders};

#[test]
fn each_row_is_that_of_its_token_scaled() {
    const VOCABULARY: usize = 11;
    for (tokens, cols, scale) in [(vec![10_u32, 0, 10], 130, 1.0), (vec![3], 7, 22.627_417)] {
        let table = numbers(1, VOCABULARY * cols);
        for order in orders() {
            let mut card = Card::new();
            let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
            let params = Embedding {
                table: card.upload(&bf16_bytes(&table)),
                tokens: card.upload(&bytes),
                out: card.alloc(tokens.len() * cols * 2),
                table_stride: cols as u64,
                out_stride: cols as u64,
                cols: cols as u32,
                scale,
            };
            let blocks = [tokens.len() as u32, 1, 1];
            let (image, kernel) = ("embedding", "embedding");
            let grid = Grid { image, kernel, blocks, threads: 128, shared_bytes: 0 };
            card.run(&grid, &params, order);
            let scaled = |x: &f32| bf16::from_f32(x * scale).to_f32();
            let row = |token: &u32| table[*token as usize * cols..][..cols].iter().map(scaled);
            let expected: Vec<f32> = tokens.iter().flat_map(row).collect();
            let found = card.bf16(params.out, tokens.len() * cols);
            assert_same(&found, &expected, cols, &format!("embedding in {order:?}"));
        }
    }
}
