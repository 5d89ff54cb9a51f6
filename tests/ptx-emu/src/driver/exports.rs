//! The functions of the driver, as programs know them.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use super::streams::{Work, hash_of};
use super::{
    Code, Driver, Function, INVALID_DEVICE, INVALID_VALUE, NOT_READY, NOT_SUPPORTED, SUCCESS, ask,
    count,
};

/// The one context there is.
const CONTEXT: usize = 1;

/// The one pool of memory.
const POOL: usize = 2;

/// Defines exported functions. Each writes through pointers that its caller gave it for that.
macro_rules! exports {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) |$driver:ident| $body:block)*) => {
        $(
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($arg: $ty),*) -> Code {
                ask(|$driver| $body)
            }
        )*
    };
}

pub(super) use exports;

/// Writes a result to where the caller wants it.
pub(super) fn give<T>(to: *mut T, value: T) -> Result<(), Code> {
    if to.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: callers of the driver give valid addresses for results.
    unsafe { to.write(value) };
    Ok(())
}

exports! {
    fn cuInit(flags: c_uint) |driver| {
        let _ = flags;
        // CUDA_ERROR_NO_DEVICE.
        if driver.card.devices == 0 { Err(100) } else { Ok(()) }
    }
    fn cuDriverGetVersion(version: *mut c_int) |driver| { give(version, driver.card.driver) }
    fn cuDeviceGetCount(count: *mut c_int) |driver| { give(count, driver.card.devices) }
    fn cuDeviceGet(device: *mut c_int, ordinal: c_int) |driver| {
        if !(0..driver.card.devices).contains(&ordinal) {
            return Err(INVALID_DEVICE);
        }
        give(device, ordinal)
    }
    fn cuDeviceGetName(name: *mut c_char, len: c_int, device: c_int) |_driver| {
        let _ = device;
        let text = c"Emulated card".to_bytes_with_nul();
        if name.is_null() || (len as usize) < text.len() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller has room for `len` bytes.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), name.cast(), text.len()) };
        Ok(())
    }
    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) |driver| {
        let _ = device;
        give(bytes, driver.card.memory)
    }
    fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int) |driver| {
        let _ = device;
        give(value, attribute_of(driver, attribute))
    }
    fn cuDeviceGetDefaultMemPool(pool: *mut usize, device: c_int) |driver| {
        let _ = device;
        require_pools(driver)?;
        give(pool, POOL)
    }
    fn cuMemPoolSetAttribute(pool: usize, attribute: c_int, value: *const c_void) |_driver| {
        let _ = (attribute, value);
        if pool == POOL { Ok(()) } else { Err(INVALID_VALUE) }
    }
    fn cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int) |_driver| {
        let _ = device;
        give(context, CONTEXT)
    }
    fn cuDevicePrimaryCtxRelease_v2(device: c_int) |_driver| { let _ = device; Ok(()) }
    fn cuCtxSetCurrent(context: usize) |_driver| { let _ = context; Ok(()) }
    fn cuCtxGetCurrent(context: *mut usize) |_driver| { give(context, CONTEXT) }
    fn cuCtxSynchronize() |driver| { driver.work_until(|streams| Ok(streams.are_idle())) }
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) |driver| {
        give(free, driver.free_bytes())?;
        give(total, driver.card.memory)
    }

    fn cuMemAlloc_v2(address: *mut u64, len: usize) |driver| {
        let allocated = driver.alloc(len)?;
        give(address, allocated)
    }
    fn cuMemAllocAsync(address: *mut u64, len: usize, stream: u64) |driver| {
        let _ = stream;
        require_pools(driver)?;
        let allocated = driver.alloc(len)?;
        give(address, allocated)
    }
    fn cuMemFree_v2(address: u64) |driver| {
        driver.work_until(|streams| Ok(streams.are_idle()))?;
        driver.free(address)
    }
    fn cuMemFreeAsync(address: u64, stream: u64) |driver| {
        require_pools(driver)?;
        driver.streams.push(stream, Work::Free(address))
    }
    fn cuMemHostAlloc(address: *mut usize, len: usize, flags: c_uint) |driver| {
        let _ = flags;
        let start = Box::leak(vec![0_u8; len].into_boxed_slice()).as_mut_ptr().addr();
        driver.pinned.push(start..start + len);
        give(address, start)
    }
    fn cuMemFreeHost(address: usize) |driver| {
        driver.work_until(|streams| Ok(streams.are_idle()))?;
        let at = driver.pinned.iter().position(|range| range.start == address);
        let range = driver.pinned.remove(at.ok_or(INVALID_VALUE)?);
        // SAFETY: `cuMemHostAlloc` made it of a boxed slice of this length.
        drop(unsafe {
            Box::from_raw(std::ptr::slice_from_raw_parts_mut(range.start as *mut u8, range.len()))
        });
        Ok(())
    }

    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, len: usize, stream: u64) |driver| {
        let work = upload(driver, to, from.addr(), len);
        driver.streams.push(stream, work)
    }
    fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, len: usize) |driver| {
        let work = upload(driver, to, from.addr(), len);
        driver.streams.push(0, work)?;
        driver.work_until(|streams| streams.is_idle(0))
    }
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, len: usize, stream: u64) |driver| {
        driver.streams.push(stream, Work::Download { to: to.addr(), from, len })?;
        if driver.is_pinned(to.addr(), len) {
            return Ok(());
        }
        // To memory that is not pinned the call returns when the copy is done.
        driver.work_until(|streams| streams.is_idle(stream))
    }
    fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, len: usize) |driver| {
        driver.work_until(|streams| Ok(streams.are_idle()))?;
        driver.streams.push(0, Work::Download { to: to.addr(), from, len })?;
        driver.work_until(|streams| streams.is_idle(0))
    }
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, len: usize, stream: u64) |driver| {
        driver.streams.push(stream, Work::Copy { to, from, len })
    }
    fn cuMemsetD8Async(to: u64, byte: u8, len: usize, stream: u64) |driver| {
        driver.streams.push(stream, Work::Fill { to, byte, len })
    }

    fn cuStreamCreate(stream: *mut u64, flags: c_uint) |driver| {
        let _ = flags;
        give(stream, driver.streams.open())
    }
    fn cuStreamCreateWithPriority(stream: *mut u64, flags: c_uint, priority: c_int) |driver| {
        let _ = (flags, priority);
        give(stream, driver.streams.open())
    }
    fn cuStreamDestroy_v2(stream: u64) |driver| {
        driver.work_until(|streams| streams.is_idle(stream))
    }
    fn cuStreamSynchronize(stream: u64) |driver| {
        driver.work_until(|streams| streams.is_idle(stream))
    }
    fn cuStreamWaitEvent(stream: u64, event: u64, flags: c_uint) |driver| {
        let _ = flags;
        driver.streams.wait(stream, event)
    }
    fn cuEventCreate(event: *mut u64, flags: c_uint) |driver| {
        let _ = flags;
        give(event, driver.streams.new_event())
    }
    fn cuEventDestroy_v2(event: u64) |driver| { driver.streams.forget_event(event) }
    fn cuEventRecord(event: u64, stream: u64) |driver| { driver.streams.record(stream, event) }
    fn cuEventSynchronize(event: u64) |driver| {
        driver.work_until(|streams| streams.has_come(event))
    }
    fn cuEventQuery(event: u64) |driver| {
        if driver.streams.has_come(event)? { Ok(()) } else { Err(NOT_READY) }
    }
    fn cuEventElapsedTime(milliseconds: *mut f32, start: u64, end: u64) |driver| {
        give(milliseconds, driver.streams.between(start, end)?)
    }

    fn cuModuleLoadData(module: *mut usize, image: *const c_char) |driver| {
        if image.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller gives an image.
        let loaded = unsafe { driver.load(image)? };
        give(module, loaded)
    }
    fn cuModuleLoadDataEx(
        module: *mut usize,
        image: *const c_char,
        count: c_uint,
        options: *const c_int,
        values: *const *mut c_void
    ) |driver| {
        if image.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller gives an image.
        let loaded = unsafe { driver.load(image) };
        if loaded.is_err() {
            // SAFETY: the caller gives as many options as it says, and their values.
            unsafe { write_log(count as usize, options, values) };
        }
        give(module, loaded?)
    }
    fn cuModuleUnload(module: usize) |_driver| { let _ = module; Ok(()) }
    fn cuModuleGetFunction(function: *mut usize, module: usize, name: *const c_char) |driver| {
        // SAFETY: the caller gives a name that ends with a zero.
        let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| INVALID_VALUE)?;
        let found = driver.function(module, name)?;
        give(function, found)
    }
    fn cuFuncGetAttribute(value: *mut c_int, attribute: c_int, function: usize) |driver| {
        const SHARED_SIZE_BYTES: c_int = 1;
        const BINARY_VERSION: c_int = 6;
        let Function { module, kernel, .. } = *driver.function_of(function)?;
        give(value, match attribute {
            SHARED_SIZE_BYTES => driver.modules[module].kernels[kernel].shared_bytes as c_int,
            BINARY_VERSION => driver.card.capability,
            // Registers and local memory are what an emulator has none of.
            _ => 0,
        })
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: *mut c_int,
        function: usize,
        threads: c_int,
        shared_bytes: usize,
        flags: c_uint
    ) |driver| {
        let _ = flags;
        let found = driver.blocks_at_once(function, threads, shared_bytes)?;
        give(blocks, found)
    }
    fn cuFuncSetAttribute(function: usize, attribute: c_int, value: c_int) |driver| {
        const MAX_DYNAMIC_SHARED_SIZE_BYTES: c_int = 8;
        const PREFERRED_SHARED_MEMORY_CARVEOUT: c_int = 9;
        let most = driver.card.shared_bytes_on_request();
        let function = driver.function_of(function)?;
        match (attribute, usize::try_from(value)) {
            (MAX_DYNAMIC_SHARED_SIZE_BYTES, Ok(bytes)) if bytes <= most => {
                function.shared_bytes = bytes;
                Ok(())
            }
            (PREFERRED_SHARED_MEMORY_CARVEOUT, Ok(0..=100)) => Ok(()),
            _ => Err(INVALID_VALUE),
        }
    }
}

/// `cuLaunchKernel`.
///
/// # Safety
/// `params` points to one pointer to the argument of the kernel.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: usize,
    blocks_x: c_uint,
    blocks_y: c_uint,
    blocks_z: c_uint,
    threads_x: c_uint,
    threads_y: c_uint,
    threads_z: c_uint,
    shared_bytes: c_uint,
    stream: u64,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Code {
    let _ = extra;
    let (blocks, threads) = ([blocks_x, blocks_y, blocks_z], [threads_x, threads_y, threads_z]);
    ask(|driver| {
        // SAFETY: passed on from the caller.
        let grid = unsafe { driver.grid(function, (blocks, threads, shared_bytes), params)? };
        count(|counts| counts.launches += 1);
        driver.streams.push(stream, Work::Launch(grid))
    })
}

/// The name of an error.
///
/// # Safety
/// `name` is valid for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(code: Code, name: *mut *const c_char) -> Code {
    let text = match code {
        0 => c"CUDA_SUCCESS",
        1 => c"CUDA_ERROR_INVALID_VALUE",
        2 => c"CUDA_ERROR_OUT_OF_MEMORY",
        100 => c"CUDA_ERROR_NO_DEVICE",
        101 => c"CUDA_ERROR_INVALID_DEVICE",
        200 => c"CUDA_ERROR_INVALID_IMAGE",
        209 => c"CUDA_ERROR_NO_BINARY_FOR_GPU",
        222 => c"CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
        400 => c"CUDA_ERROR_INVALID_HANDLE",
        500 => c"CUDA_ERROR_NOT_FOUND",
        600 => c"CUDA_ERROR_NOT_READY",
        719 => c"CUDA_ERROR_LAUNCH_FAILED",
        801 => c"CUDA_ERROR_NOT_SUPPORTED",
        _ => return INVALID_VALUE,
    };
    give(name, text.as_ptr()).err().unwrap_or(SUCCESS)
}

/// What an error means: its name says it.
///
/// # Safety
/// `text` is valid for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(code: Code, text: *mut *const c_char) -> Code {
    // SAFETY: passed on from the caller.
    unsafe { cuGetErrorName(code, text) }
}

fn require_pools(driver: &Driver) -> Result<(), Code> {
    if driver.card.has_pools { Ok(()) } else { Err(NOT_SUPPORTED) }
}

/// Writes what a compiler would say into the buffer that the options name.
///
/// # Safety
/// There are `count` options and values; a buffer has as many bytes as its size says.
unsafe fn write_log(count: usize, options: *const c_int, values: *const *mut c_void) {
    const ERROR_LOG_BUFFER: c_int = 5;
    const ERROR_LOG_BUFFER_SIZE_BYTES: c_int = 6;
    // SAFETY: passed on from the caller.
    let given = |i: usize| unsafe { (options.add(i).read(), values.add(i).read()) };
    let value = |wanted| (0..count).map(given).find(|(option, _)| *option == wanted);
    let (Some((_, buffer)), Some((_, size))) =
        (value(ERROR_LOG_BUFFER), value(ERROR_LOG_BUFFER_SIZE_BYTES))
    else {
        return;
    };
    let text = c"ptxas fatal : this card takes no image".to_bytes_with_nul();
    if size.addr() >= text.len() {
        // SAFETY: the buffer has room.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), buffer.cast(), text.len()) };
    }
}

/// From pageable memory the bytes are taken at once; pinned memory is read when the copy runs.
fn upload(driver: &Driver, to: u64, from: usize, len: usize) -> Work {
    // SAFETY: the caller of a copy gives `len` readable bytes.
    unsafe {
        if driver.is_pinned(from, len) {
            return Work::UploadPinned { to, from, len, hash: hash_of(from, len) };
        }
        Work::Upload { to, bytes: std::slice::from_raw_parts(from as *const u8, len).to_vec() }
    }
}

/// Attributes by their numbers in `cuda.h`; 0 for what nobody asks.
fn attribute_of(driver: &Driver, attribute: c_int) -> c_int {
    let card = &driver.card;
    match attribute {
        1 => 1024,                                     // MAX_THREADS_PER_BLOCK
        8 => 48 << 10,                                 // MAX_SHARED_MEMORY_PER_BLOCK
        10 => 32,                                      // WARP_SIZE
        16 => 4,                                       // MULTIPROCESSOR_COUNT
        39 => 1536,                                    // MAX_THREADS_PER_MULTIPROCESSOR
        75 => card.capability / 10,                    // COMPUTE_CAPABILITY_MAJOR
        76 => card.capability % 10,                    // COMPUTE_CAPABILITY_MINOR
        97 => card.shared_bytes_on_request() as c_int, // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        115 => card.has_pools.into(),                  // MEMORY_POOLS_SUPPORTED
        _ => 0,
    }
}
