//! Quantization of weights with double quantization, and back, on one thread: tensors are pieces of
//! work of their own, and no device is asked.

use half::bf16;
use qlora_train::device::Device;
use qlora_train::quant::{
    Kind, blocks, code_bytes, decode_bf16, encode, encode_scales, mean, nested_blocks,
};

use crate::measure::{Measured, Work};

/// As many values as the gate map of Qwen2.5-0.5B has.
const COUNT: usize = 896 * 4864;

pub fn all(_: &Device, measured: &mut Measured) {
    for kind in [Kind::Nf4, Kind::Fp4] {
        measured.run(&format!("quantize {}", kind.name()), Work::Numbers(COUNT), || {
            let mut tensor = Tensor::new();
            move || tensor.encode(kind)
        });
        measured.run(&format!("dequantize {} to bf16", kind.name()), Work::Numbers(COUNT), || {
            let mut tensor = Tensor::new();
            tensor.encode(kind);
            let mut out = vec![bf16::ZERO; COUNT];
            move || decode_bf16(kind, &tensor.codes, |block| tensor.scales[block], 0, &mut out)
        });
    }
}

struct Tensor {
    values: Vec<f32>,
    codes: Vec<u8>,
    scales: Vec<f32>,
    absmax: Vec<u8>,
    nested_absmax: Vec<f32>,
}

impl Tensor {
    fn new() -> Self {
        let blocks = blocks(COUNT);
        Self {
            values: (0..COUNT).map(|i| (i * 7919 % 1009) as f32 / 504.5 - 1.0).collect(),
            codes: vec![0; code_bytes(COUNT)],
            scales: vec![0.0; blocks],
            absmax: vec![0; blocks],
            nested_absmax: vec![0.0; nested_blocks(blocks)],
        }
    }

    fn encode(&mut self, kind: Kind) {
        encode(kind, &self.values, &mut self.codes, &mut self.scales);
        let offset = mean(&self.scales);
        encode_scales(&self.scales, offset, &mut self.absmax, &mut self.nested_absmax);
    }
}
