//! AdamW with moments in eight bits and in f32 against torch and bitsandbytes' rule for its GPUs:
//! `fixtures/quant.safetensors`, written by `scripts/reference/quant.py`.

use half::bf16;
use qlora_train::device::{Buf, Device, Dtype};
use qlora_train::ops::adamw::{Hyper, State32, adamw};
use qlora_train::ops::adamw_8bit::{State8, adamw_8bit};
use qlora_train::quant::{SIGNED, UNSIGNED};
use safetensors::SafeTensors;

const DECAYS: [f64; 2] = [0.0, 0.01];
const STEPS_KEPT: [u64; 3] = [1, 3, 10];

fn hyper(step: u64, weight_decay: f64) -> Hyper {
    Hyper {
        learning_rate: 1e-2,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay,
        clip: 1.0,
        step,
    }
}

#[test]
fn eight_bit_curves_are_those_of_bitsandbytes() {
    let (file, device) = (Fixture::open(), Device::cpu(2, Dtype::F32, u64::MAX));
    let (start, grads) = (file.floats("adamw8.wide.start"), file.grads("adamw8.wide.grads"));
    for decay in DECAYS {
        let mut values = buf(&device, &start);
        let [mut m, mut v] = [(); 2].map(|()| buf(&device, &vec![0u8; start.len()]));
        let blocks = vec![0.0f32; start.len().div_ceil(256)];
        let [mut m_absmax, mut v_absmax] = [(); 2].map(|()| buf(&device, &blocks));
        let maps = [&SIGNED, &UNSIGNED].map(|map| buf(&device, map.values()));
        for (step, grads) in (1..).zip(grads.chunks_exact(start.len())) {
            let state = State8 {
                m: &mut m,
                v: &mut v,
                m_absmax: &mut m_absmax,
                v_absmax: &mut v_absmax,
                signed_map: &maps[0],
                unsigned_map: &maps[1],
            };
            let (grads, hyper) = (buf(&device, grads), hyper(step, decay));
            adamw_8bit(&device, &mut values, &grads, state, 0..start.len(), 0, 0, &hyper);
            if !STEPS_KEPT.contains(&step) {
                continue;
            }
            let name = format!("adamw8.wide.step{step}");
            assert_eq!(numbers(&device, &m), file.bytes(&format!("{name}.state1")), "{name}");
            assert_eq!(numbers(&device, &v), file.bytes(&format!("{name}.state2")), "{name}");
            assert_near(&numbers(&device, &m_absmax), &file.floats(&format!("{name}.absmax1")));
            assert_near(&numbers(&device, &v_absmax), &file.floats(&format!("{name}.absmax2")));
            let param = file.floats(&format!("adamw8.wide.wd{decay:?}.step{step}.param"));
            assert_near(&numbers(&device, &values), &param);
        }
    }
}

#[test]
fn curves_with_f32_moments_are_those_of_torch() {
    let (file, device) = (Fixture::open(), Device::cpu(2, Dtype::F32, u64::MAX));
    let (start, grads) = (file.floats("adamw8.narrow.start"), file.grads("adamw8.narrow.grads"));
    for decay in DECAYS {
        let mut values = buf(&device, &start);
        let [mut m, mut v] = [(); 2].map(|()| buf(&device, &vec![0.0f32; start.len()]));
        for (step, grads) in (1..).zip(grads.chunks_exact(start.len())) {
            let (grads, hyper) = (buf(&device, grads), hyper(step, decay));
            adamw(
                &device,
                &mut values,
                &grads,
                State32 { m: &mut m, v: &mut v, start: 0 },
                0..start.len(),
                &hyper,
            );
            if !STEPS_KEPT.contains(&step) {
                continue;
            }
            let name = format!("adamw8.narrow.step{step}");
            assert_near(&numbers(&device, &m), &file.floats(&format!("{name}.state1")));
            assert_near(&numbers(&device, &v), &file.floats(&format!("{name}.state2")));
            let param = file.floats(&format!("adamw8.narrow.wd{decay:?}.step{step}.param"));
            assert_near(&numbers(&device, &values), &param);
        }
    }
}

/// Scaled maximum error of f32 arithmetic over ten steps.
#[track_caller]
fn assert_near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let worst = found.iter().zip(expected).fold(0.0f32, |m, (f, e)| m.max((f - e).abs()));
    assert!(worst <= 1e-6 * largest, "{worst:e} of {largest}");
}

fn buf<T: bytemuck::Pod>(device: &Device, numbers: &[T]) -> Buf<T> {
    let mut buf = device.alloc("test", numbers.len()).expect("no limit");
    device.upload(numbers, &mut buf);
    buf
}

fn numbers<T: bytemuck::Pod>(device: &Device, buf: &Buf<T>) -> Vec<T> {
    let mut numbers = vec![T::zeroed(); buf.len()];
    device.download(buf, &mut numbers);
    numbers
}

struct Fixture(Vec<u8>);

impl Fixture {
    fn open() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/quant.safetensors");
        Self(std::fs::read(path).expect(path))
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        let tensors = SafeTensors::deserialize(&self.0).expect("a safetensors file");
        tensors.tensor(name).expect(name).data().to_vec()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.bytes(name).chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
    }

    fn grads(&self, name: &str) -> Vec<f32> {
        let numbers = self.bytes(name);
        let bf16s = numbers.chunks_exact(2).map(bytemuck::pod_read_unaligned::<bf16>);
        bf16s.map(f32::from).collect()
    }
}
