//! Made by bindgen from `ffi/`; see `tests/bindings.rs`.
#![allow(missing_docs, reason = "the headers have them")]

#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq)]
pub struct Adamw {
    /// `[len]` f32
    pub values: ::core::ffi::c_ulonglong,
    /// `[len]` f32
    pub grads: ::core::ffi::c_ulonglong,
    /// First moments `[len]` f32.
    pub m: ::core::ffi::c_ulonglong,
    /// Second moments `[len]` f32.
    pub v: ::core::ffi::c_ulonglong,
    pub len: ::core::ffi::c_ulonglong,
    pub beta1: f64,
    pub beta2: f64,
    /// Factor of every gradient.
    pub clip: f64,
    /// 1 - rate * decay
    pub keep: f64,
    /// rate / (1 - beta1^t)
    pub size: f64,
    /// sqrt(1 - beta2^t)
    pub root: f64,
    pub epsilon: f64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of Adamw"][::core::mem::size_of::<Adamw>() - 96usize];
    ["Alignment of Adamw"][::core::mem::align_of::<Adamw>() - 8usize];
    ["Offset of field: Adamw::values"][::core::mem::offset_of!(Adamw, values) - 0usize];
    ["Offset of field: Adamw::grads"][::core::mem::offset_of!(Adamw, grads) - 8usize];
    ["Offset of field: Adamw::m"][::core::mem::offset_of!(Adamw, m) - 16usize];
    ["Offset of field: Adamw::v"][::core::mem::offset_of!(Adamw, v) - 24usize];
    ["Offset of field: Adamw::len"][::core::mem::offset_of!(Adamw, len) - 32usize];
    ["Offset of field: Adamw::beta1"][::core::mem::offset_of!(Adamw, beta1) - 40usize];
    ["Offset of field: Adamw::beta2"][::core::mem::offset_of!(Adamw, beta2) - 48usize];
    ["Offset of field: Adamw::clip"][::core::mem::offset_of!(Adamw, clip) - 56usize];
    ["Offset of field: Adamw::keep"][::core::mem::offset_of!(Adamw, keep) - 64usize];
    ["Offset of field: Adamw::size"][::core::mem::offset_of!(Adamw, size) - 72usize];
    ["Offset of field: Adamw::root"][::core::mem::offset_of!(Adamw, root) - 80usize];
    [
        "Offset of field: Adamw::epsilon",
    ][::core::mem::offset_of!(Adamw, epsilon) - 88usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq)]
pub struct Adamw8bit {
    /// `[len]` f32
    pub values: ::core::ffi::c_ulonglong,
    /// `[len]` f32
    pub grads: ::core::ffi::c_ulonglong,
    /// Codes of first moments `[len]`.
    pub m: ::core::ffi::c_ulonglong,
    /// Codes of second moments `[len]`.
    pub v: ::core::ffi::c_ulonglong,
    /// `[len / 256]` f32, rounded up
    pub m_absmax: ::core::ffi::c_ulonglong,
    /// `[len / 256]` f32, rounded up
    pub v_absmax: ::core::ffi::c_ulonglong,
    /// `[256]` f32, ascending: what the codes of m stand for.
    pub signed_map: ::core::ffi::c_ulonglong,
    /// `[256]` f32, ascending: what the codes of v stand for.
    pub unsigned_map: ::core::ffi::c_ulonglong,
    pub len: ::core::ffi::c_ulonglong,
    pub beta1: f64,
    pub beta2: f64,
    /// Factor of every gradient.
    pub clip: f64,
    /// 1 - rate * decay
    pub keep: f64,
    /// rate / (1 - beta1^t)
    pub size: f64,
    /// sqrt(1 - beta2^t)
    pub root: f64,
    pub epsilon: f64,
    /// Smallest number that a moment is divided by.
    pub smallest: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of Adamw8bit"][::core::mem::size_of::<Adamw8bit>() - 136usize];
    ["Alignment of Adamw8bit"][::core::mem::align_of::<Adamw8bit>() - 8usize];
    [
        "Offset of field: Adamw8bit::values",
    ][::core::mem::offset_of!(Adamw8bit, values) - 0usize];
    [
        "Offset of field: Adamw8bit::grads",
    ][::core::mem::offset_of!(Adamw8bit, grads) - 8usize];
    ["Offset of field: Adamw8bit::m"][::core::mem::offset_of!(Adamw8bit, m) - 16usize];
    ["Offset of field: Adamw8bit::v"][::core::mem::offset_of!(Adamw8bit, v) - 24usize];
    [
        "Offset of field: Adamw8bit::m_absmax",
    ][::core::mem::offset_of!(Adamw8bit, m_absmax) - 32usize];
    [
        "Offset of field: Adamw8bit::v_absmax",
    ][::core::mem::offset_of!(Adamw8bit, v_absmax) - 40usize];
    [
        "Offset of field: Adamw8bit::signed_map",
    ][::core::mem::offset_of!(Adamw8bit, signed_map) - 48usize];
    [
        "Offset of field: Adamw8bit::unsigned_map",
    ][::core::mem::offset_of!(Adamw8bit, unsigned_map) - 56usize];
    [
        "Offset of field: Adamw8bit::len",
    ][::core::mem::offset_of!(Adamw8bit, len) - 64usize];
    [
        "Offset of field: Adamw8bit::beta1",
    ][::core::mem::offset_of!(Adamw8bit, beta1) - 72usize];
    [
        "Offset of field: Adamw8bit::beta2",
    ][::core::mem::offset_of!(Adamw8bit, beta2) - 80usize];
    [
        "Offset of field: Adamw8bit::clip",
    ][::core::mem::offset_of!(Adamw8bit, clip) - 88usize];
    [
        "Offset of field: Adamw8bit::keep",
    ][::core::mem::offset_of!(Adamw8bit, keep) - 96usize];
    [
        "Offset of field: Adamw8bit::size",
    ][::core::mem::offset_of!(Adamw8bit, size) - 104usize];
    [
        "Offset of field: Adamw8bit::root",
    ][::core::mem::offset_of!(Adamw8bit, root) - 112usize];
    [
        "Offset of field: Adamw8bit::epsilon",
    ][::core::mem::offset_of!(Adamw8bit, epsilon) - 120usize];
    [
        "Offset of field: Adamw8bit::smallest",
    ][::core::mem::offset_of!(Adamw8bit, smallest) - 128usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq)]
pub struct Attention {
    /// `[queries, heads * head_dim]` bf16; rows of all four at multiples of 16 bytes
    pub q: ::core::ffi::c_ulonglong,
    /// `[keys, kv_heads * head_dim]` bf16
    pub k: ::core::ffi::c_ulonglong,
    /// `[keys, kv_heads * head_dim]` bf16
    pub v: ::core::ffi::c_ulonglong,
    /// `[queries, heads * head_dim]` bf16
    pub o: ::core::ffi::c_ulonglong,
    /// `[queries, heads]` f32
    pub lse: ::core::ffi::c_ulonglong,
    /// Four u32 for each: first query, queries, first key, keys.
    pub segments: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub q_stride: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub k_stride: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub v_stride: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub o_stride: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub lse_stride: ::core::ffi::c_ulonglong,
    pub heads: ::core::ffi::c_uint,
    pub kv_heads: ::core::ffi::c_uint,
    /// A multiple of 8, at most 256.
    pub head_dim: ::core::ffi::c_uint,
    /// 0xffffffff for none.
    pub window: ::core::ffi::c_uint,
    pub scale: f32,
    /// 0 for none.
    pub soft_cap: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of Attention"][::core::mem::size_of::<Attention>() - 112usize];
    ["Alignment of Attention"][::core::mem::align_of::<Attention>() - 8usize];
    ["Offset of field: Attention::q"][::core::mem::offset_of!(Attention, q) - 0usize];
    ["Offset of field: Attention::k"][::core::mem::offset_of!(Attention, k) - 8usize];
    ["Offset of field: Attention::v"][::core::mem::offset_of!(Attention, v) - 16usize];
    ["Offset of field: Attention::o"][::core::mem::offset_of!(Attention, o) - 24usize];
    [
        "Offset of field: Attention::lse",
    ][::core::mem::offset_of!(Attention, lse) - 32usize];
    [
        "Offset of field: Attention::segments",
    ][::core::mem::offset_of!(Attention, segments) - 40usize];
    [
        "Offset of field: Attention::q_stride",
    ][::core::mem::offset_of!(Attention, q_stride) - 48usize];
    [
        "Offset of field: Attention::k_stride",
    ][::core::mem::offset_of!(Attention, k_stride) - 56usize];
    [
        "Offset of field: Attention::v_stride",
    ][::core::mem::offset_of!(Attention, v_stride) - 64usize];
    [
        "Offset of field: Attention::o_stride",
    ][::core::mem::offset_of!(Attention, o_stride) - 72usize];
    [
        "Offset of field: Attention::lse_stride",
    ][::core::mem::offset_of!(Attention, lse_stride) - 80usize];
    [
        "Offset of field: Attention::heads",
    ][::core::mem::offset_of!(Attention, heads) - 88usize];
    [
        "Offset of field: Attention::kv_heads",
    ][::core::mem::offset_of!(Attention, kv_heads) - 92usize];
    [
        "Offset of field: Attention::head_dim",
    ][::core::mem::offset_of!(Attention, head_dim) - 96usize];
    [
        "Offset of field: Attention::window",
    ][::core::mem::offset_of!(Attention, window) - 100usize];
    [
        "Offset of field: Attention::scale",
    ][::core::mem::offset_of!(Attention, scale) - 104usize];
    [
        "Offset of field: Attention::soft_cap",
    ][::core::mem::offset_of!(Attention, soft_cap) - 108usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq)]
pub struct AttentionBackward {
    /// `[queries, heads * head_dim]` bf16; rows of q, k, v and d_o at multiples of 16 bytes
    pub q: ::core::ffi::c_ulonglong,
    /// `[keys, kv_heads * head_dim]` bf16
    pub k: ::core::ffi::c_ulonglong,
    /// `[keys, kv_heads * head_dim]` bf16
    pub v: ::core::ffi::c_ulonglong,
    /// `[queries, heads * head_dim]` bf16
    pub o: ::core::ffi::c_ulonglong,
    /// `[queries, heads * head_dim]` bf16
    pub d_o: ::core::ffi::c_ulonglong,
    /// `[queries, heads]` f32
    pub lse: ::core::ffi::c_ulonglong,
    /// `[queries, heads]` f32, dense
    pub delta: ::core::ffi::c_ulonglong,
    /// Four u32 for each: first query, queries, first key, keys.
    pub segments: ::core::ffi::c_ulonglong,
    /// `[queries, heads * head_dim]` bf16
    pub dq: ::core::ffi::c_ulonglong,
    /// `[keys, kv_heads * head_dim]` bf16
    pub dk: ::core::ffi::c_ulonglong,
    /// `[keys, kv_heads * head_dim]` bf16
    pub dv: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub q_stride: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub k_stride: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub v_stride: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub o_stride: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub d_o_stride: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub lse_stride: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub dq_stride: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub dk_stride: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub dv_stride: ::core::ffi::c_ulonglong,
    pub heads: ::core::ffi::c_uint,
    pub kv_heads: ::core::ffi::c_uint,
    /// A multiple of 8, at most 256.
    pub head_dim: ::core::ffi::c_uint,
    /// 0xffffffff for none.
    pub window: ::core::ffi::c_uint,
    pub scale: f32,
    /// 0 for none.
    pub soft_cap: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of AttentionBackward",
    ][::core::mem::size_of::<AttentionBackward>() - 184usize];
    [
        "Alignment of AttentionBackward",
    ][::core::mem::align_of::<AttentionBackward>() - 8usize];
    [
        "Offset of field: AttentionBackward::q",
    ][::core::mem::offset_of!(AttentionBackward, q) - 0usize];
    [
        "Offset of field: AttentionBackward::k",
    ][::core::mem::offset_of!(AttentionBackward, k) - 8usize];
    [
        "Offset of field: AttentionBackward::v",
    ][::core::mem::offset_of!(AttentionBackward, v) - 16usize];
    [
        "Offset of field: AttentionBackward::o",
    ][::core::mem::offset_of!(AttentionBackward, o) - 24usize];
    [
        "Offset of field: AttentionBackward::d_o",
    ][::core::mem::offset_of!(AttentionBackward, d_o) - 32usize];
    [
        "Offset of field: AttentionBackward::lse",
    ][::core::mem::offset_of!(AttentionBackward, lse) - 40usize];
    [
        "Offset of field: AttentionBackward::delta",
    ][::core::mem::offset_of!(AttentionBackward, delta) - 48usize];
    [
        "Offset of field: AttentionBackward::segments",
    ][::core::mem::offset_of!(AttentionBackward, segments) - 56usize];
    [
        "Offset of field: AttentionBackward::dq",
    ][::core::mem::offset_of!(AttentionBackward, dq) - 64usize];
    [
        "Offset of field: AttentionBackward::dk",
    ][::core::mem::offset_of!(AttentionBackward, dk) - 72usize];
    [
        "Offset of field: AttentionBackward::dv",
    ][::core::mem::offset_of!(AttentionBackward, dv) - 80usize];
    [
        "Offset of field: AttentionBackward::q_stride",
    ][::core::mem::offset_of!(AttentionBackward, q_stride) - 88usize];
    [
        "Offset of field: AttentionBackward::k_stride",
    ][::core::mem::offset_of!(AttentionBackward, k_stride) - 96usize];
    [
        "Offset of field: AttentionBackward::v_stride",
    ][::core::mem::offset_of!(AttentionBackward, v_stride) - 104usize];
    [
        "Offset of field: AttentionBackward::o_stride",
    ][::core::mem::offset_of!(AttentionBackward, o_stride) - 112usize];
    [
        "Offset of field: AttentionBackward::d_o_stride",
    ][::core::mem::offset_of!(AttentionBackward, d_o_stride) - 120usize];
    [
        "Offset of field: AttentionBackward::lse_stride",
    ][::core::mem::offset_of!(AttentionBackward, lse_stride) - 128usize];
    [
        "Offset of field: AttentionBackward::dq_stride",
    ][::core::mem::offset_of!(AttentionBackward, dq_stride) - 136usize];
    [
        "Offset of field: AttentionBackward::dk_stride",
    ][::core::mem::offset_of!(AttentionBackward, dk_stride) - 144usize];
    [
        "Offset of field: AttentionBackward::dv_stride",
    ][::core::mem::offset_of!(AttentionBackward, dv_stride) - 152usize];
    [
        "Offset of field: AttentionBackward::heads",
    ][::core::mem::offset_of!(AttentionBackward, heads) - 160usize];
    [
        "Offset of field: AttentionBackward::kv_heads",
    ][::core::mem::offset_of!(AttentionBackward, kv_heads) - 164usize];
    [
        "Offset of field: AttentionBackward::head_dim",
    ][::core::mem::offset_of!(AttentionBackward, head_dim) - 168usize];
    [
        "Offset of field: AttentionBackward::window",
    ][::core::mem::offset_of!(AttentionBackward, window) - 172usize];
    [
        "Offset of field: AttentionBackward::scale",
    ][::core::mem::offset_of!(AttentionBackward, scale) - 176usize];
    [
        "Offset of field: AttentionBackward::soft_cap",
    ][::core::mem::offset_of!(AttentionBackward, soft_cap) - 180usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq)]
pub struct Cast {
    /// `[rows, cols]`
    pub from: ::core::ffi::c_ulonglong,
    /// `[rows, cols]`
    pub to: ::core::ffi::c_ulonglong,
    pub rows: ::core::ffi::c_ulonglong,
    pub cols: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub from_stride: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub to_stride: ::core::ffi::c_ulonglong,
    /// Whether they are f32, and not bf16.
    pub from_wide: ::core::ffi::c_uint,
    /// Whether they are f32, and not bf16.
    pub to_wide: ::core::ffi::c_uint,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of Cast"][::core::mem::size_of::<Cast>() - 56usize];
    ["Alignment of Cast"][::core::mem::align_of::<Cast>() - 8usize];
    ["Offset of field: Cast::from"][::core::mem::offset_of!(Cast, from) - 0usize];
    ["Offset of field: Cast::to"][::core::mem::offset_of!(Cast, to) - 8usize];
    ["Offset of field: Cast::rows"][::core::mem::offset_of!(Cast, rows) - 16usize];
    ["Offset of field: Cast::cols"][::core::mem::offset_of!(Cast, cols) - 24usize];
    [
        "Offset of field: Cast::from_stride",
    ][::core::mem::offset_of!(Cast, from_stride) - 32usize];
    [
        "Offset of field: Cast::to_stride",
    ][::core::mem::offset_of!(Cast, to_stride) - 40usize];
    [
        "Offset of field: Cast::from_wide",
    ][::core::mem::offset_of!(Cast, from_wide) - 48usize];
    ["Offset of field: Cast::to_wide"][::core::mem::offset_of!(Cast, to_wide) - 52usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq)]
pub struct CrossEntropy {
    /// `[rows, vocabulary]` f32
    pub logits: ::core::ffi::c_ulonglong,
    /// `[rows]` u32, each below the vocabulary
    pub targets: ::core::ffi::c_ulonglong,
    /// `[rows]` f32
    pub losses: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub stride: ::core::ffi::c_ulonglong,
    pub vocabulary: ::core::ffi::c_uint,
    /// 0 for none.
    pub soft_cap: f32,
    pub scale: f32,
    /// Whether the logits are replaced by their gradient.
    pub has_gradient: ::core::ffi::c_uint,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CrossEntropy"][::core::mem::size_of::<CrossEntropy>() - 48usize];
    ["Alignment of CrossEntropy"][::core::mem::align_of::<CrossEntropy>() - 8usize];
    [
        "Offset of field: CrossEntropy::logits",
    ][::core::mem::offset_of!(CrossEntropy, logits) - 0usize];
    [
        "Offset of field: CrossEntropy::targets",
    ][::core::mem::offset_of!(CrossEntropy, targets) - 8usize];
    [
        "Offset of field: CrossEntropy::losses",
    ][::core::mem::offset_of!(CrossEntropy, losses) - 16usize];
    [
        "Offset of field: CrossEntropy::stride",
    ][::core::mem::offset_of!(CrossEntropy, stride) - 24usize];
    [
        "Offset of field: CrossEntropy::vocabulary",
    ][::core::mem::offset_of!(CrossEntropy, vocabulary) - 32usize];
    [
        "Offset of field: CrossEntropy::soft_cap",
    ][::core::mem::offset_of!(CrossEntropy, soft_cap) - 36usize];
    [
        "Offset of field: CrossEntropy::scale",
    ][::core::mem::offset_of!(CrossEntropy, scale) - 40usize];
    [
        "Offset of field: CrossEntropy::has_gradient",
    ][::core::mem::offset_of!(CrossEntropy, has_gradient) - 44usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq)]
pub struct Dequantize {
    /// `[values / 2]`
    pub codes: ::core::ffi::c_ulonglong,
    /// `[blocks]` f32, or u8 if nested
    pub absmax: ::core::ffi::c_ulonglong,
    /// `[blocks / 256]` f32, or 0
    pub nested_absmax: ::core::ffi::c_ulonglong,
    /// `[256]` f32, if nested
    pub map: ::core::ffi::c_ulonglong,
    /// `[values]` bf16, 16-byte aligned
    pub out: ::core::ffi::c_ulonglong,
    /// Count, a multiple of 64.
    pub values: ::core::ffi::c_ulonglong,
    /// Added to a nested scale.
    pub offset: f32,
    /// What the codes stand for.
    pub book: [f32; 16usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of Dequantize"][::core::mem::size_of::<Dequantize>() - 120usize];
    ["Alignment of Dequantize"][::core::mem::align_of::<Dequantize>() - 8usize];
    [
        "Offset of field: Dequantize::codes",
    ][::core::mem::offset_of!(Dequantize, codes) - 0usize];
    [
        "Offset of field: Dequantize::absmax",
    ][::core::mem::offset_of!(Dequantize, absmax) - 8usize];
    [
        "Offset of field: Dequantize::nested_absmax",
    ][::core::mem::offset_of!(Dequantize, nested_absmax) - 16usize];
    [
        "Offset of field: Dequantize::map",
    ][::core::mem::offset_of!(Dequantize, map) - 24usize];
    [
        "Offset of field: Dequantize::out",
    ][::core::mem::offset_of!(Dequantize, out) - 32usize];
    [
        "Offset of field: Dequantize::values",
    ][::core::mem::offset_of!(Dequantize, values) - 40usize];
    [
        "Offset of field: Dequantize::offset",
    ][::core::mem::offset_of!(Dequantize, offset) - 48usize];
    [
        "Offset of field: Dequantize::book",
    ][::core::mem::offset_of!(Dequantize, book) - 52usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq)]
pub struct Dropout {
    /// `[rows, cols]` bf16
    pub x: ::core::ffi::c_ulonglong,
    /// `[rows, cols]` bf16
    pub out: ::core::ffi::c_ulonglong,
    pub rows: ::core::ffi::c_ulonglong,
    pub cols: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub x_stride: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub out_stride: ::core::ffi::c_ulonglong,
    pub seed: ::core::ffi::c_ulonglong,
    pub stream: ::core::ffi::c_ulonglong,
    /// p * 2^32
    pub threshold: ::core::ffi::c_uint,
    /// 1 / (1 - p)
    pub scale: f32,
    /// Whether the result is added to what is there.
    pub add: ::core::ffi::c_uint,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of Dropout"][::core::mem::size_of::<Dropout>() - 80usize];
    ["Alignment of Dropout"][::core::mem::align_of::<Dropout>() - 8usize];
    ["Offset of field: Dropout::x"][::core::mem::offset_of!(Dropout, x) - 0usize];
    ["Offset of field: Dropout::out"][::core::mem::offset_of!(Dropout, out) - 8usize];
    ["Offset of field: Dropout::rows"][::core::mem::offset_of!(Dropout, rows) - 16usize];
    ["Offset of field: Dropout::cols"][::core::mem::offset_of!(Dropout, cols) - 24usize];
    [
        "Offset of field: Dropout::x_stride",
    ][::core::mem::offset_of!(Dropout, x_stride) - 32usize];
    [
        "Offset of field: Dropout::out_stride",
    ][::core::mem::offset_of!(Dropout, out_stride) - 40usize];
    ["Offset of field: Dropout::seed"][::core::mem::offset_of!(Dropout, seed) - 48usize];
    [
        "Offset of field: Dropout::stream",
    ][::core::mem::offset_of!(Dropout, stream) - 56usize];
    [
        "Offset of field: Dropout::threshold",
    ][::core::mem::offset_of!(Dropout, threshold) - 64usize];
    [
        "Offset of field: Dropout::scale",
    ][::core::mem::offset_of!(Dropout, scale) - 68usize];
    ["Offset of field: Dropout::add"][::core::mem::offset_of!(Dropout, add) - 72usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq)]
pub struct Embedding {
    /// `[vocabulary, cols]` bf16
    pub table: ::core::ffi::c_ulonglong,
    /// `[rows]` u32, each below the vocabulary
    pub tokens: ::core::ffi::c_ulonglong,
    /// `[rows, cols]` bf16
    pub out: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub table_stride: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub out_stride: ::core::ffi::c_ulonglong,
    pub cols: ::core::ffi::c_uint,
    pub scale: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of Embedding"][::core::mem::size_of::<Embedding>() - 48usize];
    ["Alignment of Embedding"][::core::mem::align_of::<Embedding>() - 8usize];
    [
        "Offset of field: Embedding::table",
    ][::core::mem::offset_of!(Embedding, table) - 0usize];
    [
        "Offset of field: Embedding::tokens",
    ][::core::mem::offset_of!(Embedding, tokens) - 8usize];
    [
        "Offset of field: Embedding::out",
    ][::core::mem::offset_of!(Embedding, out) - 16usize];
    [
        "Offset of field: Embedding::table_stride",
    ][::core::mem::offset_of!(Embedding, table_stride) - 24usize];
    [
        "Offset of field: Embedding::out_stride",
    ][::core::mem::offset_of!(Embedding, out_stride) - 32usize];
    [
        "Offset of field: Embedding::cols",
    ][::core::mem::offset_of!(Embedding, cols) - 40usize];
    [
        "Offset of field: Embedding::scale",
    ][::core::mem::offset_of!(Embedding, scale) - 44usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq)]
pub struct Glu {
    /// `[rows, 2 * width]` bf16
    pub gate_up: ::core::ffi::c_ulonglong,
    /// `[rows, width]` bf16: h, or dh and then h
    pub h: ::core::ffi::c_ulonglong,
    /// `[rows, 2 * width]` bf16 backward
    pub d_gate_up: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub gate_up_stride: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub h_stride: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub d_gate_up_stride: ::core::ffi::c_ulonglong,
    pub width: ::core::ffi::c_uint,
    /// 0: x * sigmoid(x); 1: GELU by tanh; 2: GELU.
    pub activation: ::core::ffi::c_uint,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of Glu"][::core::mem::size_of::<Glu>() - 56usize];
    ["Alignment of Glu"][::core::mem::align_of::<Glu>() - 8usize];
    ["Offset of field: Glu::gate_up"][::core::mem::offset_of!(Glu, gate_up) - 0usize];
    ["Offset of field: Glu::h"][::core::mem::offset_of!(Glu, h) - 8usize];
    [
        "Offset of field: Glu::d_gate_up",
    ][::core::mem::offset_of!(Glu, d_gate_up) - 16usize];
    [
        "Offset of field: Glu::gate_up_stride",
    ][::core::mem::offset_of!(Glu, gate_up_stride) - 24usize];
    ["Offset of field: Glu::h_stride"][::core::mem::offset_of!(Glu, h_stride) - 32usize];
    [
        "Offset of field: Glu::d_gate_up_stride",
    ][::core::mem::offset_of!(Glu, d_gate_up_stride) - 40usize];
    ["Offset of field: Glu::width"][::core::mem::offset_of!(Glu, width) - 48usize];
    [
        "Offset of field: Glu::activation",
    ][::core::mem::offset_of!(Glu, activation) - 52usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq)]
pub struct Matmul {
    /// bf16
    pub a: [::core::ffi::c_ulonglong; 2usize],
    /// bf16
    pub b: [::core::ffi::c_ulonglong; 2usize],
    /// `[m, n]` bf16, or f32 if wide
    pub out: ::core::ffi::c_ulonglong,
    /// `[n]` f32, or 0
    pub bias: ::core::ffi::c_ulonglong,
    /// `[m, n]` bf16, or 0
    pub residual: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub a_stride: [::core::ffi::c_ulonglong; 2usize],
    /// Numbers from a row to the next.
    pub b_stride: [::core::ffi::c_ulonglong; 2usize],
    /// Numbers from a row to the next.
    pub out_stride: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub residual_stride: ::core::ffi::c_ulonglong,
    pub k: [::core::ffi::c_uint; 2usize],
    pub m: ::core::ffi::c_uint,
    pub n: ::core::ffi::c_uint,
    pub alpha: f32,
    /// Whether the result is added to what is there.
    pub add: ::core::ffi::c_uint,
    /// Whether out is f32.
    pub wide: ::core::ffi::c_uint,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of Matmul"][::core::mem::size_of::<Matmul>() - 136usize];
    ["Alignment of Matmul"][::core::mem::align_of::<Matmul>() - 8usize];
    ["Offset of field: Matmul::a"][::core::mem::offset_of!(Matmul, a) - 0usize];
    ["Offset of field: Matmul::b"][::core::mem::offset_of!(Matmul, b) - 16usize];
    ["Offset of field: Matmul::out"][::core::mem::offset_of!(Matmul, out) - 32usize];
    ["Offset of field: Matmul::bias"][::core::mem::offset_of!(Matmul, bias) - 40usize];
    [
        "Offset of field: Matmul::residual",
    ][::core::mem::offset_of!(Matmul, residual) - 48usize];
    [
        "Offset of field: Matmul::a_stride",
    ][::core::mem::offset_of!(Matmul, a_stride) - 56usize];
    [
        "Offset of field: Matmul::b_stride",
    ][::core::mem::offset_of!(Matmul, b_stride) - 72usize];
    [
        "Offset of field: Matmul::out_stride",
    ][::core::mem::offset_of!(Matmul, out_stride) - 88usize];
    [
        "Offset of field: Matmul::residual_stride",
    ][::core::mem::offset_of!(Matmul, residual_stride) - 96usize];
    ["Offset of field: Matmul::k"][::core::mem::offset_of!(Matmul, k) - 104usize];
    ["Offset of field: Matmul::m"][::core::mem::offset_of!(Matmul, m) - 112usize];
    ["Offset of field: Matmul::n"][::core::mem::offset_of!(Matmul, n) - 116usize];
    [
        "Offset of field: Matmul::alpha",
    ][::core::mem::offset_of!(Matmul, alpha) - 120usize];
    ["Offset of field: Matmul::add"][::core::mem::offset_of!(Matmul, add) - 124usize];
    ["Offset of field: Matmul::wide"][::core::mem::offset_of!(Matmul, wide) - 128usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq)]
pub struct Matmul4bit {
    pub product: Matmul,
    /// `[blocks]` f32, or u8 if nested
    pub absmax: ::core::ffi::c_ulonglong,
    /// `[blocks / 256]` f32, or 0
    pub nested_absmax: ::core::ffi::c_ulonglong,
    /// `[256]` f32, if nested
    pub map: ::core::ffi::c_ulonglong,
    /// Added to a nested scale.
    pub offset: f32,
    /// What the codes stand for.
    pub book: [f32; 16usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of Matmul4bit"][::core::mem::size_of::<Matmul4bit>() - 232usize];
    ["Alignment of Matmul4bit"][::core::mem::align_of::<Matmul4bit>() - 8usize];
    [
        "Offset of field: Matmul4bit::product",
    ][::core::mem::offset_of!(Matmul4bit, product) - 0usize];
    [
        "Offset of field: Matmul4bit::absmax",
    ][::core::mem::offset_of!(Matmul4bit, absmax) - 136usize];
    [
        "Offset of field: Matmul4bit::nested_absmax",
    ][::core::mem::offset_of!(Matmul4bit, nested_absmax) - 144usize];
    [
        "Offset of field: Matmul4bit::map",
    ][::core::mem::offset_of!(Matmul4bit, map) - 152usize];
    [
        "Offset of field: Matmul4bit::offset",
    ][::core::mem::offset_of!(Matmul4bit, offset) - 160usize];
    [
        "Offset of field: Matmul4bit::book",
    ][::core::mem::offset_of!(Matmul4bit, book) - 164usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq)]
pub struct Rmsnorm {
    /// `[rows, groups * width]` bf16
    pub x: ::core::ffi::c_ulonglong,
    /// `[width]` f32
    pub weight: ::core::ffi::c_ulonglong,
    /// y or dx `[rows, groups * width]` bf16
    pub out: ::core::ffi::c_ulonglong,
    /// dy `[rows, groups * width]` bf16, or 0 forward
    pub dy: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub x_stride: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub out_stride: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub dy_stride: ::core::ffi::c_ulonglong,
    /// Groups in a row.
    pub groups: ::core::ffi::c_uint,
    /// Numbers in a group: even.
    pub width: ::core::ffi::c_uint,
    pub eps: f32,
    /// 0, or 1 where the factor is 1 + weight.
    pub center: f32,
    /// Whether the result is added to what is there.
    pub add: ::core::ffi::c_uint,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of Rmsnorm"][::core::mem::size_of::<Rmsnorm>() - 80usize];
    ["Alignment of Rmsnorm"][::core::mem::align_of::<Rmsnorm>() - 8usize];
    ["Offset of field: Rmsnorm::x"][::core::mem::offset_of!(Rmsnorm, x) - 0usize];
    [
        "Offset of field: Rmsnorm::weight",
    ][::core::mem::offset_of!(Rmsnorm, weight) - 8usize];
    ["Offset of field: Rmsnorm::out"][::core::mem::offset_of!(Rmsnorm, out) - 16usize];
    ["Offset of field: Rmsnorm::dy"][::core::mem::offset_of!(Rmsnorm, dy) - 24usize];
    [
        "Offset of field: Rmsnorm::x_stride",
    ][::core::mem::offset_of!(Rmsnorm, x_stride) - 32usize];
    [
        "Offset of field: Rmsnorm::out_stride",
    ][::core::mem::offset_of!(Rmsnorm, out_stride) - 40usize];
    [
        "Offset of field: Rmsnorm::dy_stride",
    ][::core::mem::offset_of!(Rmsnorm, dy_stride) - 48usize];
    [
        "Offset of field: Rmsnorm::groups",
    ][::core::mem::offset_of!(Rmsnorm, groups) - 56usize];
    [
        "Offset of field: Rmsnorm::width",
    ][::core::mem::offset_of!(Rmsnorm, width) - 60usize];
    ["Offset of field: Rmsnorm::eps"][::core::mem::offset_of!(Rmsnorm, eps) - 64usize];
    [
        "Offset of field: Rmsnorm::center",
    ][::core::mem::offset_of!(Rmsnorm, center) - 68usize];
    ["Offset of field: Rmsnorm::add"][::core::mem::offset_of!(Rmsnorm, add) - 72usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq)]
pub struct Rope {
    /// `[rows, heads * head_dim]` bf16
    pub x: ::core::ffi::c_ulonglong,
    /// `[rows, 2 * half]` f32
    pub tables: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub x_stride: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub table_stride: ::core::ffi::c_ulonglong,
    pub heads: ::core::ffi::c_uint,
    pub head_dim: ::core::ffi::c_uint,
    pub half: ::core::ffi::c_uint,
    /// Whether the turn is back: the gradient's.
    pub backward: ::core::ffi::c_uint,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of Rope"][::core::mem::size_of::<Rope>() - 48usize];
    ["Alignment of Rope"][::core::mem::align_of::<Rope>() - 8usize];
    ["Offset of field: Rope::x"][::core::mem::offset_of!(Rope, x) - 0usize];
    ["Offset of field: Rope::tables"][::core::mem::offset_of!(Rope, tables) - 8usize];
    [
        "Offset of field: Rope::x_stride",
    ][::core::mem::offset_of!(Rope, x_stride) - 16usize];
    [
        "Offset of field: Rope::table_stride",
    ][::core::mem::offset_of!(Rope, table_stride) - 24usize];
    ["Offset of field: Rope::heads"][::core::mem::offset_of!(Rope, heads) - 32usize];
    [
        "Offset of field: Rope::head_dim",
    ][::core::mem::offset_of!(Rope, head_dim) - 36usize];
    ["Offset of field: Rope::half"][::core::mem::offset_of!(Rope, half) - 40usize];
    [
        "Offset of field: Rope::backward",
    ][::core::mem::offset_of!(Rope, backward) - 44usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq)]
pub struct Rows {
    /// `[count, cols]` bf16
    pub packed: ::core::ffi::c_ulonglong,
    /// `[rows, cols]` bf16
    pub spread: ::core::ffi::c_ulonglong,
    /// `[count]` u32, distinct rows of spread
    pub index: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub packed_stride: ::core::ffi::c_ulonglong,
    /// Numbers from a row to the next.
    pub spread_stride: ::core::ffi::c_ulonglong,
    pub cols: ::core::ffi::c_uint,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of Rows"][::core::mem::size_of::<Rows>() - 48usize];
    ["Alignment of Rows"][::core::mem::align_of::<Rows>() - 8usize];
    ["Offset of field: Rows::packed"][::core::mem::offset_of!(Rows, packed) - 0usize];
    ["Offset of field: Rows::spread"][::core::mem::offset_of!(Rows, spread) - 8usize];
    ["Offset of field: Rows::index"][::core::mem::offset_of!(Rows, index) - 16usize];
    [
        "Offset of field: Rows::packed_stride",
    ][::core::mem::offset_of!(Rows, packed_stride) - 24usize];
    [
        "Offset of field: Rows::spread_stride",
    ][::core::mem::offset_of!(Rows, spread_stride) - 32usize];
    ["Offset of field: Rows::cols"][::core::mem::offset_of!(Rows, cols) - 40usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq)]
pub struct SumSquares {
    /// `[len]` f32
    pub x: ::core::ffi::c_ulonglong,
    /// `[len / 16384]` f64, rounded up
    pub partial: ::core::ffi::c_ulonglong,
    /// `[1]` f64
    pub out: ::core::ffi::c_ulonglong,
    pub len: ::core::ffi::c_ulonglong,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SumSquares"][::core::mem::size_of::<SumSquares>() - 32usize];
    ["Alignment of SumSquares"][::core::mem::align_of::<SumSquares>() - 8usize];
    ["Offset of field: SumSquares::x"][::core::mem::offset_of!(SumSquares, x) - 0usize];
    [
        "Offset of field: SumSquares::partial",
    ][::core::mem::offset_of!(SumSquares, partial) - 8usize];
    [
        "Offset of field: SumSquares::out",
    ][::core::mem::offset_of!(SumSquares, out) - 16usize];
    [
        "Offset of field: SumSquares::len",
    ][::core::mem::offset_of!(SumSquares, len) - 24usize];
};
