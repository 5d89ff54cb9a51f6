//! Four-bit codes: the very bits that the CPU gives.

use half::bf16;
use qlora_train::ffi::Dequantize;
use qlora_train::quant::{self, Kind};

use super::near::assert_same;
use super::{Card, Grid, f32_bytes, orders};

fn grid(values: usize) -> Grid {
    let blocks = [(values / 64).div_ceil(128) as u32, 1, 1];
    Grid { image: "dequantize", kernel: "dequantize", blocks, threads: 128, shared_bytes: 0 }
}

/// Every code beside every other one.
fn codes(values: usize) -> Vec<u8> {
    (0..values / 2).map(|i| (i * 167 + i / 256) as u8).collect()
}

#[test]
fn plain_and_nested_scales_give_the_bits_of_the_cpu() {
    for kind in [Kind::Nf4, Kind::Fp4] {
        for values in [64, 128 * 64, 129 * 64, 300 * 64] {
            let blocks = values / 64;
            let scales: Vec<f32> =
                (0..blocks).map(|b| 0.003 + (b * 7919 % 101) as f32 * 1e-3).collect();
            check(kind, values, &scales, None);
            let (mut absmax, offset) = (vec![0; blocks], quant::mean(&scales));
            let mut nested = vec![0.0; quant::nested_blocks(blocks)];
            quant::encode_scales(&scales, offset, &mut absmax, &mut nested);
            let codes = quant::DoubleQuantized {
                codes: &absmax,
                nested_absmax: &nested,
                offset,
                map: quant::SIGNED.values(),
            };
            check(kind, values, &scales, Some(codes));
        }
    }
}

fn check(kind: Kind, values: usize, scales: &[f32], nested: Option<quant::DoubleQuantized>) {
    let codes = codes(values);
    let mut expected = vec![bf16::ZERO; values];
    match &nested {
        None => quant::decode_bf16(kind, &codes, |block| scales[block], 0, &mut expected),
        Some(nested) => {
            quant::decode_bf16(kind, &codes, |block| nested.scale(block), 0, &mut expected);
        }
    }
    for order in orders() {
        let mut card = Card::new();
        let mut params = Dequantize {
            codes: card.upload(&codes),
            out: card.alloc(values * 2),
            values: values as u64,
            book: *kind.values(),
            ..Dequantize::default()
        };
        match &nested {
            None => params.absmax = card.upload(&f32_bytes(scales)),
            Some(nested) => {
                params.absmax = card.upload(nested.codes);
                params.nested_absmax = card.upload(&f32_bytes(nested.nested_absmax));
                params.map = card.upload(&f32_bytes(nested.map));
                params.offset = nested.offset;
            }
        }
        card.run(&grid(values), &params, order);
        let found = card.read(params.out, values * 2);
        let found = found.chunks_exact(2);
        let found: Vec<bf16> = found.map(|b| bf16::from_le_bytes([b[0], b[1]])).collect();
        let what = format!("dequantize, {kind:?} in {order:?}, nested: {}", nested.is_some());
        assert_same(&found, &expected, 64, &what);
    }
}
