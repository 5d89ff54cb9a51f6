//! Rows gathered, scattered and added.

use half::bf16;
use qlora_train::ffi::Rows;

use super::{Card, Grid, bf16_bytes, numbers, orders};

#[test]
fn rows_go_where_the_index_says_and_back() {
    for (index, rows, cols, gap) in [(vec![2_u32, 0, 5], 6, 130, 0), (vec![0], 1, 7, 3)] {
        let (packed_stride, spread_stride) = (cols + gap, cols + 2 * gap);
        let packed = numbers(1, index.len() * packed_stride);
        let spread = numbers(2, rows * spread_stride);
        let there = |row: usize, col: usize| spread[row * spread_stride + col];
        for kernel in ["gather_rows", "scatter_rows", "add_rows"] {
            for order in orders() {
                let mut card = Card::new();
                let bytes: Vec<u8> = index.iter().flat_map(|row| row.to_le_bytes()).collect();
                let params = Rows {
                    packed: card.upload(&bf16_bytes(&packed)),
                    spread: card.upload(&bf16_bytes(&spread)),
                    index: card.upload(&bytes),
                    packed_stride: packed_stride as u64,
                    spread_stride: spread_stride as u64,
                    cols: cols as u32,
                };
                let blocks = [index.len() as u32, 1, 1];
                let grid = Grid { image: "rows", kernel, blocks, threads: 128, shared_bytes: 0 };
                card.run(&grid, &params, order);
                let (mut near, mut far) = (packed.clone(), spread.clone());
                for (i, row) in index.iter().map(|row| *row as usize).enumerate() {
                    for col in 0..cols {
                        let (a, b) = (i * packed_stride + col, row * spread_stride + col);
                        match kernel {
                            "gather_rows" => near[a] = there(row, col),
                            "scatter_rows" => far[b] = packed[a],
                            _ => near[a] = bf16::from_f32(packed[a] + there(i, col)).to_f32(),
                        }
                    }
                }
                assert_eq!(card.bf16(params.packed, near.len()), near, "{kernel}");
                assert_eq!(card.bf16(params.spread, far.len()), far, "{kernel}");
            }
        }
    }
}
