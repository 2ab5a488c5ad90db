//! virtio feature bits, by their names in the specification (virtio 1.3 §5.1.3 and §6), and the table of those that a port
//! offers.

use crate::options::PortOptions;
pub use daemon::device::features::{
    Feature, VIRTIO_F_EVENT_IDX, VIRTIO_F_IN_ORDER, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_RING_PACKED,
    VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1, feature,
};

/// The device finishes checksums the driver left undone.
pub const VIRTIO_NET_F_CSUM: u64 = 1 << 0;
/// The driver takes frames with checksums left undone.
pub const VIRTIO_NET_F_GUEST_CSUM: u64 = 1 << 1;
/// The driver changes its offloads while it runs.
pub const VIRTIO_NET_F_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
/// The MTU is in `mtu`.
pub const VIRTIO_NET_F_MTU: u64 = 1 << 3;
/// The address is in `mac`.
pub const VIRTIO_NET_F_MAC: u64 = 1 << 5;
/// The driver takes TCP over IPv4 to be segmented.
pub const VIRTIO_NET_F_GUEST_TSO4: u64 = 1 << 7;
/// The driver takes TCP over IPv6 to be segmented.
pub const VIRTIO_NET_F_GUEST_TSO6: u64 = 1 << 8;
/// The same with ECN.
pub const VIRTIO_NET_F_GUEST_ECN: u64 = 1 << 9;
/// The driver takes UDP to be fragmented.
pub const VIRTIO_NET_F_GUEST_UFO: u64 = 1 << 10;
/// The device takes TCP over IPv4 to be segmented.
pub const VIRTIO_NET_F_HOST_TSO4: u64 = 1 << 11;
/// The device takes TCP over IPv6 to be segmented.
pub const VIRTIO_NET_F_HOST_TSO6: u64 = 1 << 12;
/// The same with ECN.
pub const VIRTIO_NET_F_HOST_ECN: u64 = 1 << 13;
/// The device takes UDP to be fragmented.
pub const VIRTIO_NET_F_HOST_UFO: u64 = 1 << 14;
/// A frame may fill several receive buffers.
pub const VIRTIO_NET_F_MRG_RXBUF: u64 = 1 << 15;
/// The state of the link is in `status`.
pub const VIRTIO_NET_F_STATUS: u64 = 1 << 16;
/// There is a control queue.
pub const VIRTIO_NET_F_CTRL_VQ: u64 = 1 << 17;
/// Receive modes are set through the control queue.
pub const VIRTIO_NET_F_CTRL_RX: u64 = 1 << 18;
/// VLANs are chosen through the control queue.
pub const VIRTIO_NET_F_CTRL_VLAN: u64 = 1 << 19;
/// More receive modes: all unicast, and none of a kind.
pub const VIRTIO_NET_F_CTRL_RX_EXTRA: u64 = 1 << 20;
/// The driver announces its addresses when the device asks for it.
pub const VIRTIO_NET_F_GUEST_ANNOUNCE: u64 = 1 << 21;
/// There are several pairs of queues.
pub const VIRTIO_NET_F_MQ: u64 = 1 << 22;
/// The address is set through the control queue.
pub const VIRTIO_NET_F_CTRL_MAC_ADDR: u64 = 1 << 23;
/// The driver sets how long interrupts may wait.
pub const VIRTIO_NET_F_NOTF_COAL: u64 = 1 << 53;
/// The driver takes UDP over IPv4 to be segmented.
pub const VIRTIO_NET_F_GUEST_USO4: u64 = 1 << 54;
/// The driver takes UDP over IPv6 to be segmented.
pub const VIRTIO_NET_F_GUEST_USO6: u64 = 1 << 55;
/// The device takes UDP to be segmented.
pub const VIRTIO_NET_F_HOST_USO: u64 = 1 << 56;
/// The hash of each received frame is in its header.
pub const VIRTIO_NET_F_HASH_REPORT: u64 = 1 << 57;
/// Received frames are spread over queues by their hash.
pub const VIRTIO_NET_F_RSS: u64 = 1 << 60;
/// Speed and duplex mode are in `speed` and `duplex`.
pub const VIRTIO_NET_F_SPEED_DUPLEX: u64 = 1 << 63;

/// Every feature that some port offers.
#[rustfmt::skip]
pub const FEATURES: &[Feature] = &[
    feature(VIRTIO_NET_F_CSUM, "NET_CSUM", "all", "features::csum_is_completed_for_a_receiver_that_wants_it_done"),
    feature(VIRTIO_NET_F_GUEST_CSUM, "NET_GUEST_CSUM", "all", "features::guest_csum_passes_partial_checksums_on"),
    feature(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, "NET_CTRL_GUEST_OFFLOADS", "all", "ctrl::guest_offloads_change_what_the_receiver_gets"),
    feature(VIRTIO_NET_F_MTU, "NET_MTU", "ports with mtu", "features::mtu_is_told_up_to_65535"),
    feature(VIRTIO_NET_F_MAC, "NET_MAC", "ports with mac", "features::mac_is_told_and_known_to_the_switch"),
    feature(VIRTIO_NET_F_GUEST_TSO4, "NET_GUEST_TSO4", "all", "features::tso4_passes_whole_or_is_segmented"),
    feature(VIRTIO_NET_F_GUEST_TSO6, "NET_GUEST_TSO6", "all", "features::tso6_passes_whole_or_is_segmented"),
    feature(VIRTIO_NET_F_GUEST_ECN, "NET_GUEST_ECN", "all", "features::ecn_is_kept_or_segmented_rightly"),
    feature(VIRTIO_NET_F_GUEST_UFO, "NET_GUEST_UFO", "all", "features::ufo_passes_whole_or_is_fragmented"),
    feature(VIRTIO_NET_F_HOST_TSO4, "NET_HOST_TSO4", "all", "features::tso4_passes_whole_or_is_segmented"),
    feature(VIRTIO_NET_F_HOST_TSO6, "NET_HOST_TSO6", "all", "features::tso6_passes_whole_or_is_segmented"),
    feature(VIRTIO_NET_F_HOST_ECN, "NET_HOST_ECN", "all", "features::ecn_is_kept_or_segmented_rightly"),
    feature(VIRTIO_NET_F_HOST_UFO, "NET_HOST_UFO", "all", "features::ufo_passes_whole_or_is_fragmented"),
    feature(VIRTIO_NET_F_MRG_RXBUF, "NET_MRG_RXBUF", "all", "features::mrg_rxbuf_spreads_a_frame_over_small_buffers"),
    feature(VIRTIO_NET_F_STATUS, "NET_STATUS", "all", "features::status_follows_the_link"),
    feature(VIRTIO_NET_F_CTRL_VQ, "NET_CTRL_VQ", "all", "ctrl::ctrl_vq_answers_every_command_and_refuses_unknown_ones"),
    feature(VIRTIO_NET_F_CTRL_RX, "NET_CTRL_RX", "all", "ctrl::ctrl_rx_sets_what_the_guest_receives"),
    feature(VIRTIO_NET_F_CTRL_VLAN, "NET_CTRL_VLAN", "all", "ctrl::ctrl_vlan_lets_chosen_vlans_in"),
    feature(VIRTIO_NET_F_CTRL_RX_EXTRA, "NET_CTRL_RX_EXTRA", "all", "ctrl::ctrl_rx_extra_keeps_kinds_of_frames_out"),
    feature(VIRTIO_NET_F_GUEST_ANNOUNCE, "NET_GUEST_ANNOUNCE", "all", "ctrl::guest_announce_is_asked_for_and_acknowledged"),
    feature(VIRTIO_NET_F_MQ, "NET_MQ", "ports with more than one pair", "ctrl::mq_starts_with_one_pair_and_uses_those_asked_for"),
    feature(VIRTIO_NET_F_CTRL_MAC_ADDR, "NET_CTRL_MAC_ADDR", "all", "ctrl::ctrl_mac_addr_changes_the_address"),
    feature(VIRTIO_NET_F_NOTF_COAL, "NET_NOTF_COAL", "all", "ctrl::notf_coal_lets_interrupts_wait_for_frames_or_time"),
    feature(VIRTIO_NET_F_GUEST_USO4, "NET_GUEST_USO4", "all", "features::uso_passes_whole_or_is_segmented"),
    feature(VIRTIO_NET_F_GUEST_USO6, "NET_GUEST_USO6", "all", "features::uso_passes_whole_or_is_segmented"),
    feature(VIRTIO_NET_F_HOST_USO, "NET_HOST_USO", "all", "features::uso_passes_whole_or_is_segmented"),
    feature(VIRTIO_NET_F_HASH_REPORT, "NET_HASH_REPORT", "all", "ctrl::hash_report_puts_the_hash_into_the_header"),
    feature(VIRTIO_NET_F_RSS, "NET_RSS", "all", "ctrl::rss_spreads_flows_by_the_drivers_table"),
    feature(VIRTIO_NET_F_SPEED_DUPLEX, "NET_SPEED_DUPLEX", "all", "features::speed_and_duplex_are_told"),
    feature(VIRTIO_F_INDIRECT_DESC, "INDIRECT_DESC", "all", "features::indirect_tables_hold_frames"),
    feature(VIRTIO_F_EVENT_IDX, "EVENT_IDX", "all", "features::event_idx_saves_kicks_and_interrupts"),
    feature(VIRTIO_F_VERSION_1, "VERSION_1", "all", "features::version_1_fixes_the_length_of_the_header"),
    feature(VIRTIO_F_RING_PACKED, "RING_PACKED", "all", "features::ring_packed_switches_every_size_of_frame"),
    feature(VIRTIO_F_IN_ORDER, "IN_ORDER", "all", "features::in_order_completes_in_the_order_of_submission"),
    feature(VIRTIO_F_RING_RESET, "RING_RESET", "all", "features::ring_reset_starts_a_queue_anew_while_others_run"),
];

/// What a port with these options offers.
pub fn offered(options: &PortOptions) -> u64 {
    let absent = [
        (VIRTIO_NET_F_MTU, options.mtu.is_none()),
        (VIRTIO_NET_F_MAC, options.mac.is_none()),
        (VIRTIO_NET_F_MQ, options.queues < 2),
    ];
    let all = FEATURES.iter().fold(0, |bits, feature| bits | feature.bit);
    absent.iter().filter(|(_, absent)| *absent).fold(all, |bits, (bit, _)| bits & !bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_offers_what_it_has_values_for() {
        let mut options = PortOptions::new("p");
        assert_eq!(offered(&options) & (VIRTIO_NET_F_MAC | VIRTIO_NET_F_MTU), 0);
        assert_ne!(offered(&options) & VIRTIO_NET_F_MQ, 0);
        (options.mtu, options.mac, options.queues) = (Some(9000), "52:54:00:00:00:01".parse().ok(), 1);
        assert_eq!(
            offered(&options) & (VIRTIO_NET_F_MAC | VIRTIO_NET_F_MTU),
            VIRTIO_NET_F_MAC | VIRTIO_NET_F_MTU
        );
        assert_eq!(offered(&options) & VIRTIO_NET_F_MQ, 0);
    }
}
