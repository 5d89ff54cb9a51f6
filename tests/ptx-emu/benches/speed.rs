//! Multiplications a second of a product of matrices, on one core: fast, and checked.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ptx_emu::ptx::Module;
use ptx_emu::{DeviceMemory, Launch, Order};

/// Rows, columns and depth.
const SHAPE: [u32; 3] = [128, 128, 512];

fn product(c: &mut Criterion) {
    let module = Module::parse(include_str!("../tests/kernels/product.ptx")).unwrap();
    let [m, n, k] = SHAPE;
    let mut memory = DeviceMemory::new(1 << 24);
    let mut zeros = |count: u32, bytes: usize| {
        let len = count as usize * bytes;
        let address = memory.alloc(len).unwrap();
        memory.write(address, &vec![0; len]);
        address
    };
    let addresses = [zeros(m * k, 2), zeros(n * k, 2), zeros(m * n, 4)];
    let addresses = addresses.into_iter().flat_map(u64::to_le_bytes);
    let mut params: Vec<u8> =
        addresses.chain(SHAPE.into_iter().flat_map(u32::to_le_bytes)).collect();
    params.resize(module.kernels[0].param_bytes, 0);
    let mut group = c.benchmark_group("product");
    group.throughput(Throughput::Elements(u64::from(m) * u64::from(n) * u64::from(k)));
    for (name, checked) in [("fast", false), ("checked", true)] {
        let launch = Launch {
            module: &module,
            kernel: &module.kernels[0],
            blocks: [n.div_ceil(64), m.div_ceil(64), 1],
            first: [0; 3],
            threads: [128, 1, 1],
            shared_bytes: 4 * 64 * 64 * 2,
            params: &params,
            order: Order::Forward,
            workers: 1,
            checked,
        };
        group.bench_function(name, |b| b.iter(|| black_box(launch.run(&mut memory))));
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4));
    targets = product
}
criterion_main!(benches);
