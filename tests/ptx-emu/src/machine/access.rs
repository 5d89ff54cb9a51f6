//! Loads and stores.

use super::room::{Fault, Room};
use super::warp::Warp;
use crate::alu::SHARED_WINDOW;
use crate::ptx::{Address, Operand, Register, Space, Type};

impl Warp {
    /// The addresses of all lanes; a register of 32 bits may hold one of shared memory.
    pub(super) fn addresses(&self, address: Address) -> [u64; 32] {
        self.registers.longs(address.base).map(|base| base.wrapping_add_signed(address.offset))
    }

    pub(super) fn load(
        &mut self,
        room: &mut Room,
        pc: usize,
        lanes: u32,
        (space, ty): (Space, Type),
        to: &[Register],
        from: Address,
    ) -> Result<(), Fault> {
        let addresses = self.addresses(from);
        let bytes = ty.bytes() * to.len();
        count(room, space, lanes, &addresses, bytes);
        for lane in (0..32).filter(|lane| lanes >> lane & 1 == 1) {
            let (space, address) = resolve(space, addresses[lane]);
            let found = room.read(self.who(pc, lane), space, address, bytes)?;
            let found = u128::from_le_bytes(found);
            for (i, to) in to.iter().enumerate() {
                let value = (found >> (8 * ty.bytes() * i)) as u64;
                self.registers.set_lane(*to, lane, widened(ty, value));
            }
        }
        Ok(())
    }

    pub(super) fn store(
        &mut self,
        room: &mut Room,
        pc: usize,
        lanes: u32,
        (space, ty): (Space, Type),
        to: Address,
        from: &[Operand],
    ) -> Result<(), Fault> {
        let addresses = self.addresses(to);
        let (each, bytes) = (ty.bytes(), ty.bytes() * from.len());
        count(room, space, lanes, &addresses, bytes);
        let mut values = [[0; 32]; 4];
        for (values, from) in values.iter_mut().zip(from) {
            *values = self.registers.longs(*from);
        }
        for lane in (0..32).filter(|lane| lanes >> lane & 1 == 1) {
            let (space, address) = resolve(space, addresses[lane]);
            let mut written = 0;
            for (i, values) in values.iter().take(from.len()).enumerate() {
                written |= u128::from(values[lane] & mask(each)) << (8 * each * i);
            }
            room.write(self.who(pc, lane), space, address, &written.to_le_bytes()[..bytes])?;
        }
        Ok(())
    }
}

/// A generic address as one of a space.
fn resolve(space: Space, address: u64) -> (Space, u64) {
    match (space, address.checked_sub(SHARED_WINDOW)) {
        (Space::Generic, Some(shared)) => (Space::Shared, shared),
        (Space::Generic, None) => (Space::Global, address),
        _ => (space, address),
    }
}

/// The lowest `bytes` bytes.
const fn mask(bytes: usize) -> u64 {
    u64::MAX >> (64 - 8 * bytes)
}

/// The value in the lowest bytes: what is shorter than its register fills it up with its sign, or with
/// zeros.
fn widened(ty: Type, bits: u64) -> u64 {
    match ty {
        Type::S(1) => u64::from(i32::from(bits as i8) as u32),
        Type::S(2) => u64::from(i32::from(bits as i16) as u32),
        _ => bits & mask(ty.bytes()),
    }
}

fn count(room: &mut Room, space: Space, lanes: u32, addresses: &[u64; 32], bytes: usize) {
    match space {
        Space::Shared => room.counters.shared(lanes, addresses, bytes),
        Space::Global => room.counters.global(lanes, addresses, bytes),
        _ => (),
    }
}
