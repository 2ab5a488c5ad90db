//! Values of arguments and configuration keys: parsed once, valid from then on.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use runtime::cpu::BadCpuList;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a value is refused; each is one sentence without a full stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Not a size.
    #[error("Size '{0}' is not a whole number with an optional unit K, M, G, T or P, such as 512M")]
    Size(String),
    /// A size beyond 64 bits.
    #[error("Size '{0}' does not fit in 64 bits")]
    SizeTooLarge(String),
    /// Not a list of CPUs.
    #[error(transparent)]
    CpuList(#[from] BadCpuList),
    /// A list without a CPU.
    #[error("CPU list is empty")]
    NoCpu,
    /// Not permission bits.
    #[error("Socket mode '{0}' is not an octal number up to 0777")]
    Mode(String),
    /// No such group.
    #[error("Group '{0}' does not exist on this machine")]
    Group(String),
    /// Neither a TCP address nor `unix:PATH`.
    #[error("Metrics address '{0}' is neither ADDRESS:PORT nor unix:PATH")]
    Metrics(String),
}

/// Number of bytes, written `4096`, `512M`, `10G` or `10GiB`; units are powers of 1024.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// The number of bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// The same where no more than 4 GiB can be meant; what is more than that is too much in any case.
    pub fn clamped(self) -> u32 {
        u32::try_from(self.0).unwrap_or(u32::MAX)
    }
}

const UNITS: [(char, u32); 5] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50)];

impl FromStr for ByteSize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let refused = || ValueError::Size(text.to_owned());
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        if number.is_empty() {
            return Err(refused());
        }
        let shift = unit_shift(unit).ok_or_else(refused)?;
        let number: u64 = number.parse().map_err(|_| ValueError::SizeTooLarge(text.to_owned()))?;
        number.checked_mul(1 << shift).map(ByteSize).ok_or_else(|| ValueError::SizeTooLarge(text.to_owned()))
    }
}

/// Power of two of a unit: empty, `B`, `K`, `KB` or `KiB` and so on, in either case.
fn unit_shift(unit: &str) -> Option<u32> {
    let mut chars = unit.chars();
    let Some(first) = chars.next() else { return Some(0) };
    let rest = chars.as_str();
    if first.eq_ignore_ascii_case(&'b') {
        return rest.is_empty().then_some(0);
    }
    let (_, shift) = UNITS.iter().find(|(letter, _)| first.eq_ignore_ascii_case(letter))?;
    ["", "b", "ib"].iter().any(|end| rest.eq_ignore_ascii_case(end)).then_some(*shift)
}

/// Reads an optional key whose value is a text, as it is written on the command line; for `#[serde(deserialize_with)]`.
pub fn from_text<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| text.parse().map_err(de::Error::custom)).transpose()
}

impl fmt::Display for ByteSize {
    /// The largest unit that divides the size: exact, and accepted back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().rev().find(|(_, shift)| self.0 != 0 && self.0.trailing_zeros() >= *shift);
        match unit {
            Some((letter, shift)) => write!(f, "{}{letter}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ByteSize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size in bytes or a string such as \"512M\"")
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(value))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<ByteSize, E> {
                u64::try_from(value).map(ByteSize).map_err(|_| E::custom(ValueError::Size(value.to_string())))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<ByteSize, E> {
                value.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// CPUs workers are pinned to, written `0-3,8`; never empty when parsed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuList(Vec<usize>);

impl CpuList {
    /// The CPU numbers, rising.
    pub fn cpus(&self) -> &[usize] {
        &self.0
    }
}

impl FromStr for CpuList {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let cpus = runtime::cpu::parse_list(text)?;
        if cpus.is_empty() { Err(ValueError::NoCpu) } else { Ok(Self(cpus)) }
    }
}

/// Permission bits of a socket, written in octal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketMode(pub u32);

impl Default for SocketMode {
    fn default() -> Self {
        Self(0o600)
    }
}

impl FromStr for SocketMode {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let digits = text.strip_prefix("0o").unwrap_or(text);
        match u32::from_str_radix(digits, 8) {
            Ok(mode) if mode <= 0o777 && !digits.starts_with('+') => Ok(Self(mode)),
            _ => Err(ValueError::Mode(text.to_owned())),
        }
    }
}

/// A group that exists, by its number.
///
/// Names are looked up in `/etc/group`; a group known only to a directory service is given by number, so that a static
/// binary needs no name-service modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupName {
    /// The group's number.
    pub gid: u32,
}

impl FromStr for GroupName {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if let Ok(gid) = text.parse() {
            return Ok(Self { gid });
        }
        let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
        gid_of(&groups, text).map(|gid| Self { gid }).ok_or_else(|| ValueError::Group(text.to_owned()))
    }
}

/// Number of the group `name` in the text of an `/etc/group` (`name:password:gid:members`).
fn gid_of(groups: &str, name: &str) -> Option<u32> {
    let line = groups.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split(':').nth(2)?.parse().ok()
}

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    /// HTTP over TCP.
    Tcp(SocketAddr),
    /// HTTP over a Unix socket.
    Unix(PathBuf),
}

impl FromStr for MetricsAddress {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let refused = || ValueError::Metrics(text.to_owned());
        match text.strip_prefix("unix:") {
            Some("") => Err(refused()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| refused()),
        }
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<_> = self.0.iter().map(usize::to_string).collect();
        f.write_str(&numbers.join(","))
    }
}

impl fmt::Display for SocketMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.gid)
    }
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Values that a configuration file writes exactly as the command line does.
macro_rules! as_text {
    ($($value:ty),*) => {$(
        impl<'de> Deserialize<'de> for $value {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
        impl Serialize for $value {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}
as_text!(CpuList, SocketMode, GroupName, MetricsAddress);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_units_of_1024() {
        let size = |text: &str| text.parse::<ByteSize>().map(ByteSize::bytes);
        assert_eq!(size("0"), Ok(0));
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("10G"), Ok(10 << 30));
        assert_eq!(size("512m"), Ok(512 << 20));
        assert_eq!(size("3KiB"), Ok(3072));
        assert_eq!(size("7kb"), Ok(7168));
        assert_eq!(size("12B"), Ok(12));
        assert_eq!(size("16383P"), Ok(16383 << 50));
    }

    #[test]
    fn sizes_that_are_none_are_refused() {
        for text in ["", "G", "-1", "1.5G", "10X", "1 G", "1Gi", "+1", "0x10", "1bb"] {
            assert_eq!(text.parse::<ByteSize>(), Err(ValueError::Size(text.into())), "{text}");
        }
        for text in ["16384P", "99999999999999999999"] {
            assert_eq!(text.parse::<ByteSize>(), Err(ValueError::SizeTooLarge(text.into())));
        }
    }

    #[test]
    fn sizes_print_as_they_are_read() {
        for bytes in [0, 1, 511, 512, 1024, 1536, 10 << 30, u64::MAX] {
            let shown = ByteSize(bytes).to_string();
            assert_eq!(shown.parse(), Ok(ByteSize(bytes)), "{shown}");
        }
        assert_eq!(ByteSize(10 << 30).to_string(), "10G");
    }

    #[test]
    fn sizes_in_a_file_are_numbers_or_text() {
        #[derive(Deserialize)]
        struct File {
            a: ByteSize,
            b: ByteSize,
        }
        let file: File = toml::from_str("a = 512\nb = '2M'").unwrap();
        assert_eq!((file.a, file.b), (ByteSize(512), ByteSize(2 << 20)));
        assert!(toml::from_str::<File>("a = -1\nb = 0").is_err());
    }

    #[test]
    fn cpu_lists_are_those_of_the_kernel_and_never_empty() {
        assert_eq!("8,0-2".parse::<CpuList>().unwrap().cpus(), [0, 1, 2, 8]);
        assert_eq!("8,0-2".parse::<CpuList>().unwrap().to_string(), "0,1,2,8");
        assert_eq!("".parse::<CpuList>(), Err(ValueError::NoCpu));
        for text in ["a", "3-1", "1--2", "0-99999999"] {
            assert!(matches!(text.parse::<CpuList>(), Err(ValueError::CpuList(_))), "{text}");
        }
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!("0660".parse(), Ok(SocketMode(0o660)));
        assert_eq!("600".parse(), Ok(SocketMode(0o600)));
        assert_eq!(SocketMode(0o660).to_string(), "0660");
        for text in ["", "0888", "1777", "rw", "-1", "+7"] {
            assert_eq!(text.parse::<SocketMode>(), Err(ValueError::Mode(text.into())), "{text}");
        }
    }

    #[test]
    fn groups_are_found_by_name_or_number() {
        let groups = "root:x:0:\nkvm:x:104:alice,bob\n";
        assert_eq!(gid_of(groups, "kvm"), Some(104));
        assert_eq!(gid_of(groups, "kv"), None);
        assert_eq!("104".parse(), Ok(GroupName { gid: 104 }));
        assert_eq!("no such group".parse::<GroupName>(), Err(ValueError::Group("no such group".into())));
    }

    #[test]
    fn metrics_go_to_tcp_or_unix() {
        assert_eq!("127.0.0.1:9100".parse(), Ok(MetricsAddress::Tcp(([127, 0, 0, 1], 9100).into())));
        assert_eq!("unix:/a b".parse(), Ok(MetricsAddress::Unix("/a b".into())));
        for text in ["", "9100", "localhost", "unix:"] {
            assert_eq!(text.parse::<MetricsAddress>(), Err(ValueError::Metrics(text.into())), "{text}");
        }
    }
}
