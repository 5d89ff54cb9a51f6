//! Rotary position embedding, forth and back.

use qlora_train::ffi::Rope;

use super::{Card, Grid, assert_near, bf16_bytes, f32_bytes, numbers, orders};

#[test]
fn heads_are_turned_by_the_angle_of_their_token_and_back() {
    // Rows, heads, numbers of a head, rotated pairs, numbers between rows.
    for (rows, heads, head_dim, half, gap) in
        [(1, 1, 2, 1, 0), (3, 2, 64, 32, 0), (2, 5, 80, 20, 6), (2, 3, 128, 64, 0)]
    {
        let stride = heads * head_dim + gap;
        let angles: Vec<f64> = (0..rows * half).map(|i| 0.37 * i as f64).collect();
        let row = |row: usize| &angles[row * half..(row + 1) * half];
        let tables: Vec<f32> = (0..rows)
            .flat_map(|r| {
                let cosines = row(r).iter().map(|angle| angle.cos() as f32);
                cosines.chain(row(r).iter().map(|angle| angle.sin() as f32))
            })
            .collect();
        let x = numbers(1, rows * stride);
        for backward in [false, true] {
            for order in orders() {
                let mut card = Card::new();
                let params = Rope {
                    x: card.upload(&bf16_bytes(&x)),
                    tables: card.upload(&f32_bytes(&tables)),
                    x_stride: stride as u64,
                    table_stride: 2 * half as u64,
                    heads: heads as u32,
                    head_dim: head_dim as u32,
                    half: half as u32,
                    backward: u32::from(backward),
                };
                let blocks = [rows as u32, 1, 1];
                let (image, kernel) = ("rope", "rope");
                let grid = Grid { image, kernel, blocks, threads: 128, shared_bytes: 0 };
                card.run(&grid, &params, order);
                let mut exact: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
                for (i, angle) in angles.iter().enumerate() {
                    let (row, pair) = (i / half, i % half);
                    let angle = if backward { -angle } else { *angle };
                    for head in 0..heads {
                        let first = row * stride + head * head_dim + pair;
                        let (a, b) = (exact[first], exact[first + half]);
                        exact[first] = a * angle.cos() - b * angle.sin();
                        exact[first + half] = b * angle.cos() + a * angle.sin();
                    }
                }
                let found = card.bf16(params.x, rows * stride);
                let what = format!("rope, {rows} x {heads} x {head_dim}, backward: {backward}");
                assert_near(&found, &exact, 1.01, stride, &what);
            }
        }
    }
}
