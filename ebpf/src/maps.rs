//! The maps. Their sizes are what the loader uses unless it is told otherwise.

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, Queue, RingBuf, SockHash};
use weft_common::{
    Address, AddressEntry, Affinity, AffinityKey, BackendKey, COUNTERS as COUNTER_COUNT, Config,
    Connection, ConnectionKey, Datagram, DatagramKey, DatagramSlot, DatagramSlotKey, Decision,
    Endpoint, Fragment, FragmentKey, Lagging, Offsets, Pod, PodId, PodUse, PolicyEntry, PolicyKey,
    PortKey, Service, ServiceKey, SocketKey, SocketState, Translations,
};

/// Memory is taken when an entry is made, not when the map is.
const LAZY: u32 = BPF_F_NO_PREALLOC;

#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
/// Level of the root cgroup plus one; 0 while it is not known.
#[map]
pub static LEVEL: Array<u32> = Array::with_max_entries(1, 0);

#[map]
pub static CGROUPS: HashMap<u64, PodId> = HashMap::with_max_entries(4096, LAZY);
#[map]
pub static INTERFACES: HashMap<u32, PodId> = HashMap::with_max_entries(4096, LAZY);
#[map]
pub static PODS: HashMap<PodId, Pod> = HashMap::with_max_entries(4096, LAZY);
#[map]
pub static POD_USE: HashMap<PodId, PodUse> = HashMap::with_max_entries(4096, LAZY);

#[map]
pub static ADDRESSES: LpmTrie<Address, AddressEntry> = LpmTrie::with_max_entries(262_144, LAZY);
#[map]
pub static POLICY: HashMap<PolicyKey, PolicyEntry> = HashMap::with_max_entries(262_144, LAZY);
#[map]
pub static PORTS: LpmTrie<PortKey, Decision> = LpmTrie::with_max_entries(262_144, LAZY);

#[map]
pub static SERVICES: HashMap<ServiceKey, Service> = HashMap::with_max_entries(65_536, LAZY);
#[map]
pub static BACKENDS: HashMap<BackendKey, Endpoint> = HashMap::with_max_entries(262_144, LAZY);
#[map]
pub static AFFINITY: LruHashMap<AffinityKey, Affinity> = LruHashMap::with_max_entries(65_536, 0);

#[map]
pub static CONNECTIONS: HashMap<ConnectionKey, Connection> =
    HashMap::with_max_entries(262_144, LAZY);
/// A record of which nothing is known, from which records are made: it is too large for the stack.
#[map]
pub static BLANK: Array<Connection> = Array::with_max_entries(1, 0);
/// Both ends of every connection that is joined. A connection that finds it full goes over TCP. No
/// larger than is of use: each connection touches four of its buckets, all over it, and with four
/// times the entries a new connection took 4 % longer.
#[map]
pub static SOCKETS: SockHash<SocketKey> = SockHash::with_max_entries(65_536, 0);
/// Readers to be woken, by the address of their `tcp_sock`.
#[map]
pub static LAGGING: HashMap<u64, Lagging> = HashMap::with_max_entries(262_144, LAZY);
/// Readers that have just been entered into `LAGGING`, for the agent. One that finds it full is
/// found when the agent reads all of `LAGGING`, from time to time.
#[map]
pub static LAGGING_NEWS: Queue<u64> = Queue::with_max_entries(4096, 0);
#[btf_map]
pub static SOCKET_STATE: SkStorage<SocketState> = SkStorage::new();
/// The services that a socket has sent datagrams to.
#[btf_map]
pub static SOCKET_SERVICES: SkStorage<Translations> = SkStorage::new();

/// TCP connections without a record whose socket's last packet passed, and under which
/// generation. A socket enters it anew with each packet, so what is lost is soon found.
#[map]
pub static ADMITTED: LruHashMap<ConnectionKey, u32> = LruHashMap::with_max_entries(16_384, 0);

/// Refused SYNs that were reported: their sequence numbers, which are the same when they are sent
/// again.
#[map]
pub static REFUSED_SYNS: LruHashMap<ConnectionKey, u32> = LruHashMap::with_max_entries(8192, 0);

#[map]
pub static DATAGRAMS: HashMap<DatagramKey, Datagram> = HashMap::with_max_entries(262_144, LAZY);
#[map]
pub static DATAGRAM_RING: HashMap<DatagramSlotKey, DatagramSlot> =
    HashMap::with_max_entries(524_288, LAZY);
#[map]
pub static FRAGMENTS: HashMap<FragmentKey, Fragment> = HashMap::with_max_entries(65_536, LAZY);

/// Bytes in `FLOWS` unless the loader is told otherwise.
#[map]
pub static FLOWS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTER_COUNT, 0);

/// Where this kernel keeps the fields that acceleration reads.
#[unsafe(no_mangle)]
pub static OFFSETS: Global<Offsets> = Global::new(Offsets {
    rmem_alloc: 0,
    rcvbuf: 0,
    copied_seq: 0,
    rcv_nxt: 0,
    snd_una: 0,
    write_seq: 0,
});
