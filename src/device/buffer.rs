//! Device memory: typed buffers, activations, and matrix views of both.
//!
//! A [`Buf`] is a run of plain numbers of a type known to the compiler. An [`Act`] holds
//! activations, whose element ([`Dtype`]) is chosen once when the device is opened. Operations take
//! both through [`Mat`] and [`MatMut`]: address, element, rows, columns and the distance between
//! rows, with the borrow of the buffer attached.

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;

use super::conveyor::Slot;
use super::cuda::Region;
use super::memory::Booking;

/// The element of an activation or a dense weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Dtype {
    /// bfloat16: the element of training.
    Bf16 = 0,
    /// float32: the element of comparisons with a reference.
    F32 = 1,
    /// float64: the element of gradient checks; no weight is kept in it.
    F64 = 2,
}

impl Dtype {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

/// An address in the memory of a device; a plain pointer in the struct of a kernel.
///
/// It may cross threads: whoever dereferences it answers for who else does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Address(*mut u8);

// SAFETY: an address is a number until it is dereferenced, which is unsafe by itself.
unsafe impl Send for Address {}
// SAFETY: as above.
unsafe impl Sync for Address {}

impl Address {
    /// The address of nothing.
    pub const NULL: Self = Self(std::ptr::null_mut());

    /// Whether this is the address of nothing.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The address as a pointer to numbers of type `T`.
    pub fn cast<T>(self) -> *mut T {
        self.0.cast()
    }

    /// An address in the memory of a GPU.
    pub(super) fn of_device(number: u64) -> Self {
        Self(std::ptr::without_provenance_mut(number as usize))
    }

    /// The address as the structs of GPU kernels hold it.
    pub fn number(self) -> u64 {
        self.0.addr() as u64
    }

    /// The address `bytes` further on.
    pub fn offset(self, bytes: usize) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

/// Bytes that live somewhere else (a mapped file) and may be used in place by a device that shares
/// the host's memory.
pub type HostBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Where the bytes of a buffer are.
pub(super) enum Storage {
    /// Host memory of our own, aligned to a cache line.
    Host(Box<[Line]>),
    /// Somebody else's host memory, read only.
    Shared(HostBytes),
    /// Nowhere: a plan only counts.
    Planned,
    /// Memory of a GPU.
    Cuda(Region),
    /// Part of what passes by, which is there while its part is.
    Passing {
        /// Its place.
        slot: Arc<Slot>,
        /// Number of the part.
        part: usize,
        /// Where in the part.
        at: usize,
    },
}

/// Memory that several buffers take in turn.
pub(super) enum Memory {
    Host(Box<[UnsafeCell<Line>]>),
    Cuda(Region),
    Planned,
}

// SAFETY: only its address is given away, and whoever uses that answers for who else does.
unsafe impl Sync for Memory {}

impl Memory {
    pub(super) fn host(bytes: usize) -> Self {
        Self::Host((0..bytes.div_ceil(64)).map(|_| UnsafeCell::new(Line([0; 64]))).collect())
    }

    pub(super) fn address(&self) -> Address {
        match self {
            Self::Host(lines) => Address(lines.as_ptr().cast_mut().cast()),
            Self::Cuda(region) => region.address(),
            Self::Planned => Address::NULL,
        }
    }

    pub(super) fn is_planned(&self) -> bool {
        matches!(self, Self::Planned)
    }
}

const READ_ONLY: &str = "memory that is not the buffer's own is read only";

/// One cache line; the unit of host allocations.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line([u8; 64]);

impl Storage {
    pub(super) fn host(bytes: usize) -> Self {
        Self::Host(vec![Line([0; 64]); bytes.div_ceil(64)].into_boxed_slice())
    }

    fn address(&self) -> Address {
        match self {
            Self::Host(lines) => Address(lines.as_ptr().cast_mut().cast()),
            Self::Shared(bytes) => Address((**bytes).as_ref().as_ptr().cast_mut()),
            Self::Planned => Address::NULL,
            Self::Cuda(region) => region.address(),
            Self::Passing { slot, part, at } => slot.address(*part).offset(*at),
        }
    }

    pub(super) fn address_mut(&mut self) -> Address {
        match self {
            Self::Host(lines) => Address(lines.as_mut_ptr().cast()),
            Self::Shared(_) | Self::Passing { .. } => panic!("{READ_ONLY}"),
            Self::Planned => Address::NULL,
            Self::Cuda(region) => region.address(),
        }
    }
}

/// `len` numbers of type `T` in the memory of a device.
pub struct Buf<T> {
    storage: Storage,
    len: usize,
    _booking: Booking,
    element: PhantomData<T>,
}

impl<T: Pod> Buf<T> {
    pub(super) fn new(storage: Storage, len: usize, booking: Booking) -> Self {
        Self { storage, len, _booking: booking, element: PhantomData }
    }

    /// Count of numbers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no number at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of the first number, for reading; null on a plan.
    pub fn address(&self) -> Address {
        self.storage.address()
    }

    /// The address of the first number, for writing; null on a plan.
    pub fn address_mut(&mut self) -> Address {
        self.storage.address_mut()
    }

    /// The numbers, where the host can see them.
    pub(super) fn host(&self) -> Option<&[T]> {
        let bytes = match &self.storage {
            Storage::Planned | Storage::Cuda(_) => return None,
            Storage::Passing { .. } => panic!("what passes by is used where it lies"),
            Storage::Shared(bytes) => (**bytes).as_ref(),
            Storage::Host(lines) => {
                // SAFETY: a `Line` is 64 initialized bytes and the allocation holds `len` numbers.
                unsafe {
                    std::slice::from_raw_parts(lines.as_ptr().cast(), self.len * size_of::<T>())
                }
            }
        };
        Some(bytemuck::cast_slice(&bytes[..self.len * size_of::<T>()]))
    }

    /// The numbers for writing, where the host can see them.
    pub(super) fn host_mut(&mut self) -> Option<&mut [T]> {
        match &mut self.storage {
            Storage::Planned | Storage::Cuda(_) => None,
            Storage::Shared(_) | Storage::Passing { .. } => panic!("{READ_ONLY}"),
            Storage::Host(lines) => {
                let address = lines.as_mut_ptr().cast();
                // SAFETY: a `Line` is 64 initialized bytes, the allocation holds `len` numbers, and
                // any bit pattern is a `T`.
                Some(unsafe { std::slice::from_raw_parts_mut(address, self.len) })
            }
        }
    }
}

impl Buf<f32> {
    /// The range `range` as a row-major matrix of `cols` columns.
    pub fn matrix(&self, range: Range<usize>, cols: usize) -> Mat<'_> {
        assert!(range.end <= self.len, "range {range:?} of {} numbers", self.len);
        let address = self.address().offset(range.start * size_of::<f32>());
        Mat::new(address, Dtype::F32, range.len() / cols, cols)
    }

    /// The range `range` as a row-major matrix of `cols` columns, for writing.
    pub fn matrix_mut(&mut self, range: Range<usize>, cols: usize) -> MatMut<'_> {
        assert!(range.end <= self.len, "range {range:?} of {} numbers", self.len);
        let address = self.address_mut().offset(range.start * size_of::<f32>());
        MatMut::new(address, Dtype::F32, range.len() / cols, cols)
    }
}

/// Activations: room for a matrix of the device's element, used for as many rows as a batch has.
pub struct Act {
    bytes: Buf<u8>,
    dtype: Dtype,
}

impl Act {
    /// The bytes of elements of `dtype`.
    pub fn of(bytes: Buf<u8>, dtype: Dtype) -> Self {
        Self { bytes, dtype }
    }

    /// The element.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Count of elements there is room for.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// Whether there is room for no element at all.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The raw bytes of all elements.
    pub fn bytes(&self) -> &Buf<u8> {
        &self.bytes
    }

    /// The raw bytes of all elements, for writing.
    pub fn bytes_mut(&mut self) -> &mut Buf<u8> {
        &mut self.bytes
    }

    /// The first `rows` rows of `cols` elements.
    pub fn view(&self, rows: usize, cols: usize) -> Mat<'_> {
        assert!(rows * cols <= self.len(), "{rows} x {cols} of {} elements", self.len());
        Mat::new(self.bytes.address(), self.dtype, rows, cols)
    }

    /// The first `rows` rows of `cols` elements, for writing.
    pub fn view_mut(&mut self, rows: usize, cols: usize) -> MatMut<'_> {
        assert!(rows * cols <= self.len(), "{rows} x {cols} of {} elements", self.len());
        MatMut::new(self.bytes.address_mut(), self.dtype, rows, cols)
    }

    /// `rows` rows of `cols` elements from element `start` on.
    pub fn view_at(&self, start: usize, rows: usize, cols: usize) -> Mat<'_> {
        assert!(start + rows * cols <= self.len(), "{start}+{rows}x{cols} of {}", self.len());
        let address = self.bytes.address().offset(start * self.dtype.size());
        Mat::new(address, self.dtype, rows, cols)
    }
}

/// A matrix in device memory: row-major, rows `stride` elements apart.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    /// Address of the first element; null on a plan.
    pub address: Address,
    /// The element.
    pub dtype: Dtype,
    /// Count of rows.
    pub rows: usize,
    /// Count of columns.
    pub cols: usize,
    /// Elements from one row to the next.
    pub stride: usize,
    borrow: PhantomData<&'a u8>,
}

impl Mat<'_> {
    pub(super) fn new(address: Address, dtype: Dtype, rows: usize, cols: usize) -> Self {
        Self { address, dtype, rows, cols, stride: cols, borrow: PhantomData }
    }

    /// The columns `range` of every row.
    pub fn columns(self, range: Range<usize>) -> Self {
        assert!(range.end <= self.cols, "columns {range:?} of {}", self.cols);
        let address = self.address.offset(range.start * self.dtype.size());
        Self { address, cols: range.len(), ..self }
    }

    /// The rows `range`.
    pub fn rows(self, range: Range<usize>) -> Self {
        assert!(range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let address = self.address.offset(range.start * self.stride * self.dtype.size());
        Self { address, rows: range.len(), ..self }
    }
}

/// A matrix in device memory, for writing: row-major, rows `stride` elements apart.
pub struct MatMut<'a> {
    /// Address of the first element; null on a plan.
    pub address: Address,
    /// The element.
    pub dtype: Dtype,
    /// Count of rows.
    pub rows: usize,
    /// Count of columns.
    pub cols: usize,
    /// Elements from one row to the next.
    pub stride: usize,
    borrow: PhantomData<&'a mut u8>,
}

impl<'a> MatMut<'a> {
    pub(super) fn new(address: Address, dtype: Dtype, rows: usize, cols: usize) -> Self {
        Self { address, dtype, rows, cols, stride: cols, borrow: PhantomData }
    }

    /// The columns `range` of every row.
    pub fn columns(self, range: Range<usize>) -> MatMut<'a> {
        assert!(range.end <= self.cols, "columns {range:?} of {}", self.cols);
        let address = self.address.offset(range.start * self.dtype.size());
        MatMut { address, cols: range.len(), ..self }
    }

    /// The rows `range`.
    pub fn rows(self, range: Range<usize>) -> MatMut<'a> {
        assert!(range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let address = self.address.offset(range.start * self.stride * self.dtype.size());
        MatMut { address, rows: range.len(), ..self }
    }

    /// The columns before `at`, and those from `at` on.
    pub fn split_columns(self, at: usize) -> (MatMut<'a>, MatMut<'a>) {
        assert!(at <= self.cols, "split at column {at} of {}", self.cols);
        let address = self.address.offset(at * self.dtype.size());
        let right = MatMut { address, cols: self.cols - at, ..self };
        (MatMut { cols: at, ..self }, right)
    }

    /// The same matrix for writing, for a shorter time.
    pub fn reborrow(&mut self) -> MatMut<'_> {
        MatMut { ..*self }
    }

    /// The same matrix for reading.
    pub fn view(&self) -> Mat<'_> {
        Mat {
            address: self.address,
            dtype: self.dtype,
            rows: self.rows,
            cols: self.cols,
            stride: self.stride,
            borrow: PhantomData,
        }
    }
}
