//! Kernels that a compiler made: right numbers in every order of warps, nothing found; and with a fault
//! planted in their text, the fault found.

use ptx_emu::ptx::Module;
use ptx_emu::{DeviceMemory, Finding, Kind, Launch, Order, Report};

const RMSNORM: &str = include_str!("kernels/rmsnorm.ptx");
const PRODUCT: &str = include_str!("kernels/product.ptx");

const ORDERS: [Order; 4] =
    [Order::Forward, Order::Reverse, Order::Random(1), Order::Random(20_260_101)];

/// Numbers of either sign that bf16 holds exactly.
fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from((state >> 24) as u8) / 64.0 - 2.0
    };
    (0..len).map(|_| next()).collect()
}

fn bf16(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect()
}

fn f32_bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn uploaded(memory: &mut DeviceMemory, bytes: &[u8]) -> u64 {
    let address = memory.alloc(bytes.len()).unwrap();
    memory.write(address, bytes);
    address
}

fn params(addresses: [u64; 3], rest: &[[u8; 4]]) -> Vec<u8> {
    let addresses = addresses.into_iter().flat_map(u64::to_le_bytes);
    addresses.chain(rest.iter().flatten().copied()).collect()
}

/// Arguments padded to the size that the kernel declares: the struct ends with padding.
fn padded(mut params: Vec<u8>, module: &Module) -> Vec<u8> {
    params.resize(module.kernels[0].param_bytes, 0);
    params
}

/// The norm of `rows` rows of `dim` numbers, with its result as f32.
fn rmsnorm(
    text: &str,
    (rows, dim): (usize, usize),
    order: Order,
    checked: bool,
) -> (Vec<f32>, Report) {
    let module = Module::parse(text).unwrap();
    let mut memory = DeviceMemory::new(1 << 20);
    let x = uploaded(&mut memory, &bf16(&numbers(rows * dim, 1)));
    let w = uploaded(&mut memory, &f32_bytes(&numbers(dim, 2)));
    let y = memory.alloc(rows * dim * 2).unwrap();
    let params = params([x, w, y], &[(dim as u32).to_le_bytes(), 1e-6_f32.to_le_bytes()]);
    let launch = Launch {
        module: &module,
        kernel: module.kernel("rmsnorm").unwrap(),
        blocks: [rows as u32, 1, 1],
        first: [0; 3],
        threads: [128, 1, 1],
        shared_bytes: 4 * 4,
        params: &padded(params, &module),
        order,
        workers: 2,
        checked,
    };
    let report = launch.run(&mut memory);
    let y = memory.read(y, rows * dim * 2);
    let y = y
        .chunks_exact(2)
        .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16));
    (y.collect(), report)
}

/// x·wᵀ of `m` × `n` numbers and a depth of `k`.
fn product(
    text: &str,
    (m, n, k): (usize, usize, usize),
    order: Order,
    checked: bool,
) -> (Vec<f32>, Report) {
    let module = Module::parse(text).unwrap();
    let mut memory = DeviceMemory::new(1 << 20);
    let x = uploaded(&mut memory, &bf16(&numbers(m * k, 3)));
    let w = uploaded(&mut memory, &bf16(&numbers(n * k, 4)));
    let y = memory.alloc(m * n * 4).unwrap();
    let sizes = [m, n, k].map(|size| (size as u32).to_le_bytes());
    let launch = Launch {
        module: &module,
        kernel: module.kernel("product").unwrap(),
        blocks: [n.div_ceil(64) as u32, m.div_ceil(64) as u32, 1],
        first: [0; 3],
        threads: [128, 1, 1],
        shared_bytes: 4 * 64 * 64 * 2,
        params: &padded(params([x, w, y], &sizes), &module),
        order,
        workers: 2,
        checked,
    };
    let report = launch.run(&mut memory);
    let y = memory.read(y, m * n * 4);
    (y.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(), report)
}

fn exact_rmsnorm(rows: usize, dim: usize) -> Vec<f64> {
    let (x, w) = (numbers(rows * dim, 1), numbers(dim, 2));
    let row = |x: &[f32]| -> Vec<f64> {
        let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / dim as f64;
        let scaled = x.iter().map(|x| f64::from(*x) / (mean + 1e-6).sqrt());
        scaled.zip(&w).map(|(x, w)| x * f64::from(*w)).collect()
    };
    x.chunks(dim).flat_map(row).collect()
}

fn exact_product(m: usize, n: usize, k: usize) -> Vec<f64> {
    let (x, w) = (numbers(m * k, 3), numbers(n * k, 4));
    let dot = |i: usize| -> f64 {
        let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
        x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
    };
    (0..m * n).map(dot).collect()
}

fn error(found: &[f32], exact: &[f64]) -> f64 {
    assert_eq!(found.len(), exact.len());
    let largest = exact.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    let worst = found.iter().zip(exact).map(|(a, b)| (f64::from(*a) - b).abs());
    // A number that is none is as wrong as can be.
    worst.fold(0.0, |m: f64, e| if e.is_nan() { f64::INFINITY } else { m.max(e) }) / largest
}

#[test]
fn a_norm_is_right_in_every_order_and_nothing_is_found() {
    // The last one has blocks for more than one thread.
    for (rows, dim) in [(1, 2), (3, 62), (2, 64), (4, 258), (5, 1024), (64, 66)] {
        for order in ORDERS {
            for checked in [false, true] {
                let (y, report) = rmsnorm(RMSNORM, (rows, dim), order, checked);
                assert_eq!(report.findings, [], "{rows} x {dim}, {order:?}");
                let error = error(&y, &exact_rmsnorm(rows, dim));
                assert!(error < 1.0 / 256.0, "{rows} x {dim}, {order:?}: {error}");
            }
        }
    }
}

#[test]
fn a_product_of_matrices_is_right_in_every_order_and_nothing_is_found() {
    for (m, n, k) in [(64, 64, 64), (1, 65, 128), (70, 130, 192), (128, 64, 256)] {
        for order in ORDERS {
            for checked in [false, true] {
                let (y, report) = product(PRODUCT, (m, n, k), order, checked);
                assert_eq!(report.findings, [], "{m} x {n} x {k}, {order:?}");
                let error = error(&y, &exact_product(m, n, k));
                assert!(error < 1e-6, "{m} x {n} x {k}, {order:?}: {error}");
            }
        }
    }
}

#[test]
fn a_swizzled_tile_has_no_bank_conflicts() {
    let counters = product(PRODUCT, (64, 64, 128), Order::Forward, false).1.counters;
    assert_eq!(counters.shared_passes, counters.shared_passes_at_best);
    assert!(counters.products > 0 && counters.sectors >= counters.sectors_at_best);
}

/// Text with the `which`-th line that has `what` in it replaced.
fn planted(text: &str, what: &str, which: usize, by: &str) -> String {
    let mut seen = 0;
    let mut lines = Vec::new();
    for line in text.lines() {
        let found = line.contains(what);
        if found && seen == which {
            lines.push(line.replace(what, by));
        } else {
            lines.push(line.to_owned());
        }
        seen += usize::from(found);
    }
    assert!(seen > which, "{seen} lines with {what}");
    lines.join("\n")
}

fn kinds(report: &Report) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = report.findings.iter().map(|finding| finding.kind).collect();
    kinds.sort();
    kinds.dedup();
    kinds
}

#[track_caller]
fn expect(report: &Report, kind: Kind) -> &Finding {
    let found = report.findings.iter().find(|finding| finding.kind == kind);
    found.unwrap_or_else(|| panic!("{kind:?} is not among {:?}", kinds(report)))
}

#[test]
fn a_norm_without_its_barrier_races() {
    let text = planted(RMSNORM, "bar.sync \t0;", 0, "");
    for order in ORDERS {
        let report = rmsnorm(&text, (2, 258), order, true).1;
        let reads_too_early = kinds(&report).contains(&Kind::SharedFresh);
        assert!(reads_too_early || kinds(&report).contains(&Kind::SharedRace), "{order:?}");
    }
    let report = rmsnorm(&text, (2, 258), Order::Forward, true).1;
    let place = &expect(&report, Kind::SharedRace).place;
    assert!(place.starts_with("rmsnorm.cu:"), "{place}");
}

#[test]
fn a_shuffle_of_half_a_warp_is_found() {
    let mask = RMSNORM.lines().find_map(|line| line.trim().strip_suffix(", -1;")).unwrap();
    let text = planted(RMSNORM, &format!("{mask}, -1;"), 0, &format!("{mask}, 65535;"));
    expect(&rmsnorm(&text, (1, 64), Order::Forward, false).1, Kind::WarpMask);
}

#[test]
fn memory_beyond_an_allocation_is_not_touched() {
    let module = Module::parse(RMSNORM).unwrap();
    let mut memory = DeviceMemory::new(1 << 20);
    let [x, w, y] = [64 * 2 - 4, 64 * 4, 64 * 2].map(|len| uploaded(&mut memory, &vec![0; len]));
    let params = params([x, w, y], &[64_u32.to_le_bytes(), 1e-6_f32.to_le_bytes()]);
    let launch = Launch {
        module: &module,
        kernel: &module.kernels[0],
        blocks: [1, 1, 1],
        first: [0; 3],
        threads: [128, 1, 1],
        shared_bytes: 16,
        params: &padded(params, &module),
        order: Order::Forward,
        workers: 2,
        checked: false,
    };
    let report = launch.run(&mut memory);
    assert!(expect(&report, Kind::GlobalBounds).message.contains("thread 31"));
    // What is read but was never written is another mistake.
    let fresh = memory.alloc(64 * 2).unwrap();
    let mut arguments = padded(launch.params.to_vec(), &module);
    arguments[..8].copy_from_slice(&fresh.to_le_bytes());
    let report = Launch { params: &arguments, checked: true, ..launch }.run(&mut memory);
    expect(&report, Kind::GlobalFresh);
    // Too little shared memory, and an address that is no multiple of four.
    arguments[..8].copy_from_slice(&w.to_le_bytes());
    let report = Launch { params: &arguments, shared_bytes: 4, ..launch }.run(&mut memory);
    expect(&report, Kind::Bounds);
    arguments[..8].copy_from_slice(&(w + 2).to_le_bytes());
    let report = Launch { params: &arguments, ..launch }.run(&mut memory);
    expect(&report, Kind::Alignment);
    // Launches that no device takes.
    for refused in [
        Launch { threads: [512, 1, 1], ..launch },
        Launch { params: &[0; 8], ..launch },
        Launch { blocks: [1, 0, 1], ..launch },
    ] {
        expect(&refused.run(&mut memory), Kind::Launch);
    }
}

#[test]
fn copies_that_are_not_waited_for_are_found() {
    for (what, by) in [("cp.async.wait_group 1;", ""), ("wait_group 1;", "wait_group 2;")] {
        let text = planted(PRODUCT, what, 0, by);
        for order in ORDERS {
            let (y, report) = product(&text, (64, 64, 192), order, true);
            expect(&report, Kind::CopyRace);
            let error = error(&y, &exact_product(64, 64, 192));
            assert!(error > 0.01, "poison is read: {error}");
        }
    }
    // The last group is waited for by nobody if the loop ends one round early: the copies of the
    // second stage are in flight at the end.
    let text = planted(PRODUCT, "cp.async.wait_group 1;", 0, "");
    expect(&product(&text, (64, 64, 64), Order::Forward, true).1, Kind::CopyAtExit);
}

#[test]
fn every_barrier_of_the_product_is_needed() {
    for which in 0..2 {
        let text = planted(PRODUCT, "bar.sync \t0;", which, "");
        let mut found = Vec::new();
        for order in ORDERS {
            found.extend(kinds(&product(&text, (64, 64, 192), order, true).1));
        }
        let race = found
            .iter()
            .any(|kind| matches!(kind, Kind::SharedRace | Kind::CopyRace | Kind::SharedFresh));
        assert!(race, "barrier {which}: {found:?}");
    }
}

#[test]
fn two_blocks_at_one_byte_are_found() {
    // Every block takes itself for the first one.
    let text = planted(RMSNORM, "%ctaid.x;", 0, "0;");
    for order in [Order::Forward, Order::Reverse] {
        for rows in [2, 64] {
            expect(&rmsnorm(&text, (rows, 64), order, true).1, Kind::GlobalRace);
        }
    }
}

#[test]
fn a_barrier_that_not_all_lanes_reach_is_found() {
    let text = planted(RMSNORM, "bar.sync \t0;", 0, "@%p1 bar.sync \t0;");
    let report = rmsnorm(&text, (1, 64), Order::Forward, false).1;
    expect(&report, Kind::DivergentBarrier);
}

#[test]
fn an_unknown_instruction_is_an_error_with_its_line() {
    let text = planted(RMSNORM, "rsqrt.approx.f32", 0, "rsqrt.approx.ftz.f32");
    let error = Module::parse(&text).unwrap_err();
    assert_eq!(error.problem, "unknown instruction");
    assert!(error.text.starts_with("rsqrt.approx.ftz.f32"), "{error}");
    assert!(text.lines().nth(error.line as usize - 1).unwrap().contains("ftz"), "{error}");
}
