//! What a whole warp does to tiles of bf16: which lane holds which number, and how far a product may be from the
//! exact one.

use half::bf16;

use super::{SHARED_BYTES, by_the_driver, by_the_emulator};
use crate::{common, kernels::numbers};

/// Every lane has so many bytes of global memory at `%rd1`, and `SHARED_BYTES` of shared memory at `%r1`.
const FRAME: &str = "
.version 8.0
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 memory[];
.visible .entry k(.param .u64 p)
{
.reg .pred %p<2>;
.reg .b32 %r<8>;
.reg .f32 %f<5>;
.reg .b64 %rd<3>;
ld.param.u64 %rd0, [p];
mov.u32 %r0, %tid.x;
mad.wide.u32 %rd1, %r0, GLOBAL_BYTES, %rd0;
mov.u32 %r1, memory;
mad.lo.u32 %r1, %r0, SHARED_BYTES, %r1;
BODY
ret;
}
";

const LANES: usize = 32;

/// What `body` leaves in global memory, of which each lane has an equal part.
fn by_a_warp(body: &str, memory: &[u8]) -> Vec<u8> {
    let text = FRAME
        .replace("GLOBAL_BYTES", &(memory.len() / LANES).to_string())
        .replace("SHARED_BYTES", &SHARED_BYTES.to_string())
        .replace("BODY", body);
    match common::is_on_a_driver() {
        true => by_the_driver(&text, memory, LANES as u32),
        false => by_the_emulator(&text, memory, LANES as u32),
    }
}

/// Two neighbours in a register, the first in the lower half.
fn pair(low: f32, high: f32) -> u32 {
    let bits = |number| u32::from(bf16::from_f32(number).to_bits());
    bits(low) | bits(high) << 16
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
}

/// Four matrices of 8 rows, a row for each lane; lane l names row l ^ 5, so that addresses matter.
fn loaded(instruction: &str) -> (Vec<f32>, Vec<u32>) {
    let tiles = numbers(1, 4 * 8 * 8);
    let rows: Vec<u32> = tiles.chunks_exact(2).map(|two| pair(two[0], two[1])).collect();
    let body = format!(
        "ld.global.v4.u32 {{%r4, %r5, %r6, %r7}}, [%rd1];
        st.shared.v4.u32 [%r1], {{%r4, %r5, %r6, %r7}};
        bar.sync 0;
        xor.b32 %r1, %r1, {};
        {instruction} {{%r4, %r5, %r6, %r7}}, [%r1];
        st.global.v4.u32 [%rd1], {{%r4, %r5, %r6, %r7}};",
        5 * SHARED_BYTES,
    );
    (tiles, words(&by_a_warp(&body, &bytes(&rows))))
}

/// What `expected` says of a lane's pair of a matrix: row and column of both of its numbers.
fn check_tiles(instruction: &str, expected: fn(usize) -> [(usize, usize); 2]) {
    let (tiles, found) = loaded(instruction);
    for (at, found) in found.into_iter().enumerate() {
        let (lane, matrix) = (at / 4, at % 4);
        let number = |(row, column)| tiles[((8 * matrix + row) ^ 5) * 8 + column];
        let [low, high] = expected(lane).map(number);
        let expected = pair(low, high);
        assert!(found == expected, "lane {lane}, matrix {matrix}: {found:#x}, not {expected:#x}");
    }
}

#[test]
fn a_lane_loads_two_neighbours_of_a_row() {
    check_tiles("ldmatrix.sync.aligned.m8n8.x4.shared.b16", |lane| {
        let row = lane / 4;
        let column = 2 * (lane % 4);
        [(row, column), (row, column + 1)]
    });
}

#[test]
fn a_lane_loads_two_neighbours_of_a_column_if_it_is_transposed() {
    check_tiles("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", |lane| {
        let row = 2 * (lane % 4);
        let column = lane / 4;
        [(row, column), (row + 1, column)]
    });
}

/// Lane l copies l bytes of 16, the upper half of the warp all of them.
#[test]
fn a_copy_fills_up_with_zeros_what_it_does_not_read() {
    let body = "
        mov.u32 %r2, -1;
        st.shared.v4.u32 [%r1], {%r2, %r2, %r2, %r2};
        bar.sync 0;
        min.u32 %r3, %r0, 16;
        cp.async.cg.shared.global [%r1], [%rd1], 16, %r3;
        cp.async.commit_group;
        cp.async.wait_group 0;
        ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r1];
        st.global.v4.u32 [%rd1], {%r4, %r5, %r6, %r7};";
    let given: Vec<u8> = (0..16 * LANES).map(|i| (i * 7 + 1) as u8 | 1).collect();
    let found = by_a_warp(body, &given);
    for (lane, (found, given)) in found.chunks_exact(16).zip(given.chunks_exact(16)).enumerate() {
        let mut expected = given.to_vec();
        expected[lane.min(16)..].fill(0);
        assert_eq!(found, expected, "lane {lane}");
    }
}

/// a [16, 16] · b [16, 8] + c [16, 8].
struct Product {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

impl Product {
    /// The registers of a lane: four of a, two of b, two of nothing, four of c, and four for the result.
    fn registers(&self, lane: usize) -> [u32; 16] {
        let (group, two) = (lane / 4, 2 * (lane % 4));
        let mut registers = [0; 16];
        for (i, a) in registers[..4].iter_mut().enumerate() {
            let at = (group + 8 * (i % 2)) * 16 + two + 8 * (i / 2);
            *a = pair(self.a[at], self.a[at + 1]);
        }
        for (i, b) in registers[4..6].iter_mut().enumerate() {
            let row = two + 8 * i;
            *b = pair(self.b[row * 8 + group], self.b[(row + 1) * 8 + group]);
        }
        for (i, c) in registers[8..12].iter_mut().enumerate() {
            *c = self.c[place(lane, i)].to_bits();
        }
        registers
    }

    /// By a warp.
    fn found(&self) -> Vec<f32> {
        let body = "
            ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%rd1];
            ld.global.v2.u32 {%r2, %r3}, [%rd1+16];
            ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd1+32];
            mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1, %f2, %f3, %f4}, \
                {%r4, %r5, %r6, %r7}, {%r2, %r3}, {%f1, %f2, %f3, %f4};
            st.global.v4.f32 [%rd1+48], {%f1, %f2, %f3, %f4};";
        let memory: Vec<u32> = (0..LANES).flat_map(|lane| self.registers(lane)).collect();
        let left = words(&by_a_warp(body, &bytes(&memory)));
        let mut product = vec![0.0; 16 * 8];
        for (lane, registers) in left.chunks_exact(16).enumerate() {
            for (i, d) in registers[12..].iter().enumerate() {
                product[place(lane, i)] = f32::from_bits(*d);
            }
        }
        product
    }

    /// The number at a place, exactly, and the sum of the sizes of all that makes it up.
    fn exact(&self, at: usize) -> (f64, f64) {
        let (row, column) = (at / 8, at % 8);
        let terms =
            (0..16).map(|k| f64::from(self.a[row * 16 + k]) * f64::from(self.b[k * 8 + column]));
        let terms: Vec<f64> = terms.chain([f64::from(self.c[at])]).collect();
        (terms.iter().sum(), terms.iter().map(|term| term.abs()).sum())
    }

    /// Whether the warp finds it within `steps` units of the last place of a number as large as all terms together.
    fn check(&self, steps: f64) {
        for (at, found) in self.found().into_iter().enumerate() {
            let (exact, size) = self.exact(at);
            let bound = steps * f64::from(f32::EPSILON) * size;
            let error = (f64::from(found) - exact).abs();
            assert!(error <= bound, "({}, {}): {found}, not {exact} ± {bound:e}", at / 8, at % 8);
        }
    }
}

/// Where register `i` of the lane belongs in a result [16, 8].
fn place(lane: usize, i: usize) -> usize {
    (lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2
}

/// Sums of small whole numbers lose nothing in whatever order.
#[test]
fn products_of_whole_numbers_are_exact() {
    let whole = |seed, len| numbers(seed, len).iter().map(|x| (x * 8.0).round()).collect();
    Product { a: whole(1, 256), b: whole(2, 128), c: whole(3, 128) }.check(0.0);
}

/// The manual leaves the order of additions and their rounding open. Tensor cores align the terms of an addition to
/// the largest one and cut off what is below its last place: a unit for each of 16 products and c, and one more when
/// the sum itself is cut off.
#[test]
fn products_are_off_by_no_more_than_what_is_cut_off() {
    let (a, b) = (numbers(1, 256), numbers(2, 128));
    // Sizes over twelve powers of two, so that much is cut off.
    let spread = |i: usize, x: &f32| x * 2.0_f32.powi(i as i32 % 13 - 6);
    let a: Vec<f32> = a.iter().enumerate().map(|(i, x)| spread(i, x)).collect();
    for size in [0.0, 1.0, 1e4] {
        let c = numbers(3, 128).iter().map(|x| x * size).collect();
        Product { a: a.clone(), b: b.clone(), c }.check(18.0);
    }
}
