//! The trial that decides about acceleration when the agent starts: a pair of sockets of its own
//! is joined by this program and this map, and the agent looks whether the kernel charges
//! redirected bytes to the reader's `sk_rmem_alloc`. Neither is pinned or attached to a cgroup.

use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::macros::{map, sk_msg};
use aya_ebpf::maps::SockMap;
use aya_ebpf::programs::SkMsgContext;

/// The writer at 0, the reader at 1.
#[map]
static TRIAL: SockMap = SockMap::with_max_entries(2, 0);

/// Moves every message to the reader.
#[sk_msg]
pub fn trial_redirect(context: SkMsgContext) -> u32 {
    // SAFETY: the context is the one the kernel has passed, and the map outlives the call.
    unsafe { TRIAL.redirect_msg(&context, 1, BPF_F_INGRESS.into()) as u32 }
}
