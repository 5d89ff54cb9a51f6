//! Dropout: the mask and the bits of the CPU.

use half::bf16;
use qlora_train::device::{Device, Dtype};
use qlora_train::ffi::Dropout;
use qlora_train::ops::Write;
use qlora_train::ops::dropout::{Draw, dropout};

use super::near::assert_same;
use super::{Card, Grid, bf16_bytes, numbers, orders};

const P: f32 = 0.3;

fn on_cpu(x: &[f32], before: &[f32], cols: usize, draw: Draw, write: Write) -> Vec<f32> {
    let device = Device::cpu(1, Dtype::Bf16, u64::MAX);
    let act = |numbers: &[f32]| {
        let mut act = device.alloc_act("test", numbers.len()).unwrap();
        device.upload(&bf16_bytes(numbers), act.bytes_mut());
        act
    };
    let (x, mut out, rows) = (act(x), act(before), x.len() / cols);
    dropout(&device, x.view(rows, cols), draw, P, out.view_mut(rows, cols), write);
    let mut bytes = vec![0; before.len() * 2];
    device.download(out.bytes(), &mut bytes);
    bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
}

#[test]
fn the_mask_is_that_of_the_cpu() {
    let draw = Draw { seed: 0x1234_5678_9abc_def0, stream: (7 << 40) + 3 };
    for (rows, cols) in [(1, 1), (3, 85), (5, 258), (2, 1024)] {
        let (x, before) = (numbers(1, rows * cols), numbers(2, rows * cols));
        for (write, add) in [(Write::Set, 0), (Write::Add, 1)] {
            let expected = on_cpu(&x, &before, cols, draw, write);
            for order in orders() {
                let mut card = Card::new();
                let params = Dropout {
                    x: card.upload(&bf16_bytes(&x)),
                    out: card.upload(&bf16_bytes(&before)),
                    rows: rows as u64,
                    cols: cols as u64,
                    x_stride: cols as u64,
                    out_stride: cols as u64,
                    seed: draw.seed,
                    stream: draw.stream,
                    threshold: (f64::from(P) * 2_f64.powi(32)) as u32,
                    scale: (1.0 / (1.0 - f64::from(P))) as f32,
                    add,
                };
                let blocks = [(rows * cols).div_ceil(4 * 256) as u32, 1, 1];
                let (image, kernel) = ("dropout", "dropout");
                let grid = Grid { image, kernel, blocks, threads: 256, shared_bytes: 0 };
                card.run(&grid, &params, order);
                let found = card.bf16(params.out, rows * cols);
                let what = format!("dropout, {rows} x {cols}, {write:?} in {order:?}");
                assert_same(&found, &expected, cols, &what);
            }
        }
    }
}
