//! Panics of foreign code become errors.
//!
//! The `tokenizers` crate panics on some crafted files, at load and at use. [`catch`] turns such a
//! panic into a message and keeps it off standard error. The panic hook is global, so it is wrapped
//! once and decides by a flag of the thread; panics of all other code print as before.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; a panic in it becomes `Err` with the panic's message.
///
/// `work` must leave nothing half-changed behind when it panics: callers pass closures that only
/// read, or that build a value which is lost with the panic.
pub(super) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    wrap_hook();
    let before = QUIET.replace(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(work));
    QUIET.set(before);
    outcome.map_err(|payload| message(payload.as_ref()))
}

fn wrap_hook() {
    static WRAPPED: Once = Once::new();
    WRAPPED.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                loud(info);
            }
        }));
    });
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message_and_nested_calls_stay_quiet() {
        let outer = catch(|| {
            assert_eq!(catch(|| panic!("inner")), Err::<(), _>("inner".into()));
            assert!(QUIET.get());
            panic!("outer {}", 1)
        });
        assert_eq!(outer, Err::<(), _>("outer 1".into()));
        assert!(!QUIET.get());
    }
}
