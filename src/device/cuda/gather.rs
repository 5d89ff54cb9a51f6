//! The computing stream, launches that are gathered before they go to it, and the copies beside it.
//!
//! To start a kernel takes the host a few microseconds, as long as a small kernel runs. The kernels of a
//! block come again with every micro-batch of the same shape; so those of a [`Pass`] are gathered, and
//! when a pass comes a second time with the same kernels over the same grids, it becomes a CUDA graph,
//! which one call starts. What differs from the last time, as the draw of a dropout or a scale, is
//! written into the graph before.
//!
//! Graphs change when kernels are started and nothing else. Where the driver has no room for one or cannot
//! change it, or where kernels are timed one by one, they are started one by one.

use std::collections::HashMap;
use std::ffi::c_void;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{CudaStream, DriverError, result, sys};

use super::kernels::Function;
use crate::device::{Grid, Pass};
use crate::ffi::Kernel;

/// The stream; whoever gets at it comes behind what is gathered.
pub(super) struct Computing {
    stream: Arc<CudaStream>,
    /// What goes to host memory and back beside what is computed.
    parking: Arc<CudaStream>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The pass that is gathered, and which part of it: whatever is no launch begins a new one.
    open: Option<(Pass, usize)>,
    gathered: List,
    known: HashMap<(Pass, usize, u64), Known>,
    graphs: usize,
    /// No graph can be made.
    full: bool,
}

/// A part of a pass that has come before.
enum Known {
    /// Once: it may never come again.
    Once,
    Graph(Graph),
    /// As a graph that the driver could not change: it is started kernel by kernel.
    Unfit,
}

/// Graphs at most: some for each block of a large model.
const GRAPHS: usize = 1024;
/// Parts that have come once, at most: of sequences of any length, few ever come again.
const KNOWN: usize = 16 * GRAPHS;

/// Kernels in the order of their launches.
#[derive(Default)]
struct List {
    launches: Vec<Launch>,
    /// The structs of all of them, one behind the other.
    params: Vec<MaybeUninit<u64>>,
}

/// A kernel over a grid.
struct Launch {
    function: sys::CUfunction,
    kernel: &'static Kernel,
    grid: Grid,
    /// Where its struct begins in the list's.
    at: usize,
    /// Whether two such structs are equal.
    equal: unsafe fn(*const c_void, *const c_void) -> bool,
}

/// Kernels that one call starts.
struct Graph {
    graph: sys::CUgraph,
    ready: sys::CUgraphExec,
    nodes: Vec<sys::CUgraphNode>,
    /// What it was started with last.
    list: List,
}

// SAFETY: handles of the driver may be used by any thread, one at a time, which a mutex sees to; the
// other pointer is a function.
unsafe impl Send for List {}
// SAFETY: as above.
unsafe impl Send for Graph {}

impl Computing {
    pub(super) fn new(stream: Arc<CudaStream>, parking: Arc<CudaStream>) -> Self {
        Self { stream, parking, state: Mutex::default() }
    }

    /// The stream, behind all launches so far.
    pub(super) fn stream(&self) -> Result<&Arc<CudaStream>, DriverError> {
        self.state().close_part(&self.stream)?;
        Ok(&self.stream)
    }

    /// The stream of copies beside it, behind all that is queued so far.
    pub(super) fn beside(&self) -> Result<&Arc<CudaStream>, DriverError> {
        self.parking.wait(&self.stream()?.record_event(None)?)?;
        Ok(&self.parking)
    }

    /// What is queued from now on comes after everything, the copies beside it too: then memory that they
    /// use may be freed.
    pub(super) fn join(&self) -> Result<(), DriverError> {
        self.stream()?.wait(&self.parking.record_event(None)?)
    }

    /// Launches a kernel, or gathers it.
    ///
    /// # Safety
    /// As for [`Queue::launch`](crate::device::Queue::launch).
    pub(super) unsafe fn launch<P: Copy + PartialEq>(
        &self,
        function: &Function,
        grid: Grid,
        params: &P,
    ) -> Result<(), DriverError> {
        let mut state = self.state();
        state.gathered.push(function, grid, params);
        match state.open {
            Some(_) => Ok(()),
            None => state.close_part(&self.stream),
        }
    }

    /// Gathers what `work` launches.
    pub(super) fn gather<R>(
        &self,
        pass: Pass,
        work: impl FnOnce() -> R,
    ) -> (R, Result<(), DriverError>) {
        let before = self.state().open.replace((pass, 0));
        assert!(before.is_none(), "{pass:?} within {before:?}");
        let result = work();
        let mut state = self.state();
        let done = state.close_part(&self.stream);
        state.open = None;
        (result, done)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Starts what was gathered.
    fn close_part(&mut self, stream: &CudaStream) -> Result<(), DriverError> {
        if self.gathered.launches.is_empty() {
            return Ok(());
        }
        stream.context().bind_to_thread()?;
        let started = match self.open.as_mut() {
            Some((pass, part)) => {
                let key = (*pass, *part, self.gathered.shape());
                *part += 1;
                self.start(key, stream)
            }
            None => self.gathered.start(stream),
        };
        self.gathered.clear();
        started
    }

    /// Starts a part of a pass, as a graph if it came before.
    fn start(&mut self, key: (Pass, usize, u64), stream: &CudaStream) -> Result<(), DriverError> {
        if self.full || self.gathered.launches.len() < 2 {
            return self.gathered.start(stream);
        }
        if self.known.len() >= KNOWN {
            self.known.retain(|_, known| !matches!(known, Known::Once));
        }
        match self.known.get_mut(&key) {
            Some(Known::Graph(graph)) if graph.list.has_shape_of(&self.gathered) => {
                if graph.update(&mut self.gathered).is_ok() {
                    return graph.start(stream);
                }
                // Some of its nodes may be new and some old: it is of no use any more.
                self.known.insert(key, Known::Unfit);
            }
            Some(Known::Once) if self.graphs < GRAPHS => match Graph::of(&mut self.gathered) {
                Ok(graph) => {
                    let started = graph.start(stream);
                    self.graphs += 1;
                    self.known.insert(key, Known::Graph(graph));
                    return started;
                }
                Err(_) => self.full = true,
            },
            Some(_) => (),
            None => drop(self.known.insert(key, Known::Once)),
        }
        self.gathered.start(stream)
    }
}

impl List {
    fn push<P: Copy + PartialEq>(&mut self, function: &Function, grid: Grid, params: &P) {
        const { assert!(align_of::<P>() <= align_of::<u64>()) };
        let at = self.params.len();
        let words = size_of::<P>().div_ceil(size_of::<u64>());
        self.params.resize(at + words, MaybeUninit::uninit());
        // SAFETY: there is room for as many words, aligned as `P` may be.
        unsafe { self.params[at..].as_mut_ptr().cast::<P>().write(*params) };
        let Function { function, kernel } = function;
        let function = function.cu_function();
        self.launches.push(Launch { function, kernel, grid, at, equal: equal::<P> });
    }

    fn clear(&mut self) {
        self.launches.clear();
        self.params.clear();
    }

    /// Which kernels over which grids, in a number.
    fn shape(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for Launch { function, grid, .. } in &self.launches {
            (function, grid).hash(&mut hasher);
        }
        hasher.finish()
    }

    fn has_shape_of(&self, other: &Self) -> bool {
        let kernel = |launch: &Launch| (launch.function, launch.grid);
        self.launches.iter().map(kernel).eq(other.launches.iter().map(kernel))
    }

    fn params(&self, launch: &Launch) -> *const c_void {
        self.params[launch.at..].as_ptr().cast()
    }

    /// Starts them one by one.
    fn start(&self, stream: &CudaStream) -> Result<(), DriverError> {
        for launch in &self.launches {
            let [x, y, z] = launch.grid.counts();
            let Kernel { threads, shared, .. } = *launch.kernel;
            let params = &mut [self.params(launch).cast_mut()];
            let (blocks, threads, stream) = ((x, y, z), (threads, 1, 1), stream.cu_stream());
            // SAFETY: the stream and the function are alive, and the struct is the kernel's one argument;
            // for what it points to, whoever launched it vouched.
            unsafe {
                let shared = shared as u32;
                result::launch_kernel(launch.function, blocks, threads, shared, stream, params)?;
            }
        }
        Ok(())
    }

    /// Describes a launch to `tell`.
    fn describe<R>(
        &self,
        launch: &Launch,
        tell: impl FnOnce(&sys::CUDA_KERNEL_NODE_PARAMS) -> R,
    ) -> R {
        let [x, y, z] = launch.grid.counts();
        let Kernel { threads, shared, .. } = *launch.kernel;
        let mut params = [self.params(launch).cast_mut()];
        tell(&sys::CUDA_KERNEL_NODE_PARAMS {
            func: launch.function,
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared as u32,
            kernelParams: params.as_mut_ptr(),
            extra: ptr::null_mut(),
            kern: ptr::null_mut(),
            ctx: ptr::null_mut(),
        })
    }
}

/// # Safety
/// Both point to a `P`.
unsafe fn equal<P: PartialEq>(one: *const c_void, other: *const c_void) -> bool {
    // SAFETY: passed on from the caller.
    unsafe { *one.cast::<P>() == *other.cast::<P>() }
}

impl Graph {
    /// Each kernel after the one before it.
    fn of(list: &mut List) -> Result<Self, DriverError> {
        let (mut graph, mut ready) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the driver writes a handle.
        unsafe { sys::cuGraphCreate(&mut graph, 0).result()? };
        // From here on, what was made goes with it.
        let mut made = Self { graph, ready, nodes: Vec::new(), list: List::default() };
        for launch in &list.launches {
            let (before, mut node) = (made.nodes.last(), ptr::null_mut());
            let count = usize::from(before.is_some());
            let before = before.map_or(ptr::null(), ptr::from_ref);
            // SAFETY: the graph and the node before are alive; the struct is the kernel's one argument,
            // which is copied.
            let added = list.describe(launch, |params| unsafe {
                sys::cuGraphAddKernelNode_v2(&mut node, graph, before, count, params)
            });
            added.result()?;
            made.nodes.push(node);
        }
        // SAFETY: as above.
        unsafe { sys::cuGraphInstantiateWithFlags(&mut ready, graph, 0).result()? };
        made.ready = ready;
        std::mem::swap(&mut made.list, list);
        Ok(made)
    }

    /// Writes into it what `list`, which has the same shape, says; afterwards `list` holds what was there
    /// before. After an error, the list is as it was and the graph of no use.
    fn update(&mut self, list: &mut List) -> Result<(), DriverError> {
        for ((old, new), node) in self.list.launches.iter().zip(&list.launches).zip(&self.nodes) {
            let (was, is) = (self.list.params(old), list.params(new));
            // SAFETY: kernels of one name take one type, which both lists hold.
            if unsafe { (old.equal)(was, is) } {
                continue;
            }
            // SAFETY: the node is one of this graph's; the struct is copied.
            let told = list.describe(new, |params| unsafe {
                sys::cuGraphExecKernelNodeSetParams_v2(self.ready, *node, params)
            });
            told.result()?;
        }
        std::mem::swap(&mut self.list, list);
        Ok(())
    }

    fn start(&self, stream: &CudaStream) -> Result<(), DriverError> {
        // SAFETY: both are alive; for what the structs point to, whoever launched them vouched.
        unsafe { sys::cuGraphLaunch(self.ready, stream.cu_stream()).result() }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // A failure here has nobody to report to.
        // SAFETY: nothing uses the handles any more; what was started goes on.
        unsafe {
            if !self.ready.is_null() {
                let _ = sys::cuGraphExecDestroy(self.ready);
            }
            let _ = sys::cuGraphDestroy(self.graph);
        }
    }
}
