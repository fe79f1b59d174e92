//! Atomic operations on map values, which `core` does not offer for this target.

use core::arch::asm;

/// Adds to a value, and returns what it was. `value` lies in a map.
#[inline(always)]
pub fn fetch_add(value: *mut u64, mut number: u64) -> u64 {
    // SAFETY: the verifier checks that `value` points to eight bytes of a map's value.
    unsafe {
        asm!(
            "{number} = atomic_fetch_add((u64 *)({value} + 0), {number})",
            value = in(reg) value,
            number = inout(reg) number,
        );
    }
    number
}

/// Sets a value, and returns what it was. `value` lies in a map.
#[inline(always)]
pub fn swap(value: *mut u64, mut new: u64) -> u64 {
    // SAFETY: as above.
    unsafe {
        asm!(
            "{new} = xchg_64({value} + 0, {new})",
            value = in(reg) value,
            new = inout(reg) new,
        );
    }
    new
}
