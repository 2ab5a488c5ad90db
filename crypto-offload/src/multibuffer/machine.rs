//! The entry: a set of requests, encrypted by the kernel that this CPU has.
#![expect(unsafe_code, reason = "hands runs of guest memory to the kernels")]

use std::cmp::Reverse;
use std::fmt;

use super::KeySize;
use super::request::Request;
use super::scheduler::encrypt_alone;
#[cfg(target_arch = "x86_64")]
use super::{
    kernel::aesni::{self, AesNi},
    kernel::vaes512::{self, Vaes512},
    scheduler::Scheduler,
    table::Table,
};
#[cfg(target_arch = "x86_64")]
use crate::keys::LockedBox;
use crate::keys::NoMemory;

/// The kernels, slowest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Kind {
    /// One request after the other: by the library, or by AES-NI where the CPU has it.
    Portable,
    /// Eight lanes of 128 bits.
    AesNi,
    /// Sixteen lanes in vectors of 512 bits.
    Vaes512,
}

impl Kind {
    /// All of them, slowest first.
    pub const ALL: [Self; 3] = [Self::Portable, Self::AesNi, Self::Vaes512];

    /// The fastest that this CPU has.
    pub fn detect() -> Self {
        Self::ALL.into_iter().rfind(|kind| kind.is_available()).unwrap_or(Self::Portable)
    }

    /// Whether this CPU has the instructions.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::AesNi => AesNi::is_available(),
            #[cfg(target_arch = "x86_64")]
            Self::Vaes512 => Vaes512::is_available() && AesNi::is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::AesNi | Self::Vaes512 => false,
        }
    }

    /// Requests that are encrypted at the same time.
    pub const fn lanes(self) -> usize {
        match self {
            Self::Portable => 1,
            Self::AesNi => 8,
            Self::Vaes512 => 16,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::AesNi => "aes-ni x8",
            Self::Vaes512 => "vaes-512 x16",
        })
    }
}

/// One worker's lanes.
pub struct Machine {
    lanes: Lanes,
    /// Reused by every call.
    order: Vec<Ticket>,
}

/// A request's place in the order of work: those with keys of one size together, the longest of them first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket {
    class: Class,
    /// The longest first.
    bytes: Reverse<usize>,
    /// Index of the request.
    pub(super) request: u32,
}

/// Requests that lanes can work on together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Lanes(KeySize),
    /// Keys in the library's form.
    Library,
}

impl Ticket {
    pub(super) fn new(index: usize, request: &Request) -> Self {
        let key = request.key();
        let class = if key.round_keys().is_some() { Class::Lanes(key.size()) } else { Class::Library };
        Self { class, bytes: Reverse(request.remaining()), request: index as u32 }
    }
}

/// Bytes beside the longest request from which on lanes are faster than one request after the other. Below, what it
/// takes to fill lanes and to empty them is more than what they save: measured, about 100 ns.
const WORTH_LANES: usize = 384;

fn worth_lanes(order: &[Ticket]) -> bool {
    order.iter().skip(1).map(|ticket| ticket.bytes.0).sum::<usize>() >= WORTH_LANES
}

/// The table of the kernel in use.
enum Lanes {
    None,
    #[cfg(target_arch = "x86_64")]
    AesNi(LockedBox<Table<{ aesni::LANES }>>),
    #[cfg(target_arch = "x86_64")]
    Vaes512(LockedBox<Table<{ vaes512::LANES }>>),
}

impl Machine {
    /// With the fastest kernel of this CPU.
    pub fn new() -> Result<Self, NoMemory> {
        Self::with(Kind::detect())
    }

    /// With this kernel.
    ///
    /// # Panics
    /// If the CPU does not have its instructions.
    pub fn with(kind: Kind) -> Result<Self, NoMemory> {
        assert!(kind.is_available(), "this CPU has no {kind}");
        let lanes = match kind {
            #[cfg(target_arch = "x86_64")]
            Kind::AesNi => Lanes::AesNi(Table::new()?),
            #[cfg(target_arch = "x86_64")]
            Kind::Vaes512 => Lanes::Vaes512(Table::new()?),
            _ => Lanes::None,
        };
        Ok(Self { lanes, order: Vec::new() })
    }

    /// The kernel in use.
    pub fn kind(&self) -> Kind {
        match self.lanes {
            Lanes::None => Kind::Portable,
            #[cfg(target_arch = "x86_64")]
            Lanes::AesNi(_) => Kind::AesNi,
            #[cfg(target_arch = "x86_64")]
            Lanes::Vaes512(_) => Kind::Vaes512,
        }
    }

    /// Encrypts all of `requests`, in any order and interleaved, and tells `done` the index of each one as soon as it is
    /// encrypted. Requests whose buffers overlap one another give anything.
    ///
    /// # Safety
    /// The source ranges of every request can be read and the destination ranges written. Others, such as the guest,
    /// may write to them meanwhile: what is then encrypted is anything, and nothing else is affected.
    pub unsafe fn encrypt(&mut self, requests: &mut [Request], done: &mut dyn FnMut(usize)) {
        if let [request] = requests {
            // SAFETY: the caller's promise.
            unsafe { encrypt_alone(request) };
            return done(0);
        }
        self.order.clear();
        self.order.extend(requests.iter().enumerate().map(|(index, request)| Ticket::new(index, request)));
        if !self.order.is_sorted() {
            self.order.sort_unstable();
        }
        for order in self.order.chunk_by(|a, b| a.class == b.class) {
            // SAFETY: the caller's promise; the keys of a class with lanes have round keys of its size, and the
            // kernel was chosen because this CPU has its instructions.
            unsafe {
                match (&mut self.lanes, order[0].class) {
                    #[cfg(target_arch = "x86_64")]
                    (Lanes::AesNi(table), Class::Lanes(size)) if worth_lanes(order) => {
                        Scheduler::<AesNi, _>::new(table, size, requests, order, done).run();
                    }
                    #[cfg(target_arch = "x86_64")]
                    (Lanes::Vaes512(table), Class::Lanes(size)) if worth_lanes(order) => {
                        Scheduler::<Vaes512, _>::new(table, size, requests, order, done).run();
                    }
                    _ => {
                        for ticket in order {
                            encrypt_alone(&mut requests[ticket.request as usize]);
                            done(ticket.request as usize);
                        }
                    }
                }
            }
        }
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("kind", &self.kind()).finish_non_exhaustive()
    }
}
