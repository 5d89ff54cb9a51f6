//! Rows gathered, scattered and added.

use half::bf16;
use ptx_emu::Order;
use qlora_train::ffi::Rows;

use super::near::assert_same;
use super::{Card, Grid, bf16_bytes, numbers, orders};

/// Which rows of the spread matrix the packed ones are, and the shapes of both.
struct Case {
    index: &'static [u32],
    spread_rows: usize,
    cols: usize,
    packed_stride: usize,
    spread_stride: usize,
}

const CASES: [Case; 2] = [
    Case { index: &[2, 0, 5], spread_rows: 6, cols: 130, packed_stride: 130, spread_stride: 130 },
    Case { index: &[0], spread_rows: 1, cols: 7, packed_stride: 10, spread_stride: 13 },
];

for_each_kernel!(rows_go_where_the_index_says_and_back:
    check_all(gather_rows, scatter_rows, add_rows));

fn check_all(kernel: &'static str) {
    for case in &CASES {
        for order in orders() {
            check(kernel, case, order);
        }
    }
}

impl Case {
    fn inputs(&self) -> [Vec<f32>; 2] {
        let (packed, spread) =
            (self.index.len() * self.packed_stride, self.spread_rows * self.spread_stride);
        [numbers(1, packed), numbers(2, spread)]
    }

    /// Both matrices after the kernel.
    fn expected(&self, kernel: &str) -> [Vec<f32>; 2] {
        let [packed, spread] = self.inputs();
        let (mut near, mut far) = (packed.clone(), spread.clone());
        for (i, row) in self.index.iter().map(|row| *row as usize).enumerate() {
            for col in 0..self.cols {
                let (a, b) = (i * self.packed_stride + col, row * self.spread_stride + col);
                match kernel {
                    "gather_rows" => near[a] = spread[b],
                    "scatter_rows" => far[b] = packed[a],
                    // Row by row, without the index.
                    _ => {
                        let term = spread[i * self.spread_stride + col];
                        near[a] = bf16::from_f32(packed[a] + term).to_f32();
                    }
                }
            }
        }
        [near, far]
    }
}

fn check(kernel: &'static str, case: &Case, order: Order) {
    let mut card = Card::new();
    let [packed, spread] = case.inputs().map(|numbers| card.upload(&bf16_bytes(&numbers)));
    let index: Vec<u8> = case.index.iter().flat_map(|row| row.to_le_bytes()).collect();
    let params = Rows {
        packed,
        spread,
        index: card.upload(&index),
        packed_stride: case.packed_stride as u64,
        spread_stride: case.spread_stride as u64,
        cols: case.cols as u32,
    };
    let blocks = [case.index.len() as u32, 1, 1];
    let grid = Grid { image: "rows", kernel, blocks, threads: 128, shared_bytes: 0 };
    card.run(&grid, &params, order);
    let [near, far] = case.expected(kernel);
    let what = |matrix: &str| format!("{matrix} rows after {kernel} in {order:?}");
    assert_same(&card.bf16(packed, near.len()), &near, case.packed_stride, &what("packed"));
    assert_same(&card.bf16(spread, far.len()), &far, case.spread_stride, &what("spread"));
}
