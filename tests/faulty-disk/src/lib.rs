//! A disk that fails: a library that a program under test loads before its C library (`LD_PRELOAD`).
//!
//! Every call that changes something in the folder `FAULTY_FOLDER` is counted: creating and opening for
//! writing, writing, forcing to the disk, renaming, removing. Call number `FAULTY_CALL`, from 1, goes wrong as
//! `FAULTY_HOW` says; the count so far is kept in the file `FAULTY_COUNT`. Everything else goes through.
//!
//! - `kill`: the process is killed before the call;
//! - `torn`: half of what is to be written is, then the process is killed; other calls are done first;
//! - `eio`, `enospc`: the call fails once; `full`: all calls that need room fail from there on;
//! - `forgotten`, `names`: the power goes before the call, or after the last one if there are fewer (see
//!   [`power`]).
#![cfg(target_os = "linux")]

pub mod power;

use std::cell::Cell;
use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use power::{Synced, Unsynced};

/// What is to happen, as the environment says.
struct Fault {
    folder: PathBuf,
    call: u64,
    how: How,
    /// Where the count is kept.
    count: c_int,
}

#[derive(Clone, Copy, PartialEq)]
enum How {
    Kill,
    Torn,
    Once(c_int),
    Full,
    Power(Unsynced),
}

/// What becomes of a call.
enum Fate {
    Through,
    Fails(c_int),
    Torn,
}

static CALLS: AtomicU64 = AtomicU64::new(0);
/// What the disk holds, where the power is going to go.
static DISK: Mutex<Option<Synced>> = Mutex::new(None);

thread_local! {
    /// Whether this thread is at work for the fault itself.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

fn fault() -> Option<&'static Fault> {
    static FAULT: OnceLock<Option<Fault>> = OnceLock::new();
    FAULT.get_or_init(Fault::of_environment).as_ref()
}

impl Fault {
    fn of_environment() -> Option<Self> {
        let count = std::env::var("FAULTY_COUNT").ok()?;
        let count = std::ffi::CString::new(count).ok()?;
        let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_CLOEXEC;
        // SAFETY: the path is a C string; the call is the kernel's own.
        let count = unsafe {
            libc::syscall(libc::SYS_openat, libc::AT_FDCWD, count.as_ptr(), flags, 0o644)
        };
        Some(Self {
            folder: PathBuf::from(std::env::var_os("FAULTY_FOLDER")?),
            call: std::env::var("FAULTY_CALL").ok()?.parse().ok()?,
            how: match std::env::var("FAULTY_HOW").ok()?.as_str() {
                "kill" => How::Kill,
                "torn" => How::Torn,
                "eio" => How::Once(libc::EIO),
                "enospc" => How::Once(libc::ENOSPC),
                "forgotten" => How::Power(Unsynced::Forgotten),
                "names" => How::Power(Unsynced::NamesOnly),
                _ => How::Full,
            },
            count: count as c_int,
        })
    }

    /// Counts a call that concerns `path`, and says what becomes of it.
    fn meet(&self, path: &Path, needs_room: bool) -> Fate {
        if INSIDE.get() || !path.starts_with(&self.folder) {
            return Fate::Through;
        }
        static ORDER: Mutex<()> = Mutex::new(());
        let _order = ORDER.lock();
        let number = CALLS.fetch_add(1, Ordering::SeqCst) + 1;
        if number == 1 {
            // What a run finds has been there for long.
            self.on_disk(|_| Ok(()));
        }
        self.tell(number);
        match self.how {
            How::Full if number >= self.call && needs_room => Fate::Fails(libc::ENOSPC),
            How::Kill if number == self.call => die(),
            How::Power(unsynced) if number == self.call => {
                self.power_goes(unsynced);
                die()
            }
            How::Torn if number == self.call => Fate::Torn,
            How::Once(error) if number == self.call => Fate::Fails(error),
            _ => Fate::Through,
        }
    }

    fn power_goes(&self, unsynced: Unsynced) {
        self.on_disk(|disk| disk.power_goes(&self.folder, unsynced));
    }

    /// Does `work` on what the disk holds, where that is asked for.
    fn on_disk(&self, work: impl FnOnce(&mut Synced) -> io::Result<()>) {
        let How::Power(_) = self.how else { return };
        INSIDE.set(true);
        let mut disk = DISK.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = || Synced::of(&self.folder);
        let outcome = match &mut *disk {
            Some(disk) => work(disk),
            none => begin().and_then(|disk| work(none.insert(disk))),
        };
        if outcome.is_err() {
            std::process::abort();
        }
        INSIDE.set(false);
    }

    fn tell(&self, number: u64) {
        let text = format!("{number:08}");
        // SAFETY: as many bytes as the text has.
        unsafe {
            libc::syscall(libc::SYS_pwrite64, self.count, text.as_ptr(), text.len(), 0_i64);
        }
    }
}

fn die() -> ! {
    // SAFETY: signals are sent to this process alone.
    unsafe {
        libc::syscall(libc::SYS_kill, libc::getpid(), libc::SIGKILL);
    }
    std::process::abort()
}

/// The result of a call that fails.
fn failed(error: c_int) -> isize {
    // SAFETY: the place of this thread's error number.
    unsafe { *libc::__errno_location() = error };
    -1
}

/// What the kernel answers, as the C library gives it.
fn answer(result: libc::c_long) -> isize {
    result as isize
}

/// The path of an open file.
fn path_of(file: c_int) -> PathBuf {
    let link = format!("/proc/self/fd/{file}\0");
    let mut path = [0_u8; 4096];
    // SAFETY: a C string, and room for as many bytes as are named.
    let len = unsafe {
        libc::syscall(
            libc::SYS_readlinkat,
            libc::AT_FDCWD,
            link.as_ptr(),
            path.as_mut_ptr(),
            path.len(),
        )
    };
    PathBuf::from(OsStr::from_bytes(&path[..usize::try_from(len).unwrap_or(0)]))
}

/// A path as a program names it, from the folder `at`.
///
/// # Safety
/// `path` is a C string.
unsafe fn named(at: c_int, path: *const c_char) -> PathBuf {
    // SAFETY: passed on from the caller.
    let path = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()));
    match at {
        _ if path.is_absolute() => path.to_owned(),
        libc::AT_FDCWD => std::env::current_dir().unwrap_or_default().join(path),
        at => path_of(at).join(path),
    }
}

/// Does `call`, which concerns `path`, or lets it fail; where it is torn, the process ends after it.
fn through(path: &Path, needs_room: bool, call: impl Fn() -> libc::c_long) -> isize {
    match fault().map_or(Fate::Through, |fault| fault.meet(path, needs_room)) {
        Fate::Through => answer(call()),
        Fate::Fails(error) => failed(error),
        Fate::Torn => {
            call();
            die()
        }
    }
}

/// The same for one that, once done, has changed what the disk holds.
fn through_to_disk(
    path: &Path,
    needs_room: bool,
    call: impl Fn() -> libc::c_long,
    change: impl FnOnce(&mut Synced) -> io::Result<()>,
) -> isize {
    let result = through(path, needs_room, call);
    let here = |fault: &&Fault| result >= 0 && !INSIDE.get() && path.starts_with(&fault.folder);
    if let Some(fault) = fault().filter(here) {
        fault.on_disk(change);
    }
    result
}

/// The same for one that writes `len` bytes: of a torn one, half are written.
fn writes(file: c_int, len: usize, call: impl Fn(usize) -> libc::c_long) -> isize {
    let Some(fault) = fault() else { return answer(call(len)) };
    match fault.meet(&path_of(file), true) {
        Fate::Through => answer(call(len)),
        Fate::Fails(error) => failed(error),
        Fate::Torn => {
            call(len / 2);
            die()
        }
    }
}

/// Calls of the C library that this one takes the place of.
///
/// # Safety
/// All of them demand what the C library's do.
macro_rules! calls {
    ($(fn $name:ident($($arg:ident: $type:ty),*) -> $result:ty $body:block)*) => {
        $(
            /// As in the C library.
            ///
            /// # Safety
            /// As there.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($arg: $type),*) -> $result {
                // SAFETY: the caller keeps the C library's contract, which is that of the kernel.
                #[allow(unused_unsafe, reason = "not every call needs it")]
                unsafe { ($body) as $result }
            }
        )*
    };
}

/// Opens, counted where it creates or writes.
///
/// # Safety
/// `path` is a C string.
unsafe fn open_at(at: c_int, path: *const c_char, flags: c_int, mode: libc::mode_t) -> isize {
    // SAFETY: passed on from the caller.
    let call = || unsafe { libc::syscall(libc::SYS_openat, at, path, flags, mode) };
    match flags & (libc::O_CREAT | libc::O_WRONLY | libc::O_RDWR) {
        0 => answer(call()),
        _ => {
            // SAFETY: passed on from the caller.
            let path = unsafe { named(at, path) };
            let is_new = !path.exists();
            through_to_disk(&path, true, call, |disk| match is_new {
                true => disk.made(&path),
                false => Ok(()),
            })
        }
    }
}

calls! {
    fn open(path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
        open_at(libc::AT_FDCWD, path, flags, mode)
    }
    fn open64(path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
        open_at(libc::AT_FDCWD, path, flags, mode)
    }
    fn openat(at: c_int, path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
        open_at(at, path, flags, mode)
    }
    fn openat64(at: c_int, path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
        open_at(at, path, flags, mode)
    }
    fn write(file: c_int, from: *const c_void, len: usize) -> isize {
        writes(file, len, |len| libc::syscall(libc::SYS_write, file, from, len))
    }
    fn pwrite64(file: c_int, from: *const c_void, len: usize, at: i64) -> isize {
        writes(file, len, |len| libc::syscall(libc::SYS_pwrite64, file, from, len, at))
    }
    fn pwrite(file: c_int, from: *const c_void, len: usize, at: i64) -> isize {
        writes(file, len, |len| libc::syscall(libc::SYS_pwrite64, file, from, len, at))
    }
    fn fsync(file: c_int) -> c_int {
        let path = path_of(file);
        let call = || libc::syscall(libc::SYS_fsync, file);
        through_to_disk(&path, false, call, |disk| disk.force(&path))
    }
    fn rename(from: *const c_char, to: *const c_char) -> c_int {
        let at = libc::AT_FDCWD;
        through(&named(at, to), false, || {
            libc::syscall(libc::SYS_renameat2, at, from, at, to, 0)
        })
    }
    fn mkdir(path: *const c_char, mode: libc::mode_t) -> c_int {
        let (at, made) = (libc::AT_FDCWD, named(libc::AT_FDCWD, path));
        let call = || libc::syscall(libc::SYS_mkdirat, at, path, mode);
        through_to_disk(&made, true, call, |disk| disk.made(&made))
    }
    fn unlink(path: *const c_char) -> c_int {
        let at = libc::AT_FDCWD;
        through(&named(at, path), false, || libc::syscall(libc::SYS_unlinkat, at, path, 0))
    }
    fn rmdir(path: *const c_char) -> c_int {
        let (at, how) = (libc::AT_FDCWD, libc::AT_REMOVEDIR);
        through(&named(at, path), false, || libc::syscall(libc::SYS_unlinkat, at, path, how))
    }
    fn unlinkat(at: c_int, path: *const c_char, how: c_int) -> c_int {
        through(&named(at, path), false, || libc::syscall(libc::SYS_unlinkat, at, path, how))
    }
}

/// The power that was to go at a call which the process did not come to goes as it ends.
extern "C" fn at_the_end() {
    let Some(fault) = fault() else { return };
    if let How::Power(unsynced) = fault.how
        && CALLS.load(Ordering::SeqCst) < fault.call
    {
        fault.power_goes(unsynced);
    }
}

#[used]
#[unsafe(link_section = ".fini_array")]
static AT_THE_END: extern "C" fn() = at_the_end;
