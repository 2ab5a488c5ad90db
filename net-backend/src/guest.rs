//! What the guest behind a port has asked for through its control queue, and the execution of its commands.

use crate::config::{Facts, NetConfig};
use crate::ctrl::{Command, ERR, HashConfig, MAX_COMMAND, OK, Offered, ReceiveMode, Table};
use crate::features::{
    VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_HASH_REPORT,
    VIRTIO_NET_F_MQ,
};
use crate::frame::MacAddr;
use crate::frame::hash::{KEY_LEN, Rss};
use crate::options::PortOptions;
use crate::port::{Coalescing, Port};
use crate::service::{ControlQueue, Message, Steering};
use crate::switch::{Fabric, PortPolicy, ReceiveFilter, VlanSet};
use memory::MemoryView;
use runtime::worker::WorkerHandle;
use serde::{Deserialize, Serialize, Serializer};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use vhost_user::Notifier;
use virtqueue::{Chain, DeviceRing, Ring};

/// Commands executed before other rings get their turn.
const COMMANDS_A_ROUND: u16 = 16;

/// Everything a guest may set. A new driver begins with the default; a migrated one goes on with what it had.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    mac: Option<MacAddr>,
    promisc: bool,
    allmulti: bool,
    alluni: bool,
    nomulti: bool,
    nouni: bool,
    nobcast: bool,
    /// `None`: more than can be filtered.
    unicast: Option<Vec<MacAddr>>,
    multicast: Option<Vec<MacAddr>>,
    #[serde(serialize_with = "as_list")]
    vlans: Option<VlanSet>,
    pairs: u16,
    offloads: u64,
    hash: Option<(u32, Vec<u8>)>,
    /// Table, pair of unclassified frames.
    rss: Option<(Vec<u16>, u16)>,
    #[serde(default)]
    coalesce_receive: Coalescing,
    #[serde(default)]
    coalesce_transmit: Coalescing,
}

/// As numbers: the text of an empty set is none.
fn as_list<S: Serializer>(vlans: &Option<VlanSet>, serializer: S) -> Result<S::Ok, S::Error> {
    vlans.as_ref().map(|vlans| vlans.iter().collect::<Vec<_>>()).serialize(serializer)
}

impl Settings {
    fn new(features: u64, pairs: u16, mac: Option<MacAddr>) -> Self {
        // One pair until the driver asks for more (virtio 1.3 §5.1.5); without a control queue of its own, the frontend
        // enables those that it wants.
        let asks = VIRTIO_NET_F_CTRL_VQ | VIRTIO_NET_F_MQ;
        Self {
            mac,
            promisc: true,
            allmulti: false,
            alluni: false,
            nomulti: false,
            nouni: false,
            nobcast: false,
            unicast: Some(Vec::new()),
            multicast: Some(Vec::new()),
            vlans: (features & VIRTIO_NET_F_CTRL_VLAN != 0).then(VlanSet::none),
            pairs: if features & asks == asks { 1 } else { pairs },
            offloads: features,
            hash: None,
            rss: None,
            coalesce_receive: Coalescing::default(),
            coalesce_transmit: Coalescing::default(),
        }
    }

    fn filter(&self) -> ReceiveFilter {
        ReceiveFilter {
            mac: self.mac,
            promisc: self.promisc,
            allmulti: self.allmulti || self.multicast.is_none(),
            alluni: self.alluni || self.unicast.is_none(),
            nomulti: self.nomulti,
            nouni: self.nouni,
            nobcast: self.nobcast,
            unicast: self.unicast.clone().unwrap_or_default(),
            multicast: self.multicast.clone().unwrap_or_default(),
            vlans: self.vlans.clone(),
        }
    }

    fn steering(&self, report: bool) -> Option<Steering> {
        let (types, key) = self.hash.as_ref()?;
        let (table, unclassified) = self.rss.clone().unwrap_or_default();
        let mut padded = [0; KEY_LEN];
        let len = key.len().min(padded.len());
        padded[..len].copy_from_slice(&key[..len]);
        Some(Steering { rss: Rss::new(padded, *types), report, table: table.into(), unclassified })
    }

    /// Whether a state that came from elsewhere could have been made here.
    fn is_sound(&self, port: &Port) -> bool {
        let pairs = 1..=port.pairs();
        let table = self.rss.as_ref().is_none_or(|(table, unclassified)| {
            let known = |pair: &u16| *pair < port.pairs();
            table.len().is_power_of_two()
                && table.len() <= 128
                && table.iter().all(known)
                && known(unclassified)
        });
        let few = |list: &Option<Vec<MacAddr>>| {
            list.as_ref().is_none_or(|list| list.len() <= crate::ctrl::MAX_TABLE)
        };
        pairs.contains(&self.pairs) && table && few(&self.unicast) && few(&self.multicast)
    }
}

/// Addresses that the operator gave a port.
#[derive(Clone, Debug)]
struct Own {
    mac: Option<MacAddr>,
    all: Vec<MacAddr>,
    anti_spoof: bool,
}

/// The guest of one port, shared by its session, its control queue and the control socket.
pub struct Guest {
    port: Arc<Port>,
    options: Arc<PortOptions>,
    fabric: Arc<Fabric>,
    workers: Vec<WorkerHandle<Message>>,
    settings: Mutex<Settings>,
    /// What the operator says of its addresses, which may change.
    own: Mutex<Own>,
    announce: AtomicBool,
    commands: AtomicU64,
    refused: AtomicU64,
    notifier: OnceLock<Notifier>,
}

impl Guest {
    /// A guest that has not said anything.
    pub fn new(
        port: Arc<Port>,
        options: Arc<PortOptions>,
        fabric: Arc<Fabric>,
        workers: Vec<WorkerHandle<Message>>,
    ) -> Self {
        let settings = Mutex::new(Settings::new(0, port.pairs(), options.mac));
        let policy = &options.policy;
        let own = Own { mac: options.mac, all: policy.macs.clone(), anti_spoof: policy.anti_spoof };
        Self {
            port,
            options,
            fabric,
            workers,
            settings,
            own: Mutex::new(own),
            announce: AtomicBool::new(false),
            commands: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            notifier: OnceLock::new(),
        }
    }

    /// Its port.
    pub fn port(&self) -> &Arc<Port> {
        &self.port
    }

    /// What its port was configured to be.
    pub fn options(&self) -> &Arc<PortOptions> {
        &self.options
    }

    /// How the frontend is told of a changed configuration space, once there is a session.
    pub fn set_notifier(&self, notifier: Notifier) {
        // Set once: a port has one session as long as it exists.
        let _ = self.notifier.set(notifier);
    }

    /// The configuration space at this moment.
    pub fn config(&self) -> NetConfig {
        let mtu = if self.options.mtu.is_some() { self.port.mtu() } else { 0 };
        let facts = Facts {
            mac: self.lock().mac,
            link: self.port.link_up(),
            announce: self.announce.load(Ordering::Acquire),
            pairs: self.port.pairs(),
            mtu,
            speed: self.options.speed,
        };
        facts.into()
    }

    /// Commands executed and refused.
    pub fn commands(&self) -> (u64, u64) {
        (self.commands.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }

    /// What it has set, for people and programs; null for a guest that takes everything.
    pub fn described(&self) -> serde_json::Value {
        let settings = self.lock().clone();
        if settings.filter().is_open() {
            return serde_json::Value::Null;
        }
        serde_json::to_value(settings).unwrap_or_default()
    }

    /// Begins anew: a driver that negotiated `features` has set nothing yet.
    pub fn reset(&self, features: u64) {
        self.announce.store(false, Ordering::Release);
        self.port.negotiated(features);
        let mac = self.own().mac;
        self.change(|settings| *settings = Settings::new(features, self.port.pairs(), mac));
    }

    /// The operator gives the port other addresses: a new one of its own, and those of its new policy.
    pub fn set_addresses(&self, mac: Option<MacAddr>, policy: &PortPolicy) {
        let mut own = self.own();
        *own = Own { mac: mac.or(own.mac), all: policy.macs.clone(), anti_spoof: policy.anti_spoof };
        drop(own);
        if mac.is_some() {
            self.change(|settings| settings.mac = mac);
            self.config_changed();
        }
    }

    /// Takes the link up or down, and tells the guest.
    pub fn set_link(&self, up: bool) {
        if self.port.link_up() != up {
            self.port.set_link(up);
            if !up {
                self.forget_addresses();
            }
            self.config_changed();
        }
    }

    /// The guest is not to be reached here for now: frames to it are flooded, in case it is somewhere else.
    pub fn forget_addresses(&self) {
        self.fabric.flush(Some(self.port.id()));
    }

    /// Asks the guest to announce its addresses; false when it cannot.
    pub fn announce(&self) -> bool {
        if self.port.features() & VIRTIO_NET_F_GUEST_ANNOUNCE == 0 {
            return false;
        }
        self.announce.store(true, Ordering::Release);
        self.config_changed();
        true
    }

    /// What the guest has set, to be restored elsewhere.
    pub fn save(&self) -> Vec<u8> {
        serde_json::to_vec(&*self.lock()).unwrap_or_default()
    }

    /// Goes on with what the guest had set elsewhere; false when that cannot be.
    pub fn restore(&self, state: &[u8]) -> bool {
        let Ok(settings) = serde_json::from_slice::<Settings>(state) else { return false };
        let sound = settings.is_sound(&self.port);
        if sound {
            self.change(|held| *held = settings);
        }
        sound
    }

    fn config_changed(&self) {
        if let Some(notifier) = self.notifier.get() {
            notifier.config_changed();
        }
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the guest may call itself by this address: one that may only send from its own does not choose them.
    fn may_have(&self, mac: MacAddr) -> bool {
        let own = self.own();
        !own.anti_spoof || own.all.contains(&mac)
    }

    /// Held for the length of a change, by a worker too, but only for commands of the control queue.
    fn lock(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes settings and puts them into force.
    fn change(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = self.lock();
        let (filter, steering) = (settings.filter(), (settings.hash.clone(), settings.rss.clone()));
        change(&mut settings);
        self.port.set_active_pairs(settings.pairs);
        self.port.set_guest_offloads(settings.offloads);
        self.port.set_coalescing(settings.coalesce_receive, settings.coalesce_transmit);
        if settings.filter() != filter {
            self.fabric.set_receive_filter(self.port.id(), settings.filter());
        }
        if (&settings.hash, &settings.rss) != (&steering.0, &steering.1) {
            let report = self.port.features() & VIRTIO_NET_F_HASH_REPORT != 0;
            self.steer(settings.steering(report).map(Arc::new));
        }
    }

    fn steer(&self, steering: Option<Arc<Steering>>) {
        for worker in &self.workers {
            // A worker that is gone delivers nothing any more.
            let _ = worker.send(Message::Steering { port: self.port.id(), steering: steering.clone() });
        }
    }

    /// Executes a command; what it returns is the driver's answer.
    fn execute(&self, command: Command) -> u8 {
        match command {
            Command::Receive(mode, on) => self.change(|settings| match mode {
                ReceiveMode::Promisc => settings.promisc = on,
                ReceiveMode::AllMulti => settings.allmulti = on,
                ReceiveMode::AllUni => settings.alluni = on,
                ReceiveMode::NoMulti => settings.nomulti = on,
                ReceiveMode::NoUni => settings.nouni = on,
                ReceiveMode::NoBroadcast => settings.nobcast = on,
            }),
            Command::MacTable { unicast, multicast } => self.change(|settings| {
                (settings.unicast, settings.multicast) = (listed(unicast), listed(multicast));
            }),
            Command::MacAddress(mac) if !self.may_have(mac) => return ERR,
            Command::MacAddress(mac) => self.change(|settings| settings.mac = Some(mac)),
            Command::Vlan { id, add } => self.change(|settings| {
                let vlans = settings.vlans.get_or_insert_default();
                if add { vlans.insert(id) } else { vlans.remove(id) }
            }),
            Command::Announced => self.announce.store(false, Ordering::Release),
            // It also ends steering by the driver's table (virtio 1.3 §5.1.6.5.6.1).
            Command::Pairs(pairs) => self.change(|settings| (settings.pairs, settings.rss) = (pairs, None)),
            Command::Rss { hash, table, unclassified, pairs } => self.change(|settings| {
                settings.hash = hashing(&hash);
                settings.rss = Some((table.into_vec(), unclassified));
                settings.pairs = pairs;
            }),
            Command::Hash(hash) => self.change(|settings| settings.hash = hashing(&hash)),
            Command::Offloads(offloads) => self.change(|settings| settings.offloads = offloads),
            Command::CoalesceReceive(wanted) => self.change(|settings| settings.coalesce_receive = wanted),
            Command::CoalesceTransmit(wanted) => self.change(|settings| settings.coalesce_transmit = wanted),
        }
        OK
    }
}

fn listed(table: Table) -> Option<Vec<MacAddr>> {
    match table {
        Table::Listed(macs) => Some(macs),
        Table::All => None,
    }
}

fn hashing(hash: &HashConfig) -> Option<(u32, Vec<u8>)> {
    Some((hash.types, hash.key.to_vec()))
}

/// The control queue of a guest, on the worker that has the ring.
pub struct Commands {
    guest: Arc<Guest>,
    chain: Chain,
    bytes: Vec<u8>,
}

impl Commands {
    /// Those of this guest.
    pub fn new(guest: Arc<Guest>) -> Self {
        Self { guest, chain: Chain::new(), bytes: Vec::new() }
    }

    /// Reads, executes and answers the command in `chain`; bytes written.
    fn answer(&mut self, mem: &MemoryView, port: &Port) -> u32 {
        let ack = self.run(mem, port);
        let counter = if ack == OK { &self.guest.commands } else { &self.guest.refused };
        counter.fetch_add(1, Ordering::Relaxed);
        // A chain without a byte for the answer gets none.
        u32::from(self.chain.write_at(mem, 0, &[ack]).is_ok())
    }

    fn run(&mut self, mem: &MemoryView, port: &Port) -> u8 {
        let Some(len) = usize::try_from(self.chain.readable_len()).ok().filter(|len| *len <= MAX_COMMAND)
        else {
            return ERR;
        };
        self.bytes.resize(len, 0);
        if self.chain.read_at(mem, 0, &mut self.bytes).is_err() {
            return ERR;
        }
        let offered = Offered { features: port.features(), pairs: port.pairs() };
        match Command::parse(&self.bytes, offered) {
            Ok(command) => self.guest.execute(command),
            Err(refused) => {
                tracing::debug!(port = port.name(), %refused, "A control command is refused");
                ERR
            }
        }
    }
}

impl ControlQueue for Commands {
    fn serve(&mut self, ring: &mut Ring, mem: &MemoryView, port: &Port) -> usize {
        let waiting = ring.fetch(COMMANDS_A_ROUND);
        for done in 0..waiting {
            if ring.next(mem, &mut self.chain).is_err() {
                return done.into();
            }
            let written = self.answer(mem, port);
            ring.complete(mem, &self.chain, written);
        }
        waiting.into()
    }
}
