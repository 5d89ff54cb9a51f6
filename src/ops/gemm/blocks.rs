//! How a product is cut: blocks of rows, strips of columns, pieces of K.
//!
//! For each block of rows the whole left operand is packed once, by all threads. Then each task
//! takes a strip of columns (and a part of the rows, where strips alone are too few): piece by piece
//! of K it packs the strip of the right operand, which stays in the cache of the core while the left
//! panels pass by, and adds tile by tile to its sums; with the last piece the sums of a panel become
//! rows of the result while they are in the L1 cache. A long K (the vocabulary, in the gradient of
//! the head) is cut into spans that are packed and multiplied one after the other; the sums of the
//! block wait in between.
//!
//! The steps of both products stand one behind the other, so that the few columns of LoRA are the
//! end of a piece and not one of their own. The cuts in K depend on the instruction set and on K
//! alone, so an element has the same bits however rows and columns are cut.

use std::marker::PhantomData;
use std::ops::Range;

use super::finish::{Part, finish, finish_turned};
use super::pack::{BUFFER, BUFFERS, Buffers, Direction, Packing, Source};
use super::panel::Panels;
use super::sides::Sides;
use super::tile::{Lanes, Tile, VECTORS};
use super::{Params, Product};
use crate::device::{Address, Cpu, Dtype, Scratch, ScratchMemory};
use crate::ops::Write;
use crate::ops::element::Element;
use crate::quant::BLOCK;

/// Most steps of K in a piece: the panels of a strip then take little more than a quarter of a MiB,
/// which stays in the L2 cache of a core. 1024 pairs and those of LoRA are two pieces.
const STEPS: usize = 576;

/// Pieces begin with a block of four-bit codes where rows do.
const STEPS_STEP: usize = BLOCK;

/// Most columns of a strip. Measured on Zen 4 at K = 4864, where the left panels come from L3:
/// 0.81 of the bf16 peak, 0.79 with 64 columns, 0.80 with half the steps.
const STRIP: usize = 128;

/// Most rows of a block: what the decoding of the right operand is spread over.
const ROWS: usize = 768;

/// A multiple of the rows of all tiles, and twice that for sums of bf16 products in f32 panels.
const ROWS_STEP: usize = 24;

/// Most numbers of K whose left panels are packed at once: those of 512 rows take 16 MiB in bf16.
/// A longer K is cut into spans.
const SPAN: usize = 16 * 1024;

/// Left panels that are packed as one task.
const LEFT_PANELS: usize = 8;

/// Rows that could be multiplied in the time in which a strip is packed; estimated from the speed of
/// decoding.
const ROWS_PER_STRIP: usize = 20;

/// Columns that could be multiplied in the time in which the left panels pass by; from the gain of
/// strips of 128 columns over 64.
const COLUMNS_PER_PASS: usize = 8;

/// Shared: the left panels of a block of rows, and its sums if there are several spans. Per thread:
/// sums, panels of a strip, row buffers.
///
/// It does not depend on the instruction set, which a plan does not know: where bf16 numbers are
/// widened into f32 panels, a block has half the rows instead.
pub(super) fn scratch(p: &Params) -> Scratch {
    let depth = |depth: u64| (depth as usize).next_multiple_of(2);
    let depth: usize = p.products.iter().map(|product| depth(product.depth)).sum();
    let waiting = if depth > SPAN { waiting_bytes(p) } else { 0 };
    Scratch {
        shared: most_rows(p) * (depth.min(SPAN) * p.compute.size() + waiting),
        per_thread: sums_bytes(p) + panel_bytes(p) + BUFFERS * buffer_bytes(p),
    }
}

/// Of the sums of a row that wait for the next span; strips are cut from more columns than there are.
fn waiting_bytes(p: &Params) -> usize {
    (Sides::of(p).cols() + STRIP) * unit(p)
}

fn most_rows(p: &Params) -> usize {
    Sides::of(p).rows().min(ROWS).next_multiple_of(ROWS_STEP)
}

/// Bytes of a sum, and of a lane of a step.
fn unit(p: &Params) -> usize {
    p.compute.size().max(size_of::<f32>())
}

fn sums_bytes(p: &Params) -> usize {
    most_rows(p) * STRIP * unit(p)
}

fn panel_bytes(p: &Params) -> usize {
    STEPS * STRIP * unit(p)
}

fn buffer_bytes(p: &Params) -> usize {
    BUFFER * unit(p)
}

/// A launch on the lanes `L`.
pub(super) struct Blocks<'a, L> {
    p: &'a Params,
    sides: Sides<'a>,
    cpu: &'a Cpu,
    scratch: ScratchMemory,
    /// Of both products.
    steps: usize,
    /// Steps of a piece; the last one may have fewer.
    piece: usize,
    /// Steps whose left panels are packed at once: whole pieces.
    span: usize,
    lanes: PhantomData<L>,
}

/// The part of a piece that belongs to one product.
struct Segment {
    product: usize,
    depth: Range<usize>,
    /// Steps of the piece before it.
    first_step: usize,
}

/// Columns of a strip, and left panels of a part of a block.
struct Cut {
    columns: usize,
    panels: usize,
}

/// What one task computes.
struct Rectangle<R> {
    /// Left panels of the block.
    panels: Range<usize>,
    columns: Range<usize>,
    /// Sums from one row to the next.
    stride: usize,
    /// Room for the sums of a panel if one piece is all, of all panels else.
    sums: *mut R,
}

impl<'a, L: Lanes> Blocks<'a, L> {
    /// Computes the whole product.
    ///
    /// # Safety
    /// As for [`Kernel::run_on_cpu`](crate::device::Kernel::run_on_cpu); the machine has the
    /// instruction set of `L`.
    pub(super) unsafe fn run(p: &'a Params, cpu: &'a Cpu, scratch: ScratchMemory) {
        if p.rows == 0 || p.cols == 0 {
            return;
        }
        let steps = p.products.iter().map(steps_of::<L>).sum::<usize>();
        let piece = steps.div_ceil(steps.div_ceil(STEPS).max(1)).max(1);
        let piece = piece.next_multiple_of(STEPS_STEP);
        let span = match steps * L::GROUP > SPAN {
            true => SPAN / L::GROUP / piece * piece,
            false => steps,
        };
        let sides = Sides::of(p);
        let blocks = Self { p, sides, cpu, scratch, steps, piece, span, lanes: PhantomData };
        let rows = sides.rows();
        let block = blocks.rows_of_block();
        for first in (0..rows).step_by(block) {
            let rows = first..rows.min(first + block);
            for span in parts(0..steps, span) {
                // SAFETY: passed on from the caller.
                unsafe {
                    blocks.pack_left(&rows, &span);
                    blocks.multiply(&rows, &span);
                }
            }
        }
    }

    /// Rows whose left panels (and sums that wait) fit in the scratch, in blocks of equal size.
    fn rows_of_block(&self) -> usize {
        let waiting = if self.is_one_span() { 0 } else { waiting_bytes(self.p) };
        let row = self.span * L::GROUP * size_of::<L::Number>() + waiting;
        let fit = scratch(self.p).shared.checked_div(row).unwrap_or(ROWS);
        let most = (fit / L::ROWS * L::ROWS).min(most_rows(self.p));
        let rows = self.sides.rows();
        rows.div_ceil(rows.div_ceil(most)).next_multiple_of(L::ROWS)
    }

    fn is_one_span(&self) -> bool {
        self.span >= self.steps
    }

    /// Numbers from one left panel to the next.
    fn left_pitch(&self) -> usize {
        self.span * L::ROWS * L::GROUP
    }

    /// Step `step` of its span in left panel `panel`.
    fn left(&self, panel: usize, step: usize) -> *mut L::Number {
        let start = self.scratch.shared().cast::<L::Number>();
        start.wrapping_add(panel * self.left_pitch() + step * L::ROWS * L::GROUP)
    }

    /// The parts of the piece `steps`.
    fn segments(&self, steps: Range<usize>) -> impl Iterator<Item = Segment> {
        let mut before = 0;
        self.p.products.iter().enumerate().filter_map(move |(product, params)| {
            let own = before..before + steps_of::<L>(params);
            before = own.end;
            let (first, end) = (steps.start.max(own.start), steps.end.min(own.end));
            let number = |step: usize| (step - own.start) * L::GROUP;
            (first < end).then(|| Segment {
                product,
                depth: number(first)..number(end).min(params.depth as usize),
                first_step: first - steps.start,
            })
        })
    }

    unsafe fn pack_left(&self, rows: &Range<usize>, span: &Range<usize>) {
        let lanes_of_task = LEFT_PANELS * L::ROWS;
        let pieces = span.len().div_ceil(self.piece);
        let tasks = rows.len().div_ceil(lanes_of_task) * pieces;
        self.cpu.for_each(tasks, |task| {
            let (group, piece) = (task / pieces, span.start + task % pieces * self.piece);
            let first = rows.start + group * lanes_of_task;
            let lanes = first..rows.end.min(first + lanes_of_task);
            for segment in self.segments(piece..span.end.min(piece + self.piece)) {
                let step = piece - span.start + segment.first_step;
                let panels = Panels {
                    start: self.left(group * LEFT_PANELS, step),
                    width: L::ROWS,
                    pitch: self.left_pitch(),
                };
                let packing = self.packing(self.sides.left(segment.product));
                let (lanes, buffers) = (lanes.clone(), self.buffers());
                // SAFETY: the rows are of the left operand; the task owns its panels, and its
                // thread the buffers.
                unsafe { packing.pack::<L>(lanes, segment.depth, &panels, buffers) }
            }
        });
    }

    unsafe fn multiply(&self, rows: &Range<usize>, span: &Range<usize>) {
        let panels = rows.len().div_ceil(L::ROWS);
        let cut = self.cut(panels);
        let strips = self.sides.cols().div_ceil(cut.columns);
        let tasks = strips * panels.div_ceil(cut.panels);
        self.cpu.for_each(tasks, |task| {
            let (part, strip) = (task / strips, task % strips);
            let (panel, column) = (part * cut.panels, strip * cut.columns);
            let rectangle = Rectangle {
                panels: panel..panels.min(panel + cut.panels),
                columns: column..self.sides.cols().min(column + cut.columns),
                stride: cut.columns,
                sums: match self.is_one_span() {
                    true => self.thread(0).cast(),
                    false => self.waiting(panels, (strip * panels + panel) * cut.columns),
                },
            };
            // SAFETY: the left panels are packed, and the task owns its rectangle.
            unsafe { self.rectangle(rows, span, &rectangle) }
        });
    }

    /// The sums that wait for the next span behind `panels` left panels, from sum `first · ROWS` on.
    fn waiting(&self, panels: usize, first: usize) -> *mut <L::Number as Element>::Real {
        self.left(panels, 0).cast::<<L::Number as Element>::Real>().wrapping_add(first * L::ROWS)
    }

    /// The cut of `panels` left panels and all columns that is done first if all threads are equally
    /// fast: wide strips and many rows pay best, but no thread should be without work at the end.
    fn cut(&self, panels: usize) -> Cut {
        let threads = self.cpu.threads();
        let widths = (1..=STRIP / (VECTORS * L::WIDTH)).map(|tiles| tiles * VECTORS * L::WIDTH);
        let cuts = widths.flat_map(|columns| {
            (1..=threads.min(panels))
                .map(move |parts| Cut { columns, panels: panels.div_ceil(parts) })
        });
        let time = |cut: &Cut| {
            let strips = self.sides.cols().div_ceil(cut.columns);
            let rounds = (strips * panels.div_ceil(cut.panels)).div_ceil(threads);
            rounds * (cut.columns + COLUMNS_PER_PASS) * (cut.panels * L::ROWS + ROWS_PER_STRIP)
        };
        cuts.min_by_key(time).expect("one width and one part")
    }

    /// Adds the products over a span of K to the sums of a rectangle of the block `rows`.
    unsafe fn rectangle(
        &self,
        rows: &Range<usize>,
        span: &Range<usize>,
        rectangle: &Rectangle<<L::Number as Element>::Real>,
    ) {
        let panels = rectangle.panels.clone();
        let whole = self.steps <= self.piece;
        for piece in parts(span.clone(), self.piece) {
            // SAFETY: the caller vouches for the operand.
            let right = unsafe { self.pack_right(&piece, rectangle.columns.clone()) };
            for panel in panels.clone() {
                let first = rows.start + panel * L::ROWS;
                let part = Part {
                    rows: first..rows.end.min(first + L::ROWS),
                    columns: rectangle.columns.clone(),
                    stride: rectangle.stride,
                };
                // Sums of a panel are not needed again where one piece is all.
                let place = if whole { 0 } else { panel - panels.start };
                let len = L::ROWS * rectangle.stride;
                // SAFETY: there is room for the sums of the rectangle, which the task owns.
                let sums =
                    unsafe { std::slice::from_raw_parts_mut(rectangle.sums.add(place * len), len) };
                let left = self.left(panel, piece.start - span.start);
                // SAFETY: left and right panels are packed over all steps.
                unsafe { self.add_piece(&piece, left, &right, &part, sums) };
            }
        }
    }

    /// Adds the product over one piece of K to the sums of a left panel, and finishes them with the
    /// last piece.
    unsafe fn add_piece(
        &self,
        piece: &Range<usize>,
        left: *const L::Number,
        right: &Panels<L::Number>,
        part: &Part,
        sums: &mut [<L::Number as Element>::Real],
    ) {
        let (last, turned) = (piece.end == self.steps, self.sides.turned);
        if last && !turned {
            part.prefetch(self.p);
        }
        for (j, column) in (0..part.columns.len()).step_by(right.width).enumerate() {
            let tile = Tile {
                steps: piece.len(),
                left,
                right: right.start.wrapping_add(j * right.pitch),
                sums: sums[column..].as_mut_ptr(),
                stride: part.stride,
                write: if piece.start == 0 { Write::Set } else { Write::Add },
            };
            // SAFETY: the caller vouches for the panels, and a strip has room for whole tiles.
            unsafe { L::tile(part.rows.len(), right.width / L::WIDTH, tile) };
        }
        match (last, turned) {
            (false, _) => (),
            (true, false) => finish(self.cpu.simd(), self.p, part, sums),
            (true, true) => finish_turned(self.cpu.simd(), self.p, part, sums),
        }
    }

    /// Packs the strip `columns` of a piece.
    unsafe fn pack_right(&self, piece: &Range<usize>, columns: Range<usize>) -> Panels<L::Number> {
        let width = columns.len().div_ceil(L::WIDTH).min(VECTORS) * L::WIDTH;
        let strip = Panels {
            start: self.thread(sums_bytes(self.p)).cast::<L::Number>(),
            width,
            pitch: piece.len() * width * L::GROUP,
        };
        for segment in self.segments(piece.clone()) {
            let packing = self.packing(self.sides.right(segment.product));
            let start = strip.start.wrapping_add(segment.first_step * width * L::GROUP);
            let to = Panels { start, ..strip };
            // SAFETY: passed on from the caller; scratch has room for a strip.
            unsafe { packing.pack::<L>(columns.clone(), segment.depth, &to, self.buffers()) }
        }
        strip
    }

    fn packing(&self, (source, direction): (Source<'a>, Direction)) -> Packing<'a> {
        let (rounding, simd) = (rounding(self.p.compute), self.cpu.simd());
        Packing { source, direction, rounding, simd }
    }

    /// Scratch of this thread, `bytes` from its start.
    fn thread(&self, bytes: usize) -> Address {
        self.scratch.of_thread(self.cpu.thread()).offset(bytes)
    }

    fn buffers(&self) -> Buffers {
        Buffers {
            start: self.thread(sums_bytes(self.p) + panel_bytes(self.p)),
            pitch: buffer_bytes(self.p),
        }
    }
}

/// Parts of `steps` with `most` steps each but the last; one part without steps where there are none.
fn parts(steps: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let (start, end) = (steps.start, steps.end);
    (start..end.max(start + 1)).step_by(most.max(1)).map(move |first| first..end.min(first + most))
}

/// The type that a four-bit weight is rounded to: never f64, so that gradient checks see the weight
/// that is trained with.
fn rounding(compute: Dtype) -> Dtype {
    match compute {
        Dtype::Bf16 => Dtype::Bf16,
        Dtype::F32 | Dtype::F64 => Dtype::F32,
    }
}

/// Steps of K of a product.
fn steps_of<L: Lanes>(product: &Product) -> usize {
    (product.depth as usize).div_ceil(L::GROUP)
}
