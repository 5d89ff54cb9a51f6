//! Graphs: kernels that are launched together, each after the one before it.

use std::collections::BTreeMap;
use std::ffi::{c_uint, c_ulonglong, c_void};

use super::exports::{exports, give};
use super::streams::{Grid, Work};
use super::{
    COUNTS, Code, Counts, Driver, INVALID_HANDLE, INVALID_VALUE, NOT_SUPPORTED, OUT_OF_MEMORY, ask,
    count,
};

/// Graphs, and what was made of them to be launched.
#[derive(Default)]
pub(super) struct Graphs {
    made: BTreeMap<u64, Vec<Grid>>,
    ready: BTreeMap<u64, Ready>,
    next: u64,
}

struct Ready {
    /// The graph that it was made of: its nodes are known by that.
    graph: u64,
    nodes: Vec<Grid>,
}

impl Graphs {
    /// Bytes of device memory that they take, `each` of them.
    pub(super) fn bytes(&self, each: usize) -> usize {
        self.ready.len() * each
    }
}

/// A node's handle: its graph, and its place in it from 1.
fn node(graph: u64, place: usize) -> u64 {
    graph << 32 | place as u64
}

/// `CUDA_KERNEL_NODE_PARAMS`, second version.
#[repr(C)]
pub struct KernelNode {
    function: usize,
    blocks: [c_uint; 3],
    threads: [c_uint; 3],
    shared_bytes: c_uint,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
    kernel: usize,
    context: usize,
}

impl Driver {
    /// # Safety
    /// `params` is null or describes a kernel and points to its argument.
    unsafe fn node(&mut self, params: *const KernelNode) -> Result<Grid, Code> {
        // SAFETY: passed on from the caller.
        let node = unsafe { params.as_ref() }.ok_or(INVALID_VALUE)?;
        let size = (node.blocks, node.threads, node.shared_bytes);
        // SAFETY: passed on from the caller.
        unsafe { self.grid(node.function, size, node.params) }
    }
}

exports! {
    fn cuGraphCreate(graph: *mut u64, flags: c_uint) |driver| {
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        driver.graphs.next += 1;
        let handle = driver.graphs.next;
        driver.graphs.made.insert(handle, Vec::new());
        give(graph, handle)
    }
    fn cuGraphAddKernelNode_v2(
        added: *mut u64,
        graph: u64,
        after: *const u64,
        count: usize,
        params: *const KernelNode
    ) |driver| {
        // SAFETY: the caller describes a kernel.
        let grid = unsafe { driver.node(params)? };
        let nodes = driver.graphs.made.get_mut(&graph).ok_or(INVALID_HANDLE)?;
        // SAFETY: the caller gives as many nodes as it says.
        let after = unsafe { after.as_ref() }.filter(|_| count == 1);
        let last = (!nodes.is_empty()).then(|| node(graph, nodes.len()));
        if count > 1 || after != last.as_ref() {
            return Err(INVALID_VALUE);
        }
        nodes.push(grid);
        give(added, node(graph, nodes.len()))
    }
    fn cuGraphInstantiateWithFlags(ready: *mut u64, graph: u64, flags: c_ulonglong) |driver| {
        let nodes = driver.graphs.made.get(&graph).ok_or(INVALID_HANDLE)?.clone();
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        if driver.graphs.ready.len() >= driver.card.graphs {
            return Err(OUT_OF_MEMORY);
        }
        driver.graphs.next += 1;
        let handle = driver.graphs.next;
        driver.graphs.ready.insert(handle, Ready { graph, nodes });
        give(ready, handle)
    }
    fn cuGraphExecKernelNodeSetParams_v2(
        ready: u64,
        changed: u64,
        params: *const KernelNode
    ) |driver| {
        // SAFETY: the caller describes a kernel.
        let grid = unsafe { driver.node(params)? };
        driver.card.graph_updates = driver.card.graph_updates.checked_sub(1).ok_or(NOT_SUPPORTED)?;
        let Ready { graph, nodes } = driver.graphs.ready.get_mut(&ready).ok_or(INVALID_HANDLE)?;
        let place = (1..=nodes.len()).find(|place| node(*graph, *place) == changed);
        nodes[place.ok_or(INVALID_HANDLE)? - 1] = grid;
        Ok(())
    }
    fn cuGraphLaunch(ready: u64, stream: u64) |driver| {
        let nodes = driver.graphs.ready.get(&ready).ok_or(INVALID_HANDLE)?.nodes.clone();
        count(|counts| counts.graphs += 1);
        nodes.into_iter().try_for_each(|grid| driver.streams.push(stream, Work::Launch(grid)))
    }
    fn cuGraphExecDestroy(ready: u64) |driver| {
        driver.graphs.ready.remove(&ready).map(drop).ok_or(INVALID_HANDLE)
    }
    fn cuGraphDestroy(graph: u64) |driver| {
        driver.graphs.made.remove(&graph).map(drop).ok_or(INVALID_HANDLE)
    }
    fn ptx_emu_counts(counts: *mut Counts) |_driver| { give(counts, COUNTS.get()) }
}
