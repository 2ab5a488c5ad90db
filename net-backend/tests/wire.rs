//! Numbers and layouts of the wire, against the kernel's headers as another crate has them.

use net_backend::config::{self, NetConfig};
use net_backend::ctrl::{self, Command, Offered, ReceiveMode};
use net_backend::features;
use std::mem::offset_of;
use virtio_bindings::{virtio_config, virtio_net, virtio_ring};

#[test]
fn feature_bits_are_the_kernels() {
    macro_rules! same {
        ($($name:ident in $header:ident as $theirs:ident),* $(,)?) => {
            $(assert_eq!(features::$name, 1 << $header::$theirs, stringify!($name));)*
            let checked = 0 $(| features::$name)*;
            let known = features::FEATURES.iter().fold(0, |bits, feature| bits | feature.bit);
            assert_eq!(checked, known, "none is left out");
        };
    }
    same! {
        VIRTIO_NET_F_CSUM in virtio_net as VIRTIO_NET_F_CSUM,
        VIRTIO_NET_F_GUEST_CSUM in virtio_net as VIRTIO_NET_F_GUEST_CSUM,
        VIRTIO_NET_F_CTRL_GUEST_OFFLOADS in virtio_net as VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
        VIRTIO_NET_F_MTU in virtio_net as VIRTIO_NET_F_MTU,
        VIRTIO_NET_F_MAC in virtio_net as VIRTIO_NET_F_MAC,
        VIRTIO_NET_F_GUEST_TSO4 in virtio_net as VIRTIO_NET_F_GUEST_TSO4,
        VIRTIO_NET_F_GUEST_TSO6 in virtio_net as VIRTIO_NET_F_GUEST_TSO6,
        VIRTIO_NET_F_GUEST_ECN in virtio_net as VIRTIO_NET_F_GUEST_ECN,
        VIRTIO_NET_F_GUEST_UFO in virtio_net as VIRTIO_NET_F_GUEST_UFO,
        VIRTIO_NET_F_HOST_TSO4 in virtio_net as VIRTIO_NET_F_HOST_TSO4,
        VIRTIO_NET_F_HOST_TSO6 in virtio_net as VIRTIO_NET_F_HOST_TSO6,
        VIRTIO_NET_F_HOST_ECN in virtio_net as VIRTIO_NET_F_HOST_ECN,
        VIRTIO_NET_F_HOST_UFO in virtio_net as VIRTIO_NET_F_HOST_UFO,
        VIRTIO_NET_F_MRG_RXBUF in virtio_net as VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_NET_F_STATUS in virtio_net as VIRTIO_NET_F_STATUS,
        VIRTIO_NET_F_CTRL_VQ in virtio_net as VIRTIO_NET_F_CTRL_VQ,
        VIRTIO_NET_F_CTRL_RX in virtio_net as VIRTIO_NET_F_CTRL_RX,
        VIRTIO_NET_F_CTRL_VLAN in virtio_net as VIRTIO_NET_F_CTRL_VLAN,
        VIRTIO_NET_F_CTRL_RX_EXTRA in virtio_net as VIRTIO_NET_F_CTRL_RX_EXTRA,
        VIRTIO_NET_F_GUEST_ANNOUNCE in virtio_net as VIRTIO_NET_F_GUEST_ANNOUNCE,
        VIRTIO_NET_F_MQ in virtio_net as VIRTIO_NET_F_MQ,
        VIRTIO_NET_F_CTRL_MAC_ADDR in virtio_net as VIRTIO_NET_F_CTRL_MAC_ADDR,
        VIRTIO_NET_F_NOTF_COAL in virtio_net as VIRTIO_NET_F_NOTF_COAL,
        VIRTIO_NET_F_GUEST_USO4 in virtio_net as VIRTIO_NET_F_GUEST_USO4,
        VIRTIO_NET_F_GUEST_USO6 in virtio_net as VIRTIO_NET_F_GUEST_USO6,
        VIRTIO_NET_F_HOST_USO in virtio_net as VIRTIO_NET_F_HOST_USO,
        VIRTIO_NET_F_HASH_REPORT in virtio_net as VIRTIO_NET_F_HASH_REPORT,
        VIRTIO_NET_F_RSS in virtio_net as VIRTIO_NET_F_RSS,
        VIRTIO_NET_F_SPEED_DUPLEX in virtio_net as VIRTIO_NET_F_SPEED_DUPLEX,
        VIRTIO_F_INDIRECT_DESC in virtio_ring as VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_F_EVENT_IDX in virtio_ring as VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_F_VERSION_1 in virtio_config as VIRTIO_F_VERSION_1,
        VIRTIO_F_RING_PACKED in virtio_config as VIRTIO_F_RING_PACKED,
        VIRTIO_F_IN_ORDER in virtio_config as VIRTIO_F_IN_ORDER,
        VIRTIO_F_RING_RESET in virtio_config as VIRTIO_F_RING_RESET,
    }
}

#[test]
fn the_configuration_space_is_laid_out_as_the_kernels() {
    macro_rules! same {
        ($($ours:ident = $theirs:ident),* $(,)?) => {
            $(assert_eq!(
                offset_of!(NetConfig, $ours),
                offset_of!(virtio_net::virtio_net_config, $theirs),
                stringify!($ours)
            );)*
        };
    }
    same! {
        mac = mac,
        status = status,
        max_virtqueue_pairs = max_virtqueue_pairs,
        mtu = mtu,
        speed = speed,
        duplex = duplex,
        rss_max_key_size = rss_max_key_size,
        rss_max_indirection_table_length = rss_max_indirection_table_length,
        supported_hash_types = supported_hash_types,
    }
    assert_eq!(size_of::<NetConfig>(), size_of::<virtio_net::virtio_net_config>());
    assert_eq!(u32::from(config::LINK_UP), virtio_net::VIRTIO_NET_S_LINK_UP);
    assert_eq!(u32::from(config::ANNOUNCE), virtio_net::VIRTIO_NET_S_ANNOUNCE);
}

#[test]
fn control_commands_have_the_kernels_numbers() {
    assert_eq!(u32::from(ctrl::OK), virtio_net::VIRTIO_NET_OK);
    assert_eq!(u32::from(ctrl::ERR), virtio_net::VIRTIO_NET_ERR);
    let parse = |class: u32, command: u32, data: &[u8]| {
        let bytes = [&[class as u8, command as u8], data].concat();
        Command::parse(&bytes, Offered { features: u64::MAX, pairs: 1 }).unwrap()
    };
    let rx = virtio_net::VIRTIO_NET_CTRL_RX;
    let modes = [
        (virtio_net::VIRTIO_NET_CTRL_RX_PROMISC, ReceiveMode::Promisc),
        (virtio_net::VIRTIO_NET_CTRL_RX_ALLMULTI, ReceiveMode::AllMulti),
        (virtio_net::VIRTIO_NET_CTRL_RX_ALLUNI, ReceiveMode::AllUni),
        (virtio_net::VIRTIO_NET_CTRL_RX_NOMULTI, ReceiveMode::NoMulti),
        (virtio_net::VIRTIO_NET_CTRL_RX_NOUNI, ReceiveMode::NoUni),
        (virtio_net::VIRTIO_NET_CTRL_RX_NOBCAST, ReceiveMode::NoBroadcast),
    ];
    for (command, mode) in modes {
        assert_eq!(parse(rx, command, &[1]), Command::Receive(mode, true));
    }
    let mac = virtio_net::VIRTIO_NET_CTRL_MAC;
    let empty = parse(mac, virtio_net::VIRTIO_NET_CTRL_MAC_TABLE_SET, &[0; 8]);
    assert!(matches!(empty, Command::MacTable { .. }));
    let address = parse(mac, virtio_net::VIRTIO_NET_CTRL_MAC_ADDR_SET, &[2, 0, 0, 0, 0, 1]);
    assert!(matches!(address, Command::MacAddress(_)));
    let vlan = virtio_net::VIRTIO_NET_CTRL_VLAN;
    for (command, add) in
        [(virtio_net::VIRTIO_NET_CTRL_VLAN_ADD, true), (virtio_net::VIRTIO_NET_CTRL_VLAN_DEL, false)]
    {
        assert_eq!(parse(vlan, command, &[7, 0]), Command::Vlan { id: 7, add });
    }
    let announce = virtio_net::VIRTIO_NET_CTRL_ANNOUNCE;
    assert_eq!(parse(announce, virtio_net::VIRTIO_NET_CTRL_ANNOUNCE_ACK, &[]), Command::Announced);
    let mq = virtio_net::VIRTIO_NET_CTRL_MQ;
    assert_eq!(parse(mq, virtio_net::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &[1, 0]), Command::Pairs(1));
    let rss = parse(mq, virtio_net::VIRTIO_NET_CTRL_MQ_RSS_CONFIG, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
    assert!(matches!(rss, Command::Rss { .. }));
    assert!(matches!(parse(mq, virtio_net::VIRTIO_NET_CTRL_MQ_HASH_CONFIG, &[0; 13]), Command::Hash(_)));
    let offloads = virtio_net::VIRTIO_NET_CTRL_GUEST_OFFLOADS;
    assert_eq!(
        parse(offloads, virtio_net::VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, &[0; 8]),
        Command::Offloads(0)
    );
    let coalescing = virtio_net::VIRTIO_NET_CTRL_NOTF_COAL;
    let (tx, rx) =
        (virtio_net::VIRTIO_NET_CTRL_NOTF_COAL_TX_SET, virtio_net::VIRTIO_NET_CTRL_NOTF_COAL_RX_SET);
    assert!(matches!(parse(coalescing, tx, &[0; 8]), Command::CoalesceTransmit(_)));
    assert!(matches!(parse(coalescing, rx, &[0; 8]), Command::CoalesceReceive(_)));
}
