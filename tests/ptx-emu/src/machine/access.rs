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
            for (to, value) in to.iter().zip(found.chunks(ty.bytes())) {
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
            let mut written = [0; 16];
            for (place, values) in written.chunks_mut(each).zip(&values).take(from.len()) {
                place.copy_from_slice(&values[lane].to_le_bytes()[..each]);
            }
            room.write(self.who(pc, lane), space, address, &written[..bytes])?;
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

/// What is shorter than its register fills it up with its sign, or with zeros.
fn widened(ty: Type, bytes: &[u8]) -> u64 {
    let mut long = [0; 8];
    long[..bytes.len()].copy_from_slice(bytes);
    let value = u64::from_le_bytes(long);
    match ty {
        Type::S(1) => i32::from(value as i8) as u32 as u64,
        Type::S(2) => u64::from(i32::from(value as i16) as u32),
        _ => value,
    }
}

fn count(room: &mut Room, space: Space, lanes: u32, addresses: &[u64; 32], bytes: usize) {
    match space {
        Space::Shared => room.counters.shared(lanes, addresses, bytes),
        Space::Global => room.counters.global(lanes, addresses, bytes),
        _ => (),
    }
}
