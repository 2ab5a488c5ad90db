//! The entry: a set of requests, encrypted by the kernel that this CPU has.
#![expect(unsafe_code, reason = "hands runs of guest memory to the kernels")]

use std::cmp::Reverse;
use std::fmt;

use super::KeySize;
use super::request::Request;
use super::scheduler::{Scheduler, encrypt_alone};
#[cfg(target_arch = "x86_64")]
use super::{
    kernel::aesni::{self, AesNi},
    kernel::vaes512::{self, Vaes512},
    table::Table,
};

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
    /// Reused by every call: requests of one key size, longest first.
    order: Vec<u32>,
}

/// The table of the kernel in use. On the heap, for its size; it is made once.
enum Lanes {
    None,
    #[cfg(target_arch = "x86_64")]
    AesNi(Box<Table<{ aesni::LANES }>>),
    #[cfg(target_arch = "x86_64")]
    Vaes512(Box<Table<{ vaes512::LANES }>>),
}

impl Machine {
    /// With the fastest kernel of this CPU.
    pub fn new() -> Self {
        Self::with(Kind::detect()).unwrap_or(Self { lanes: Lanes::None, order: Vec::new() })
    }

    /// With this kernel; `None` if the CPU does not have its instructions.
    pub fn with(kind: Kind) -> Option<Self> {
        let lanes = match kind {
            _ if !kind.is_available() => return None,
            #[cfg(target_arch = "x86_64")]
            Kind::AesNi => Lanes::AesNi(Table::new()),
            #[cfg(target_arch = "x86_64")]
            Kind::Vaes512 => Lanes::Vaes512(Table::new()),
            _ => Lanes::None,
        };
        Some(Self { lanes, order: Vec::new() })
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

    /// Encrypts all of `requests`, in any order and interleaved. Requests whose buffers overlap one another give
    /// anything.
    ///
    /// # Safety
    /// The source ranges of every request can be read and the destination ranges written. Others, such as the guest,
    /// may write to them meanwhile: what is then encrypted is anything, and nothing else is affected.
    pub unsafe fn encrypt(&mut self, requests: &mut [Request]) {
        for size in KeySize::ALL {
            self.collect(requests, |request| request.key().round_keys().is_some() && request.key().size() == size);
            // SAFETY: the caller's promise; these requests' keys have round keys of this size, and a kernel was
            // chosen that this CPU has.
            unsafe {
                match &mut self.lanes {
                    _ if self.order.len() <= 1 => encrypt_each(requests, &self.order),
                    Lanes::None => encrypt_each(requests, &self.order),
                    #[cfg(target_arch = "x86_64")]
                    Lanes::AesNi(table) => Scheduler::<AesNi, _>::new(table, size, requests, &self.order).run(),
                    #[cfg(target_arch = "x86_64")]
                    Lanes::Vaes512(table) => Scheduler::<Vaes512, _>::new(table, size, requests, &self.order).run(),
                }
            }
        }
        self.collect(requests, |request| request.key().library().is_some());
        // SAFETY: the caller's promise.
        unsafe { encrypt_each(requests, &self.order) };
    }

    /// Sets the order to the wanted requests that have anything to do, longest first.
    fn collect(&mut self, requests: &[Request], wanted: impl Fn(&Request) -> bool) {
        self.order.clear();
        let wanted = requests.iter().enumerate().filter(|(_, request)| request.remaining() > 0 && wanted(request));
        self.order.extend(wanted.map(|(index, _)| index as u32));
        let length = |index: &u32| Reverse(requests[*index as usize].remaining());
        if !self.order.is_sorted_by_key(length) {
            self.order.sort_unstable_by_key(length);
        }
    }
}

/// # Safety
/// The requests' ranges can be read and written.
unsafe fn encrypt_each(requests: &mut [Request], order: &[u32]) {
    for &index in order {
        // SAFETY: the caller's promise.
        unsafe { encrypt_alone(&mut requests[index as usize]) };
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("kind", &self.kind()).finish_non_exhaustive()
    }
}
