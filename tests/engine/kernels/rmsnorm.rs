//! Norms of rows and of heads, forward and backward.

use ptx_emu::Order;
use qlora_train::ffi::Rmsnorm;

use super::near::assert_same;
use super::{Card, Grid, assert_near, bf16_bytes, f32_bytes, numbers, orders};

const EPS: f32 = 1e-6;

/// Rows, groups of a row, numbers of a group; what lies between rows.
#[derive(Debug, Clone, Copy)]
struct Shape {
    rows: usize,
    groups: usize,
    width: usize,
    gap: usize,
}

const SHAPES: [Shape; 6] = [
    Shape { rows: 1, groups: 1, width: 2, gap: 0 },
    Shape { rows: 3, groups: 1, width: 510, gap: 0 },
    Shape { rows: 2, groups: 1, width: 512, gap: 6 },
    Shape { rows: 2, groups: 3, width: 64, gap: 0 },
    Shape { rows: 2, groups: 1, width: 1026, gap: 2 },
    Shape { rows: 2, groups: 1, width: 2562, gap: 0 },
];

impl Shape {
    fn stride(self) -> usize {
        self.groups * self.width + self.gap
    }

    fn grid(self, kernel: &'static str) -> Grid {
        let blocks = [(self.rows * self.groups) as u32, 1, 1];
        Grid { image: "rmsnorm", kernel, blocks, threads: 256, shared_bytes: 2 * 8 * 4 }
    }

    /// Where each group of a row begins.
    fn groups(self) -> impl Iterator<Item = usize> {
        let groups = (0..self.rows).flat_map(move |row| (0..self.groups).map(move |g| (row, g)));
        groups.map(move |(row, group)| row * self.stride() + group * self.width)
    }
}

fn params(card: &mut Card, shape: Shape, center: f32, add: bool) -> Rmsnorm {
    let (len, stride) = (shape.rows * shape.stride(), shape.stride() as u64);
    Rmsnorm {
        x: card.upload(&bf16_bytes(&numbers(1, len))),
        weight: card.upload(&f32_bytes(&numbers(2, shape.width))),
        out: card.upload(&bf16_bytes(&numbers(3, len))),
        dy: card.upload(&bf16_bytes(&numbers(4, len))),
        x_stride: stride,
        out_stride: stride,
        dy_stride: stride,
        groups: shape.groups as u32,
        width: shape.width as u32,
        eps: EPS,
        center,
        add: u32::from(add),
    }
}

/// 1/√(mean(x²) + ε) and w + center.
fn factors(x: &[f32], center: f32) -> (f64, Vec<f64>) {
    let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64;
    let weight = numbers(2, x.len()).into_iter().map(|w| f64::from(w) + f64::from(center));
    (1.0 / (mean + f64::from(EPS)).sqrt(), weight.collect())
}

fn forward(x: &[f32], center: f32) -> Vec<f64> {
    let (r, weight) = factors(x, center);
    x.iter().zip(weight).map(|(x, w)| f64::from(*x) * r * w).collect()
}

fn backward(x: &[f32], dy: &[f32], center: f32) -> Vec<f64> {
    let (r, weight) = factors(x, center);
    let g: Vec<f64> = dy.iter().zip(weight).map(|(dy, w)| f64::from(*dy) * w).collect();
    let mean = g.iter().zip(x).map(|(g, x)| g * f64::from(*x) * r).sum::<f64>() / x.len() as f64;
    g.iter().zip(x).map(|(g, x)| r * (g - f64::from(*x) * r * mean)).collect()
}

for_each_kernel!(norms_and_their_gradients_are_those_of_f64:
    check_all(rmsnorm, rmsnorm_backward));

pub(super) fn check_all(kernel: &'static str) {
    for shape in SHAPES {
        for (center, add) in [(0.0, false), (1.0, true)] {
            for order in orders() {
                check(kernel, shape, (center, add), order);
            }
        }
    }
}

fn check(kernel: &'static str, shape: Shape, (center, add): (f32, bool), order: Order) {
    let mut card = Card::new();
    let params = params(&mut card, shape, center, add);
    card.run(&shape.grid(kernel), &params, order);
    let len = shape.rows * shape.stride();
    let [x, before, dy] = [1, 3, 4].map(|seed| numbers(seed, len));
    let found = card.bf16(params.out, len);
    for start in shape.groups() {
        let range = start..start + shape.width;
        let mut exact = match kernel {
            "rmsnorm" => forward(&x[range.clone()], center),
            _ => backward(&x[range.clone()], &dy[range.clone()], center),
        };
        if add {
            exact.iter_mut().zip(&before[range.clone()]).for_each(|(y, b)| *y += f64::from(*b));
        }
        let what = format!("{kernel}, {shape:?} in {order:?}, the group from {start} on");
        assert_near(&found[range], &exact, 1.01, shape.width, &what);
    }
    for row in 0..shape.rows {
        let gap = row * shape.stride() + shape.groups * shape.width..(row + 1) * shape.stride();
        let what = format!("{kernel}, {shape:?}: the gap behind row {row}");
        assert_same(&found[gap.clone()], &before[gap], shape.gap.max(1), &what);
    }
}

#[test]
fn a_gradient_may_take_the_place_of_the_one_that_came() {
    let shape = SHAPES[2];
    for order in orders() {
        let mut card = Card::new();
        let apart = params(&mut card, shape, 1.0, false);
        card.run(&shape.grid("rmsnorm_backward"), &apart, order);
        let in_place = Rmsnorm { out: apart.dy, ..apart };
        card.run(&shape.grid("rmsnorm_backward"), &in_place, order);
        for start in shape.groups() {
            let at = |address: u64| card.bf16(address + 2 * start as u64, shape.width);
            let what = format!("rmsnorm_backward in place in {order:?}");
            assert_same(&at(in_place.out), &at(apart.out), shape.width, &what);
        }
    }
}
