//! Numbers and layouts of the wire, against the kernel's headers as another crate has them.

use blk_backend::config::BlkConfig;
use blk_backend::request::Status;
use blk_backend::{features, request};
use std::mem::offset_of;
use virtio_bindings::{virtio_blk, virtio_config, virtio_ring};

#[test]
fn feature_bits_are_the_kernels() {
    macro_rules! same {
        ($($name:ident in $header:ident as $theirs:ident),* $(,)?) => {
            $(assert_eq!(features::$name, 1 << $header::$theirs, stringify!($name));)*
        };
    }
    same! {
        VIRTIO_BLK_F_SIZE_MAX in virtio_blk as VIRTIO_BLK_F_SIZE_MAX,
        VIRTIO_BLK_F_SEG_MAX in virtio_blk as VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_RO in virtio_blk as VIRTIO_BLK_F_RO,
        VIRTIO_BLK_F_BLK_SIZE in virtio_blk as VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_FLUSH in virtio_blk as VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_TOPOLOGY in virtio_blk as VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_CONFIG_WCE in virtio_blk as VIRTIO_BLK_F_CONFIG_WCE,
        VIRTIO_BLK_F_MQ in virtio_blk as VIRTIO_BLK_F_MQ,
        VIRTIO_BLK_F_DISCARD in virtio_blk as VIRTIO_BLK_F_DISCARD,
        VIRTIO_BLK_F_WRITE_ZEROES in virtio_blk as VIRTIO_BLK_F_WRITE_ZEROES,
        VIRTIO_BLK_F_SECURE_ERASE in virtio_blk as VIRTIO_BLK_F_SECURE_ERASE,
        VIRTIO_F_INDIRECT_DESC in virtio_ring as VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_F_EVENT_IDX in virtio_ring as VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_F_VERSION_1 in virtio_config as VIRTIO_F_VERSION_1,
        VIRTIO_F_RING_PACKED in virtio_config as VIRTIO_F_RING_PACKED,
        VIRTIO_F_IN_ORDER in virtio_config as VIRTIO_F_IN_ORDER,
        VIRTIO_F_RING_RESET in virtio_config as VIRTIO_F_RING_RESET,
    }
}

#[test]
fn request_types_and_statuses_are_the_kernels() {
    macro_rules! same {
        ($($name:ident),* $(,)?) => {
            $(assert_eq!(request::$name, virtio_blk::$name, stringify!($name));)*
        };
    }
    same! {
        VIRTIO_BLK_T_IN,
        VIRTIO_BLK_T_OUT,
        VIRTIO_BLK_T_FLUSH,
        VIRTIO_BLK_T_GET_ID,
        VIRTIO_BLK_T_DISCARD,
        VIRTIO_BLK_T_WRITE_ZEROES,
        VIRTIO_BLK_T_SECURE_ERASE,
        VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
    }
    assert_eq!(Status::Ok as u32, virtio_blk::VIRTIO_BLK_S_OK);
    assert_eq!(Status::IoErr as u32, virtio_blk::VIRTIO_BLK_S_IOERR);
    assert_eq!(Status::Unsupp as u32, virtio_blk::VIRTIO_BLK_S_UNSUPP);
}

#[test]
fn the_configuration_space_is_laid_out_as_the_kernels() {
    macro_rules! same {
        ($($ours:ident = $theirs:ident),* $(,)?) => {
            $(assert_eq!(
                offset_of!(BlkConfig, $ours),
                offset_of!(virtio_blk::virtio_blk_config, $theirs),
                stringify!($ours)
            );)*
        };
    }
    same! {
        capacity = capacity,
        size_max = size_max,
        seg_max = seg_max,
        geometry = geometry,
        blk_size = blk_size,
        physical_block_exp = physical_block_exp,
        alignment_offset = alignment_offset,
        min_io_size = min_io_size,
        opt_io_size = opt_io_size,
        writeback = wce,
        num_queues = num_queues,
        max_discard_sectors = max_discard_sectors,
        max_discard_seg = max_discard_seg,
        discard_sector_alignment = discard_sector_alignment,
        max_write_zeroes_sectors = max_write_zeroes_sectors,
        max_write_zeroes_seg = max_write_zeroes_seg,
        write_zeroes_may_unmap = write_zeroes_may_unmap,
        max_secure_erase_sectors = max_secure_erase_sectors,
        max_secure_erase_seg = max_secure_erase_seg,
        secure_erase_sector_alignment = secure_erase_sector_alignment,
    }
    assert_eq!(size_of::<BlkConfig>(), offset_of!(virtio_blk::virtio_blk_config, zoned));
}
