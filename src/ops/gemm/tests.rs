//! Every form, operand, epilogue and instruction set against sums in f64 over the same numbers.

mod case;

use super::*;
use crate::device::{Hardware, Report, Simd};
use case::{Call, Case, Factors, Matrix, PLAIN, Right};

/// Devices of two threads for every instruction set of this machine.
fn devices() -> Vec<(Simd, Device)> {
    let device = |simd| Device::cpu_with(2, simd, Dtype::Bf16, u64::MAX);
    Simd::available().map(|simd| (simd, device(simd))).collect()
}

const FORMS: [Form; 3] = [Form::Nt, Form::Nn, Form::Tn];

/// M, N, K on both sides of the edges of tiles, strips, pieces and blocks.
const SHAPES: [(usize, usize, usize); 20] = [
    (1, 1, 1),
    (1, 130, 172),
    (2, 16, 64),
    (3, 17, 2),
    (4, 4, 65),
    (5, 5, 3),
    (6, 8, 63),
    (7, 9, 130),
    (11, 31, 172),
    (12, 32, 128),
    (13, 33, 127),
    (23, 63, 16),
    (24, 64, 511),
    (25, 65, 512),
    (97, 15, 513),
    (12, 128, 1023),
    (13, 129, 1024),
    (2, 3, 1025),
    (767, 7, 5),
    (800, 3, 9),
];

#[test]
fn every_form_operand_and_shape_on_every_instruction_set() {
    use Dtype::{Bf16, F32, F64};
    let operands = [
        (Bf16, Right::Dense(Bf16), Bf16),
        (Bf16, Right::Dense(Bf16), F32),
        (F32, Right::Dense(F32), F32),
        (F32, Right::Dense(Bf16), Bf16),
        (F64, Right::Dense(F64), F64),
        (Bf16, Right::Nf4, Bf16),
        (Bf16, Right::NestedFp4, F32),
        (F32, Right::NestedFp4, F32),
        (F64, Right::Nf4, F64),
    ];
    let devices = devices();
    for (left, right, out) in operands {
        for (m, n, k) in SHAPES {
            for form in FORMS {
                let case = Case { form, m, n, k, left, right, out, ..PLAIN };
                case.check(&devices);
            }
        }
    }
}

#[test]
fn second_term_bias_residual_alpha_and_add() {
    let depths =
        [(172, 16, Write::Set), (65, 3, Write::Add), (0, 8, Write::Set), (0, 0, Write::Add)];
    let devices = devices();
    for dtype in [Dtype::Bf16, Dtype::F32, Dtype::F64] {
        for right in [Right::Dense(dtype), Right::NestedFp4] {
            for form in FORMS {
                for (k, k2, write) in depths {
                    let (m, n, epilogue) = (29, 70, true);
                    let case = Case { form, m, n, k, k2, epilogue, write, ..PLAIN };
                    Case { left: dtype, right, out: dtype, ..case }.check(&devices);
                }
            }
        }
    }
}

#[test]
fn a_long_k_is_cut_into_spans() {
    let devices = devices();
    for form in FORMS {
        for (dtype, k, k2, write) in [
            (Dtype::Bf16, 16_384, 16, Write::Set),
            (Dtype::Bf16, 33_001, 0, Write::Add),
            (Dtype::F32, 17_000, 3, Write::Set),
            (Dtype::F64, 16_390, 40_000, Write::Set),
        ] {
            let right = Right::Dense(dtype);
            let case = Case { form, m: 15, n: 150, k, k2, left: dtype, right, out: dtype, ..PLAIN };
            Case { epilogue: true, write, ..case }.check(&devices);
        }
    }
}

#[test]
fn no_rows_and_no_columns_are_nothing_to_do() {
    for (_, device) in devices() {
        assert_eq!(Case { m: 0, n: 5, k: 7, ..PLAIN }.run(&device), Vec::<f64>::new());
        assert_eq!(Case { m: 5, n: 0, k: 7, ..PLAIN }.run(&device), Vec::<f64>::new());
    }
}

#[test]
fn the_count_of_threads_changes_no_bit() {
    for simd in Simd::available() {
        for form in FORMS {
            for (right, m, k) in [
                (Right::Dense(Dtype::F32), 300, 600),
                (Right::Nf4, 300, 600),
                (Right::Dense(Dtype::Bf16), 50, 17_000),
            ] {
                let case = Case { form, m, n: 70, k, right, ..PLAIN };
                let results = [1, 2, 3, 8].map(|threads| {
                    let device = Device::cpu_with(threads, simd, Dtype::Bf16, u64::MAX);
                    Case { out: Dtype::F32, ..case }.run(&device)
                });
                for other in &results[1..] {
                    assert!(*other == results[0], "{case:?} on {simd:?}");
                }
            }
        }
    }
}

#[test]
fn the_other_rows_of_a_batch_change_no_bit() {
    for (simd, device) in devices() {
        for dtype in [Dtype::Bf16, Dtype::F32] {
            let case = Case { form: Form::Nn, m: 801, n: 33, k: 1100, ..PLAIN };
            let case = Case { left: dtype, right: Right::Nf4, ..case };
            let factors = Factors::new(&device, &case, case.k, 1);
            let rows = |range: std::ops::Range<usize>| {
                let mut out = Matrix::new(&device, Dtype::F32, range.len(), case.n, 2);
                let left = factors.left.view().rows(range);
                let terms = [Term { left, ..factors.term() }];
                let epilogue = Epilogue::default();
                matmul(&device, case.form, &terms, epilogue, out.view_mut(), Write::Set);
                out.read(&device)
            };
            let all = rows(0..case.m);
            for part in [0..1, 5..17, 40..141, 790..801, 100..801] {
                let expected = &all[part.start * case.n..part.end * case.n];
                assert!(rows(part.clone()) == expected, "{dtype:?} rows {part:?} on {simd:?}");
            }
        }
    }
}

#[test]
fn a_plan_books_the_scratch_that_a_run_takes() {
    for (m, k) in [(700, 600), (100, 20_000)] {
        let run = |device: &Device| -> Report {
            Call::new(device, Case { m, n: 70, k, k2: 5, ..PLAIN }).run(device);
            device.report()
        };
        let planned = run(&Device::plan(Hardware::Cpu { threads: 3 }, Dtype::Bf16, u64::MAX));
        for simd in Simd::available() {
            let taken = run(&Device::cpu_with(3, simd, Dtype::Bf16, u64::MAX));
            assert_eq!(taken, planned, "{simd:?}");
        }
    }
}

#[test]
#[should_panic(expected = "operands of a 2 x 3 Nt")]
fn shapes_that_do_not_agree_are_refused() {
    let device = Device::cpu(1, Dtype::F32, u64::MAX);
    let [left, right] = [(2, 5), (3, 4)].map(|(m, n)| Matrix::new(&device, Dtype::F32, m, n, 1));
    let mut out = Matrix::new(&device, Dtype::F32, 2, 3, 1);
    let terms = [Term { left: left.view(), right: right.view().into() }];
    matmul(&device, Form::Nt, &terms, Epilogue::default(), out.view_mut(), Write::Set);
}
