//! One instruction at a time, over numbers on both sides of every edge, against what the PTX manual
//! promises of it: bits where it promises bits, an error where it promises a bound. `tiles.rs` has those of a
//! whole warp.

mod tiles;

use std::sync::{Arc, LazyLock};

use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use ptx_emu::ptx::Module;
use ptx_emu::{DeviceMemory, Launch, Order};

use crate::common;

/// Four words of input in `%r1` to `%r4`, as f32 in `%f1` to `%f4`, in pairs in `%rd2` and `%rd3`. The
/// result is `%rd4`, which starts as 0.
const FRAME: &str = "
.version 8.0
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 memory[];
.visible .entry k(.param .u64 p)
{
.reg .pred %p<4>;
.reg .b16 %h<4>;
.reg .b32 %r<8>;
.reg .f32 %f<8>;
.reg .b64 %rd<8>;
ld.param.u64 %rd0, [p];
mov.u32 %r0, %tid.x;
mul.wide.u32 %rd1, %r0, 16;
add.s64 %rd1, %rd0, %rd1;
ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1];
mov.b32 %f1, %r1;
mov.b32 %f2, %r2;
mov.b32 %f3, %r3;
mov.b64 %rd2, {%r1, %r2};
mov.b64 %rd3, {%r3, %r4};
mov.b64 %rd4, 0;
BODY
st.global.u64 [%rd1], %rd4;
ret;
}
";

const WORD: &str = "cvt.u64.u32 %rd4, %r5;";
const FLOAT: &str = "mov.b32 %r5, %f5; cvt.u64.u32 %rd4, %r5;";
const PREDICATE: &str = "selp.b64 %rd4, 1, 0, %p1;";

/// Words at the edges of integers and of f32.
const EDGES: [u32; 16] = [
    0,
    1,
    2,
    31,
    32,
    33,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x3f80_0000,
    0xbf00_0000,
    0x4048_f5c3,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0x1234_5678,
];

/// Runs `body` on every pair of edges, the other words derived from them, and wants these bits.
fn check(body: &str, expected: impl Fn([u32; 4]) -> u64) {
    check_where(body, |_| true, expected);
}

/// As [`check`] where the manual says what is to come.
fn check_where(
    body: &str,
    is_defined: impl Fn([u32; 4]) -> bool,
    expected: impl Fn([u32; 4]) -> u64,
) {
    for (input, found) in results(body).into_iter().filter(|(input, _)| is_defined(*input)) {
        let expected = expected(input);
        assert!(found == expected, "{body} of {input:x?}: {found:#x}, not {expected:#x}");
    }
}

/// Inputs, and what `body` makes of each.
fn results(body: &str) -> Vec<([u32; 4], u64)> {
    let text = FRAME.replace("BODY", body);
    let pairs = EDGES.into_iter().flat_map(|a| EDGES.map(|b| (a, b)));
    let inputs: Vec<[u32; 4]> = pairs.map(|(a, b)| [a, b, b ^ 0x5555, a.rotate_left(7)]).collect();
    let bytes: Vec<u8> = inputs.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
    let threads = inputs.len() as u32;
    let results = match common::is_on_a_driver() {
        true => by_the_driver(&text, &bytes, threads),
        false => by_the_emulator(&text, &bytes, threads),
    };
    let found =
        results.chunks_exact(16).map(|found| u64::from_le_bytes(found[..8].try_into().unwrap()));
    inputs.into_iter().zip(found).collect()
}

/// Bytes of shared memory of a thread.
const SHARED_BYTES: u32 = 16;

fn by_the_emulator(text: &str, bytes: &[u8], threads: u32) -> Vec<u8> {
    let module = Module::parse(text).unwrap_or_else(|e| panic!("{e}"));
    let mut memory = DeviceMemory::new(1 << 16);
    let address = memory.alloc(bytes.len()).unwrap();
    memory.write(address, bytes);
    let launch = Launch {
        module: &module,
        kernel: &module.kernels[0],
        blocks: [1; 3],
        first: [0; 3],
        threads: [threads, 1, 1],
        shared_bytes: (threads * SHARED_BYTES) as usize,
        params: &address.to_le_bytes(),
        order: Order::Forward,
        workers: 1,
        checked: true,
    };
    assert_eq!(launch.run(&mut memory).findings, [], "{text}");
    memory.read(address, bytes.len())
}

/// The context of the driver, made once: that takes a third of a second.
static CONTEXT: LazyLock<Arc<CudaContext>> = LazyLock::new(|| {
    common::open_driver();
    CudaContext::new(0).unwrap()
});

fn by_the_driver(text: &str, bytes: &[u8], threads: u32) -> Vec<u8> {
    let context = &*CONTEXT;
    let module = context.load_module(Ptx::from_src(text)).unwrap_or_else(|e| panic!("{e}: {text}"));
    let (kernel, stream) = (module.load_function("k").unwrap(), context.new_stream().unwrap());
    let mut memory = stream.clone_htod(bytes).unwrap();
    let grid = LaunchConfig {
        grid_dim: (1, 1, 1),
        block_dim: (threads, 1, 1),
        shared_mem_bytes: threads * SHARED_BYTES,
    };
    // SAFETY: the kernel takes the address of 16 bytes for each thread.
    unsafe { stream.launch_builder(&kernel).arg(&mut memory).launch(grid) }.unwrap();
    stream.clone_dtoh(&memory).unwrap()
}

fn words(instruction: &str, expected: impl Fn([u32; 4]) -> u32) {
    check(&format!("{instruction} {WORD}"), |input| u64::from(expected(input)));
}

/// Numbers that are none are all the same.
fn floats(instruction: &str, expected: impl Fn([f32; 4]) -> f32) {
    let body = format!(
        "{instruction} setp.nan.f32 %p1, %f5, %f5; selp.f32 %f5, 0f7fc00000, %f5, %p1; {FLOAT}"
    );
    check(&body, |input| {
        let number = expected(input.map(f32::from_bits));
        u64::from(if number.is_nan() { 0x7fc0_0000 } else { number.to_bits() })
    });
}

fn predicates(instruction: &str, expected: impl Fn([u32; 4]) -> bool) {
    check(&format!("{instruction} {PREDICATE}"), |input| u64::from(expected(input)));
}

fn signed(word: u32) -> i32 {
    word as i32
}

#[test]
fn integers_of_32_bits() {
    words("add.s32 %r5, %r1, %r2;", |[a, b, ..]| a.wrapping_add(b));
    words("sub.u32 %r5, %r1, 7;", |[a, ..]| a.wrapping_sub(7));
    words("mul.lo.s32 %r5, %r1, %r2;", |[a, b, ..]| a.wrapping_mul(b));
    words("mul.hi.u32 %r5, %r1, %r2;", |[a, b, ..]| ((u64::from(a) * u64::from(b)) >> 32) as u32);
    words("mul.hi.s32 %r5, %r1, %r2;", |[a, b, ..]| {
        ((i64::from(signed(a)) * i64::from(signed(b))) >> 32) as u32
    });
    words("mad.lo.s32 %r5, %r1, %r2, %r3;", |[a, b, c, _]| a.wrapping_mul(b).wrapping_add(c));
    words("min.s32 %r5, %r1, %r2;", |[a, b, ..]| signed(a).min(signed(b)) as u32);
    words("max.u32 %r5, %r1, %r2;", |[a, b, ..]| a.max(b));
    // What is divided by zero is any number.
    let quotient = format!("div.u32 %r5, %r1, %r2; {WORD}");
    check_where(&quotient, |[_, b, ..]| b != 0, |[a, b, ..]| u64::from(a / b));
    let magnitude = format!("abs.s32 %r5, %r1; {WORD}");
    let has_one = |[a, ..]: [u32; 4]| signed(a) != i32::MIN;
    check_where(&magnitude, has_one, |[a, ..]| u64::from(signed(a).unsigned_abs()));
    words("shl.b32 %r5, %r1, %r2;", |[a, n, ..]| if n > 31 { 0 } else { a << n });
    words("shr.u32 %r5, %r1, %r2;", |[a, n, ..]| if n > 31 { 0 } else { a >> n });
    words("shr.s32 %r5, %r1, %r2;", |[a, n, ..]| (signed(a) >> n.min(31)) as u32);
    words("not.b32 %r5, %r1;", |[a, ..]| !a);
    words("popc.b32 %r5, %r1;", |[a, ..]| a.count_ones());
    words("clz.b32 %r5, %r1;", |[a, ..]| a.leading_zeros());
    words("brev.b32 %r5, %r1;", |[a, ..]| a.reverse_bits());
    words("bfe.u32 %r5, %r1, 4, 9;", |[a, ..]| a >> 4 & 0x1ff);
    words("bfi.b32 %r5, %r1, %r2, 8, 8;", |[a, b, ..]| b & !0xff00 | (a & 0xff) << 8);
    words("prmt.b32 %r5, %r1, %r2, 0x5410;", |[a, b, ..]| a & 0xffff | b << 16);
    words("shf.l.wrap.b32 %r5, %r1, %r2, 5;", |[a, b, ..]| b << 5 | a >> 27);
    words("shf.r.wrap.b32 %r5, %r1, %r2, 5;", |[a, b, ..]| a >> 5 | b << 27);
}

#[test]
fn integers_of_64_bits() {
    let long = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let check = |text: &str, expected: fn(u64, u64) -> u64| {
        check(text, |[a, b, c, d]| expected(long(a, b), long(c, d)));
    };
    check("add.s64 %rd4, %rd2, %rd3;", u64::wrapping_add);
    check("mul.lo.s64 %rd4, %rd2, %rd3;", u64::wrapping_mul);
    check("mul.hi.u64 %rd4, %rd2, %rd3;", |a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64);
    check("and.b64 %rd4, %rd2, %rd3;", |a, b| a & b);
    check("shl.b64 %rd4, %rd2, 40;", |a, _| a << 40);
    check("shr.s64 %rd4, %rd2, 70;", |a, _| (a as i64 >> 63) as u64);
    check("shr.u64 %rd4, %rd2, 3;", |a, _| a >> 3);
    check("mul.wide.s32 %rd4, %r1, %r2;", |a, _| {
        (i64::from(a as i32) * i64::from((a >> 32) as i32)) as u64
    });
    check("mad.wide.u32 %rd4, %r1, %r2, %rd3;", |a, b| {
        (u64::from(a as u32) * (a >> 32)).wrapping_add(b)
    });
}

#[test]
fn numbers_of_single_precision() {
    floats("add.f32 %f5, %f1, %f2;", |[a, b, ..]| a + b);
    floats("mul.rn.f32 %f5, %f1, %f2;", |[a, b, ..]| a * b);
    floats("fma.rn.f32 %f5, %f1, %f2, %f3;", |[a, b, c, _]| a.mul_add(b, c));
    floats("div.rn.f32 %f5, %f1, %f2;", |[a, b, ..]| a / b);
    floats("rcp.rn.f32 %f5, %f1;", |[a, ..]| 1.0 / a);
    floats("sqrt.rn.f32 %f5, %f1;", |[a, ..]| a.sqrt());
    floats("neg.f32 %f5, %f1;", |[a, ..]| -a);
    floats("abs.f32 %f5, %f1;", |[a, ..]| a.abs());
    // The number wins against none, and +0 is larger than -0.
    let above = |a: f32, b: f32| a > b || a == b && a.is_sign_positive();
    floats("max.f32 %f5, %f1, %f2;", |[a, b, ..]| if b.is_nan() || above(a, b) { a } else { b });
    floats("min.f32 %f5, %f1, %f2;", |[a, b, ..]| if b.is_nan() || above(b, a) { a } else { b });
}

/// An approximate function of one number, within a relative error; with `.ftz`, numbers below the smallest
/// normal one are zeros.
fn approximates(instruction: &str, error: f64, exact: fn(f64) -> f64) {
    let flushes = instruction.contains(".ftz");
    let floor = if flushes { f64::from(f32::MIN_POSITIVE) } else { 2.0_f64.powi(-149) };
    for (input, found) in results(&format!("{instruction} %f5, %f1; {FLOAT}")) {
        let x = f32::from_bits(input[0]);
        let x = if flushes && x.is_subnormal() { 0.0_f32.copysign(x) } else { x };
        let found = f64::from(f32::from_bits(found as u32));
        let exact = exact(f64::from(x));
        let holds = match exact {
            exact if exact.is_nan() => found.is_nan(),
            // Beyond the range of f32 is infinity.
            exact if exact.abs() >= f64::from(f32::MAX) * (1.0 + error) => {
                found == f64::INFINITY.copysign(exact)
            }
            exact => (found - exact).abs() <= error * exact.abs() + floor,
        };
        assert!(holds, "{instruction} of {x:e}: {found:e}, not {exact:e}");
    }
}

/// Those that the kernels use, with the errors of the PTX manual: two units of the last place from the correctly
/// rounded result, one unit, and so much of the result.
#[test]
fn approximate_functions_keep_the_errors_that_they_are_allowed() {
    let unit = f64::from(f32::EPSILON);
    approximates("ex2.approx.ftz.f32", 2.5 * unit, f64::exp2);
    approximates("rcp.approx.ftz.f32", unit, |x| 1.0 / x);
    approximates("rsqrt.approx.f32", 2.0_f64.powf(-22.9), |x| 1.0 / x.sqrt());
}

#[test]
fn comparisons() {
    predicates("setp.lt.s32 %p1, %r1, %r2;", |[a, b, ..]| signed(a) < signed(b));
    predicates("setp.hs.u32 %p1, %r1, %r2;", |[a, b, ..]| a >= b);
    predicates("setp.eq.s64 %p1, %rd2, %rd3;", |[a, b, c, d]| (a, b) == (c, d));
    let float = f32::from_bits;
    predicates("setp.lt.f32 %p1, %f1, %f2;", |[a, b, ..]| float(a) < float(b));
    predicates("setp.geu.f32 %p1, %f1, %f2;", |[a, b, ..]| {
        float(a) >= float(b) || float(a).is_nan() || float(b).is_nan()
    });
    predicates("setp.neu.f32 %p1, %f1, %f2;", |[a, b, ..]| float(a) != float(b));
    predicates("setp.ne.f32 %p1, %f1, %f2;", |[a, b, ..]| {
        float(a) < float(b) || float(a) > float(b)
    });
    let both = "setp.lt.u32 %p2, %r1, %r2; setp.lt.u32 %p3, %r2, %r3; and.pred %p1, %p2, %p3;";
    predicates(both, |[a, b, c, _]| a < b && b < c);
    let guarded = "setp.lt.u32 %p1, %r1, %r2; @%p1 bra $over; mov.u64 %rd4, 5; $over:";
    check(guarded, |[a, b, ..]| if a < b { 0 } else { 5 });
    let negated = "setp.lt.u32 %p1, %r1, %r2; @!%p1 mov.u64 %rd4, 5;";
    check(negated, |[a, b, ..]| if a < b { 0 } else { 5 });
}

#[test]
fn conversions() {
    check("cvt.s64.s32 %rd4, %r1;", |[a, ..]| i64::from(signed(a)) as u64);
    words("cvt.rzi.s32.f32 %r5, %f1;", |[a, ..]| f32::from_bits(a) as i32 as u32);
    floats("cvt.rn.f32.s32 %f5, %r1;", |[a, ..]| signed(a.to_bits()) as f32);
    floats("cvt.rn.f32.u32 %f5, %r1;", |[a, ..]| a.to_bits() as f32);
    words("cvt.u16.u32 %h1, %r1; cvt.u32.u16 %r5, %h1;", |[a, ..]| a & 0xffff);
    words("mov.b32 {%h1, %h2}, %r1; mov.b32 %r5, {%h2, %h1};", |[a, ..]| a.rotate_left(16));
    words("cvt.u32.u64 %r5, %rd2;", |[a, ..]| a);
    let rounded = |bits: u32| match f32::from_bits(bits) {
        number if number.is_nan() => 0x7fff,
        _ => bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16,
    };
    words("cvt.rn.bf16x2.f32 %r5, %f1, %f2;", |[a, b, ..]| rounded(a) << 16 | rounded(b));
}

#[test]
fn lanes_ask_and_read_each_other() {
    let few = "mov.u32 %r6, %laneid; setp.lt.u32 %p2, %r6, 5;";
    words(&format!("{few} vote.sync.ballot.b32 %r5, %p2, -1;"), |_| 0x1f);
    words(&format!("{few} vote.sync.ballot.b32 %r5, !%p2, -1;"), |_| !0x1f);
    predicates(&format!("{few} vote.sync.any.pred %p1, %p2, -1;"), |_| true);
    predicates(&format!("{few} vote.sync.all.pred %p1, %p2, -1;"), |_| false);
    words("mov.u32 %r6, %laneid; shfl.sync.idx.b32 %r5, %r6, 3, 31, -1;", |_| 3);
    // A lane and its neighbour make the same sum.
    let sum =
        "mov.u32 %r6, %laneid; shfl.sync.bfly.b32 %r7|%p1, %r6, 1, 31, -1; add.u32 %r6, %r6, %r7;";
    words(&format!("{sum} and.b32 %r5, %r6, 3;"), |_| 1);
}

#[test]
fn a_generic_address_reaches_global_and_shared_memory() {
    check("ld.u32 %r5, [%rd1+4]; cvt.u64.u32 %rd4, %r5;", |[_, b, ..]| u64::from(b));
    // Every thread has shared memory to itself.
    let shared = "mov.u64 %rd5, memory; mad.wide.u32 %rd5, %r0, 16, %rd5; st.shared.u64 [%rd5], %rd3; cvta.shared.u64 %rd6, %rd5; \
                  ld.u64 %rd4, [%rd6];";
    check(shared, |[_, _, c, d]| u64::from(c) | u64::from(d) << 32);
    check(
        "st.global.u8 [%rd1], %r2; ld.global.s8 %r5, [%rd1]; cvt.s64.s32 %rd4, %r5;",
        |[_, b, ..]| i64::from(b as i8) as u64,
    );
}

/// A nibble of the selector names a byte, or with its upper bit the sign of one.
#[test]
fn bytes_are_permuted_by_nibbles() {
    let byte = |a: u32, b: u32, nibble: u32| {
        let byte = (u64::from(b) << 32 | u64::from(a)) >> (8 * (nibble & 7)) & 0xff;
        let sign = if byte & 0x80 == 0 { 0 } else { 0xff };
        if nibble & 8 == 0 { byte as u32 } else { sign }
    };
    words("prmt.b32 %r5, %r1, %r2, %r4;", |[a, b, _, selector]| {
        (0..4).map(|i| byte(a, b, selector >> (4 * i)) << (8 * i)).sum()
    });
}

#[test]
fn numbers_are_cut_off() {
    // The sign of a zero is nobody's business.
    let unsigned = "add.f32 %f5, %f5, 0f00000000;";
    floats(&format!("cvt.sat.f32.f32 %f5, %f1; {unsigned}"), |[a, ..]| {
        if a.is_nan() { 0.0 } else { a.clamp(0.0, 1.0) + 0.0 }
    });
    floats("cvt.rzi.f32.f32 %f5, %f1;", |[a, ..]| a.trunc());
}
