//! The system calls that aya and rustix do not offer: everything unsafe of this crate.
//!
//! Links are made and replaced here, because aya replaces programs only in XDP and tc links, and
//! detaches what it attached when it is dropped; ours outlive the agent.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;
use aya_obj::generated::{
    bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_link_type, bpf_prog_info,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Where a program is attached.
#[derive(Clone, Copy)]
pub(super) enum Target<'a> {
    /// A cgroup's directory.
    Cgroup(BorrowedFd<'a>),
    /// A network interface of the calling thread's namespace.
    Interface(u32),
    /// What an iterator goes through, in a map.
    Map(BorrowedFd<'a>),
    /// Nowhere: it runs when it is told to.
    Nothing,
}

/// What the kernel says of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkInfo {
    /// The link's id.
    pub id: u32,
    /// The program's id.
    pub program: u32,
    /// The inode of the cgroup it is attached to; 0 where there is none (any more).
    pub cgroup: u64,
    /// The interface it is attached to; 0 where there is none (any more).
    pub interface: u32,
}

fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: `attributes` is a whole `bpf_attr`, zeroed but for what the command reads, and the
    // pointers in it are to buffers that the callers in this module keep alive and sized.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_mut(attributes),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn attributes() -> bpf_attr {
    // SAFETY: a union of plain integers, for which all zeroes is a value.
    unsafe { zeroed() }
}

fn owned(descriptor: i64) -> OwnedFd {
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(descriptor as i32) }
}

fn raw(descriptor: &impl AsFd) -> u32 {
    descriptor.as_fd().as_raw_fd() as u32
}

fn path_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Opens what is pinned at `path`.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = path_string(path)?;
    let mut attributes = attributes();
    attributes.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    bpf(bpf_cmd::BPF_OBJ_GET, &mut attributes).map(owned)
}

/// Pins a link, program or map at `path`.
pub(super) fn pin(object: impl AsFd, path: &Path) -> io::Result<()> {
    let path = path_string(path)?;
    let mut attributes = attributes();
    attributes.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attributes.__bindgen_anon_4.bpf_fd = raw(&object);
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attributes).map(drop)
}

/// Attaches a program by a link.
pub(super) fn create_link(
    program: impl AsFd,
    target: Target<'_>,
    attach_type: bpf_attach_type,
) -> io::Result<OwnedFd> {
    let mut attributes = attributes();
    attributes.link_create.__bindgen_anon_1.prog_fd = raw(&program);
    // The kernel's `union bpf_iter_link_info`, as far as it is looked at.
    let iterated: u32;
    match target {
        Target::Cgroup(directory) => {
            attributes.link_create.__bindgen_anon_2.target_fd = raw(&directory);
        }
        Target::Interface(index) => {
            attributes.link_create.__bindgen_anon_2.target_ifindex = index;
        }
        Target::Map(map) => {
            iterated = raw(&map);
            attributes.link_create.__bindgen_anon_3.__bindgen_anon_1.iter_info =
                std::ptr::from_ref(&iterated) as u64;
            attributes.link_create.__bindgen_anon_3.__bindgen_anon_1.iter_info_len =
                size_of_val(&iterated) as u32;
        }
        Target::Nothing => {}
    }
    attributes.link_create.attach_type = attach_type as u32;
    bpf(bpf_cmd::BPF_LINK_CREATE, &mut attributes).map(owned)
}

/// What an iterator's program writes while the kernel runs it for all that it goes through.
pub(super) struct IteratorOutput(File);

impl IteratorOutput {
    /// Begins a run; sockets are those of the calling thread's network namespace.
    pub(super) fn begin(link: impl AsFd) -> io::Result<Self> {
        let mut attributes = attributes();
        attributes.iter_create.link_fd = raw(&link);
        bpf(bpf_cmd::BPF_ITER_CREATE, &mut attributes).map(|output| Self(owned(output).into()))
    }

    /// Lets the program run on until it has written about so many bytes (32 KiB at most). 0: it has
    /// been through all.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                // The kernel looks at a million objects at most without a rest.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }
}

/// Runs an iterator's program, which writes nothing, for everything that it goes through; sockets
/// are those of the calling thread's network namespace.
pub(super) fn run_iterator(link: impl AsFd) -> io::Result<()> {
    let mut output = IteratorOutput::begin(link)?;
    while output.read(&mut [0; 64])? > 0 {}
    Ok(())
}

/// Replaces the program of a link, atomically.
pub(super) fn update_link(link: impl AsFd, program: impl AsFd) -> io::Result<()> {
    let mut attributes = attributes();
    attributes.link_update.link_fd = raw(&link);
    attributes.link_update.__bindgen_anon_1.new_prog_fd = raw(&program);
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attributes).map(drop)
}

/// Detaches the program of a link, at once and whoever else has the link open. What is no link is
/// left alone, and so are links of kernels before 5.9: there a program goes with the last reference
/// to its link.
pub(super) fn detach_link(link: impl AsFd) -> io::Result<()> {
    let mut attributes = attributes();
    attributes.link_detach.link_fd = raw(&link);
    match bpf(bpf_cmd::BPF_LINK_DETACH, &mut attributes) {
        Err(error) if !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
            Err(error)
        }
        _ => Ok(()),
    }
}

/// Attaches a program to a map of sockets, atomically in the place of the one that is there.
pub(super) fn attach_to_map(
    program: impl AsFd,
    map: impl AsFd,
    attach_type: bpf_attach_type,
) -> io::Result<()> {
    let mut attributes = attributes();
    attributes.__bindgen_anon_5.__bindgen_anon_1.target_fd = raw(&map);
    attributes.__bindgen_anon_5.attach_bpf_fd = raw(&program);
    attributes.__bindgen_anon_5.attach_type = attach_type as u32;
    bpf(bpf_cmd::BPF_PROG_ATTACH, &mut attributes).map(drop)
}

/// What the kernel knows of a link.
pub(super) fn link_info(link: impl AsFd) -> io::Result<LinkInfo> {
    // SAFETY: plain integers and unions of them.
    let mut info: bpf_link_info = unsafe { zeroed() };
    let mut attributes = attributes();
    attributes.info.bpf_fd = raw(&link);
    attributes.info.info_len = size_of::<bpf_link_info>() as u32;
    attributes.info.info = std::ptr::from_mut(&mut info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    let (mut cgroup, mut interface) = (0, 0);
    if info.type_ == bpf_link_type::BPF_LINK_TYPE_CGROUP as u32 {
        // SAFETY: the kernel has filled in the member that belongs to the type.
        cgroup = unsafe { info.__bindgen_anon_1.cgroup.cgroup_id };
    } else if info.type_ == bpf_link_type::BPF_LINK_TYPE_TCX as u32 {
        // SAFETY: as above.
        interface = unsafe { info.__bindgen_anon_1.tcx.ifindex };
    }
    Ok(LinkInfo { id: info.id, program: info.prog_id, cgroup, interface })
}

/// A program's id.
pub(super) fn program_id(program: impl AsFd) -> io::Result<u32> {
    // SAFETY: plain integers.
    let mut info: bpf_prog_info = unsafe { zeroed() };
    let mut attributes = attributes();
    attributes.info.bpf_fd = raw(&program);
    attributes.info.info_len = size_of::<bpf_prog_info>() as u32;
    attributes.info.info = std::ptr::from_mut(&mut info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(info.id)
}

/// The ids of the programs attached to a cgroup itself (not to its ancestors).
pub(super) fn attached_programs(
    cgroup: impl AsFd,
    attach_type: bpf_attach_type,
) -> io::Result<Vec<u32>> {
    // The kernel attaches at most 64 programs to one hook of a cgroup (BPF_CGROUP_MAX_PROGS).
    let mut ids = vec![0u32; 64];
    let mut attributes = attributes();
    attributes.query.__bindgen_anon_1.target_fd = raw(&cgroup);
    attributes.query.attach_type = attach_type as u32;
    attributes.query.prog_ids = ids.as_mut_ptr() as u64;
    attributes.query.__bindgen_anon_2.prog_cnt = ids.len() as u32;
    bpf(bpf_cmd::BPF_PROG_QUERY, &mut attributes)?;
    // SAFETY: the kernel has written how many there are.
    ids.truncate(unsafe { attributes.query.__bindgen_anon_2.prog_cnt } as usize);
    Ok(ids)
}

/// All entries of a hash map, read many at a time. Entries that change meanwhile may be missed
/// or seen twice.
pub(super) fn read_hash<K: Pod, V: Pod>(
    map: impl AsFd,
    mut each: impl FnMut(&K, &V),
) -> io::Result<()> {
    const BATCH: usize = 1024;
    // The size of a batch has to hold the fullest bucket; it is doubled when it does not.
    let mut size = BATCH;
    let mut cursor = 0u32;
    let mut started = false;
    loop {
        let mut keys: Vec<K> = Vec::with_capacity(size);
        let mut values: Vec<V> = Vec::with_capacity(size);
        let mut next = 0u32;
        let mut attributes = attributes();
        attributes.batch.map_fd = raw(&map);
        attributes.batch.in_batch =
            if started { std::ptr::from_mut(&mut cursor) as u64 } else { 0 };
        attributes.batch.out_batch = std::ptr::from_mut(&mut next) as u64;
        attributes.batch.keys = keys.as_mut_ptr() as u64;
        attributes.batch.values = values.as_mut_ptr() as u64;
        attributes.batch.count = size as u32;
        let result = bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attributes);
        let last = match result {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && size < 1 << 20 => {
                size *= 2;
                continue;
            }
            Err(error) => return Err(error),
        };
        // SAFETY: the kernel has written this many keys and values, of the map's own sizes, which
        // are those of `K` and `V` (compared when the map was opened); each is plain bytes.
        unsafe {
            let count = (attributes.batch.count as usize).min(size);
            keys.set_len(count);
            values.set_len(count);
        }
        for (key, value) in keys.iter().zip(&values) {
            each(key, value);
        }
        if last {
            return Ok(());
        }
        cursor = next;
        started = true;
    }
}

/// How many keys a map has: counts them, up to `limit`.
pub(super) fn count_keys(map: impl AsFd, key_size: u32, limit: u32) -> io::Result<u32> {
    let mut key = vec![0u8; key_size as usize];
    let mut next = vec![0u8; key_size as usize];
    for count in 0..limit {
        let mut attributes = attributes();
        attributes.__bindgen_anon_2.map_fd = raw(&map);
        attributes.__bindgen_anon_2.key = if count == 0 { 0 } else { key.as_mut_ptr() as u64 };
        attributes.__bindgen_anon_2.__bindgen_anon_1.next_key = next.as_mut_ptr() as u64;
        match bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attributes) {
            Ok(_) => std::mem::swap(&mut key, &mut next),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(count),
            Err(error) => return Err(error),
        }
    }
    Ok(limit)
}

/// Makes a ring buffer or a socket something that can be waited for inside a tokio runtime.
pub(super) fn wait_for<T: AsFd + AsRawFd + 'static>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: what is passed here (a ring buffer or its reader, a socket) owns its descriptor, and
    // that one alone, for as long as it lives.
    unsafe { AsyncFd::register_with_interest(owner, Interest::READABLE) }.map_err(io::Error::from)
}

/// A value from its bytes, if they are as many as it has.
pub(super) fn from_bytes<T: Pod>(bytes: &[u8]) -> Option<T> {
    (bytes.len() == size_of::<T>()).then(|| {
        // SAFETY: the length is right, the read needs no alignment, and every bit pattern is a
        // value of a `Pod`.
        unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
    })
}

/// How many bytes wait in a socket's receive queue, as the kernel charges them
/// (`sk_rmem_alloc`, the first word of `SO_MEMINFO`).
pub(super) fn receive_memory(socket: impl AsFd) -> io::Result<u32> {
    let mut words = [0u32; 16];
    let mut length = size_of_val(&words) as libc::socklen_t;
    // SAFETY: `words` and `length` are valid for writing, and `length` is the size of `words`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            words.as_mut_ptr().cast(),
            &mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(words[0]) }
}

/// Gives memory that is free back to the system. glibc keeps what lies between pieces in use, and
/// that is much after a start: objects are decoded one by one among those that stay.
pub(crate) fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number, and locks what other threads allocate from while it works.
    unsafe {
        libc::malloc_trim(0);
    }
}
