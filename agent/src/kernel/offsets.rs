//! Where the kernel's own structures keep what the acceleration looks at, from the kernel's BTF.

use std::io;

use btf_rs::{Btf, Type};
use weft_common::Offsets;

const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";

/// Why the offsets are not known.
#[derive(Debug, thiserror::Error)]
pub enum OffsetsError {
    /// The kernel's BTF cannot be read.
    #[error("cannot read the kernel's BTF at {KERNEL_TYPES}: {0}")]
    Read(String),
    /// The kernel has no such field.
    #[error("the kernel's BTF has no field `{field}` in `struct {structure}`")]
    Missing {
        /// The structure.
        structure: &'static str,
        /// The path of the field.
        field: &'static str,
    },
}

/// The offsets in the running kernel.
///
/// # Errors
/// If the kernel tells nothing about its types, or a field is not there.
pub fn of_this_kernel() -> Result<Offsets, OffsetsError> {
    let types = Btf::from_file(KERNEL_TYPES)
        .map_err(|error| OffsetsError::Read(io::Error::other(error).to_string()))?;
    let find = |structure, field| {
        offset_of(&types, structure, field).ok_or(OffsetsError::Missing { structure, field })
    };
    Ok(Offsets {
        rmem_alloc: find("sock", "sk_backlog.rmem_alloc")?,
        rcvbuf: find("sock", "sk_rcvbuf")?,
        copied_seq: find("tcp_sock", "copied_seq")?,
        rcv_nxt: find("tcp_sock", "rcv_nxt")?,
        snd_una: find("tcp_sock", "snd_una")?,
        write_seq: find("tcp_sock", "write_seq")?,
    })
}

/// The offset in bytes of a field, named by its path through embedded structures.
fn offset_of(types: &Btf, structure: &str, path: &str) -> Option<u32> {
    let mut current = types
        .resolve_types_by_name(structure)
        .ok()?
        .into_iter()
        .find(|found| matches!(found, Type::Struct(_)))?;
    let mut bits = 0;
    for name in path.split('.') {
        let (offset, member) = member_of(types, &current, name)?;
        bits += offset;
        current = member;
    }
    (bits % 8 == 0).then_some(bits / 8)
}

/// A member's offset in bits and its type, looked for also in members without a name.
fn member_of(types: &Btf, structure: &Type, name: &str) -> Option<(u32, Type)> {
    let (Type::Struct(structure) | Type::Union(structure)) = structure else { return None };
    for member in &structure.members {
        let resolved = || types.resolve_chained_type(member).ok();
        match types.resolve_name(member) {
            Ok(found) if found == name => return Some((member.bit_offset(), resolved()?)),
            Ok(found) if !found.is_empty() => {}
            _ => {
                if let Some((offset, found)) = member_of(types, &resolved()?, name) {
                    return Some((member.bit_offset() + offset, found));
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_fields_of_this_kernel() {
        let offsets = of_this_kernel().unwrap();
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        if release.starts_with("6.18.") && cfg!(target_arch = "x86_64") {
            // What `pahole` shows there.
            let known = Offsets {
                rmem_alloc: 192,
                rcvbuf: 244,
                copied_seq: 1464,
                rcv_nxt: 1664,
                snd_una: 1672,
                write_seq: 1576,
            };
            assert_eq!(offsets, known);
        }
        assert!(offsets.rmem_alloc < offsets.copied_seq, "struct sock comes first in tcp_sock");
    }

    #[test]
    fn a_field_that_is_not_there_is_named() {
        let types = Btf::from_file(KERNEL_TYPES).unwrap();
        assert_eq!(offset_of(&types, "tcp_sock", "no_such_field"), None);
        assert_eq!(offset_of(&types, "no_such_struct", "x"), None);
        // In an anonymous union or structure of `struct sock_common`.
        assert!(offset_of(&types, "sock_common", "skc_daddr").is_some());
    }
}
