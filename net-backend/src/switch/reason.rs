//! Why a frame went nowhere.

/// Why a frame was dropped: one counter and one metrics label each. A drop is never silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Drop {
    /// Headers that contradict themselves or the frame's length, or an impossible source address.
    Malformed,
    /// Shorter than an Ethernet header.
    Runt,
    /// Longer than the port's MTU allows.
    TooLong,
    /// The source MAC is not one of the port's (`anti-spoof`).
    SpoofedMac,
    /// ARP, IPv4 or IPv6 claims an address that is not the port's (`addresses`).
    SpoofedAddress,
    /// The port is not a member of the frame's VLAN.
    VlanNotAllowed,
    /// A filter rule said `deny`.
    Filtered,
    /// Over the port's rate of frames to unknown unicast addresses.
    StormUnknown,
    /// Over the port's rate of broadcasts.
    StormBroadcast,
    /// Over the port's rate of multicasts.
    StormMulticast,
    /// Over the port's rate limit, where frames cannot be held back.
    RateLimited,
    /// The destination had no receive buffer.
    NoReceiveBuffer,
    /// Both ports are isolated.
    Isolated,
    /// The guest's own receive filter (control queue) does not want it.
    ReceiveFilter,
    /// A bridge group address (01:80:c2:00:00:0x, IEEE 802.1Q §8.6.3) that is not forwarded.
    Reserved,
    /// The destination is behind the port that the frame came from.
    SamePort,
    /// The port only receives mirrored frames.
    MirrorPort,
    /// The destination's link is down or its device is not started.
    LinkDown,
    /// The frame does not fit the offload it claims.
    BadOffload,
    /// No port to send it to.
    NoRoute,
    /// The crossing to another worker was full.
    CrossingFull,
    /// The uplink did not take it.
    UplinkFull,
}

/// Number of [`Drop`] reasons.
pub const DROPS: usize = Drop::ALL.len();

impl Drop {
    /// All reasons, in the order of the counters.
    pub const ALL: [Self; 22] = [
        Self::Malformed,
        Self::Runt,
        Self::TooLong,
        Self::SpoofedMac,
        Self::SpoofedAddress,
        Self::VlanNotAllowed,
        Self::Filtered,
        Self::StormUnknown,
        Self::StormBroadcast,
        Self::StormMulticast,
        Self::RateLimited,
        Self::NoReceiveBuffer,
        Self::Isolated,
        Self::ReceiveFilter,
        Self::Reserved,
        Self::SamePort,
        Self::MirrorPort,
        Self::LinkDown,
        Self::BadOffload,
        Self::NoRoute,
        Self::CrossingFull,
        Self::UplinkFull,
    ];

    /// Label in statistics and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Runt => "runt",
            Self::TooLong => "too_long",
            Self::SpoofedMac => "spoofed_mac",
            Self::SpoofedAddress => "spoofed_address",
            Self::VlanNotAllowed => "vlan_not_allowed",
            Self::Filtered => "filtered",
            Self::StormUnknown => "storm_unknown",
            Self::StormBroadcast => "storm_broadcast",
            Self::StormMulticast => "storm_multicast",
            Self::RateLimited => "rate_limited",
            Self::NoReceiveBuffer => "no_receive_buffer",
            Self::Isolated => "isolated",
            Self::ReceiveFilter => "receive_filter",
            Self::Reserved => "reserved",
            Self::SamePort => "same_port",
            Self::MirrorPort => "mirror_port",
            Self::LinkDown => "link_down",
            Self::BadOffload => "bad_offload",
            Self::NoRoute => "no_route",
            Self::CrossingFull => "crossing_full",
            Self::UplinkFull => "uplink_full",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_counts_in_its_own_place_under_its_own_name() {
        for (place, reason) in Drop::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place, "{}", reason.name());
        }
        let names: std::collections::HashSet<_> = Drop::ALL.map(Drop::name).into();
        assert_eq!(names.len(), DROPS);
    }
}
