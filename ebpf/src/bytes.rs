//! Copies that are not calls.

/// Copies a value to where nothing else refers to it. What an assignment through a pointer may
/// become, if the compiler cannot tell that the two do not overlap, is a call of a loop over bytes.
#[inline(always)]
pub fn copy<T: Copy>(from: &T, to: *mut T) {
    unsafe { core::ptr::copy_nonoverlapping(from, to, 1) };
}
