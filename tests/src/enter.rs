//! The way of a new process into its place, between `fork` and `exec`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Who a process is in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// All of root's.
    Root,
    /// Root with the capabilities that container runtimes grant by default, no more.
    Container,
    /// This user and group, no capabilities, and no way to get any.
    User(u32),
}

/// The default capabilities of containerd and Docker, as bits of capability numbers
/// (capabilities(7)): CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP,
/// NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
const CONTAINER: u64 = 1
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 7
    | 1 << 8
    | 1 << 10
    | 1 << 13
    | 1 << 18
    | 1 << 27
    | 1 << 29
    | 1 << 31;
/// Open files that a process may have, where the machine allows as many.
const OPEN_FILES: libc::rlim_t = 1 << 20;
/// Above every capability that the kernel knows; dropping an unknown one fails with EINVAL.
const CAPABILITIES: u64 = 64;

/// Has `command` start in the network namespace `namespace` and in the cgroup whose
/// `cgroup.procs` is open for writing, in a process group of its own.
pub(crate) fn enter(command: &mut Command, namespace: File, procs: File, privilege: Privilege) {
    command.process_group(0);
    // Container runtimes run with a limit far above a login's.
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open");
    let most = most.ok().and_then(|most| most.trim().parse().ok()).unwrap_or(OPEN_FILES);
    let most = OPEN_FILES.min(most);
    let files = libc::rlimit { rlim_cur: most, rlim_max: most };
    let step = move || {
        // SAFETY: plain system calls on descriptors that the closure owns.
        unsafe {
            if libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) != 0 {
                return Err(io::Error::last_os_error());
            }
            // "0" stands for the writing process.
            if libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) != 1 {
                return Err(io::Error::last_os_error());
            }
        }
        take(privilege, files)
    };
    // SAFETY: between fork and exec the closure makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(step) };
}

fn take(privilege: Privilege, files: libc::rlimit) -> io::Result<()> {
    let check = |result: libc::c_int| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    let kept = match privilege {
        Privilege::Root => return Ok(()),
        Privilege::Container => CONTAINER,
        Privilege::User(_) => 0,
    };
    // SAFETY: plain system calls; the pointers are to a limit on the stack and to no groups.
    unsafe {
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files);
        for capability in (0..CAPABILITIES).filter(|capability| kept & (1 << capability) == 0) {
            if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 {
                break;
            }
        }
        if let Privilege::User(id) = privilege {
            check(libc::setgroups(0, std::ptr::null()))?;
            check(libc::setresgid(id, id, id))?;
            check(libc::setresuid(id, id, id))?;
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        }
    }
    Ok(())
}
