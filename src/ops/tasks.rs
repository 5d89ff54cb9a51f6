//! How elementwise operations are cut into tasks: by shape alone, so that bits never depend on the
//! number of threads, and never so finely that small models pay for it.

use std::ops::Range;

use crate::device::Cpu;

/// Numbers of one task: enough that starting it costs nothing beside them (about 10 µs of work).
pub const TASK: usize = 16 * 1024;

/// Runs `task(row, columns)` so that every number of a [rows, cols] matrix is in one call.
///
/// The columns of a call start at a multiple of [`TASK`] and are at most as many; several short rows
/// share a task.
pub fn for_each_piece(
    cpu: &Cpu,
    rows: usize,
    cols: usize,
    task: impl Fn(usize, Range<usize>) + Sync,
) {
    let pieces = cols.div_ceil(TASK);
    let rows_per_task = rows_of_task(cols);
    cpu.for_each(rows.div_ceil(rows_per_task) * pieces, |i| {
        let first = i / pieces * rows_per_task;
        let start = i % pieces * TASK;
        for row in first..rows.min(first + rows_per_task) {
            task(row, start..cols.min(start + TASK));
        }
    });
}

/// Runs `task(row)` for every row of a [rows, cols] matrix; several short rows share a task.
pub fn for_each_row(cpu: &Cpu, rows: usize, cols: usize, task: impl Fn(usize) + Sync) {
    let rows_per_task = rows_of_task(cols);
    cpu.for_each(rows.div_ceil(rows_per_task), |i| {
        let first = i * rows_per_task;
        (first..rows.min(first + rows_per_task)).for_each(&task);
    });
}

fn rows_of_task(cols: usize) -> usize {
    (TASK / cols.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

    use super::*;
    use crate::device::{Dtype, Ledger, Simd};

    #[test]
    fn both_ways_visit_every_number_once() {
        let cpu = Cpu::new(3, Simd::Portable, Dtype::F32, Ledger::new("cpu", 0));
        for (rows, cols) in
            [(0, 5), (5, 0), (1, 1), (1000, 17), (3, TASK / 2 + 1), (2, TASK), (2, 3 * TASK + 1)]
        {
            let visits: Vec<AtomicU8> = (0..rows * cols).map(|_| AtomicU8::new(0)).collect();
            for_each_piece(&cpu, rows, cols, |row, columns| {
                for col in columns {
                    visits[row * cols + col].fetch_add(1, Relaxed);
                }
            });
            for_each_row(&cpu, rows, cols, |row| {
                for visits in &visits[row * cols..(row + 1) * cols] {
                    visits.fetch_add(1, Relaxed);
                }
            });
            let wrong = visits.iter().position(|n| n.load(Relaxed) != 2);
            assert_eq!(wrong, None, "{rows} x {cols}");
        }
    }
}
