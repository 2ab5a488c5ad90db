//! Our XDP program, and the few instructions that it is assembled from.
//!
//! It redirects frames to the socket of the queue they came in on, and leaves the rest to the host: all frames when
//! there is no filter, else those that the maps name. A queue without a socket leaves all its frames to the host, so an
//! interface keeps working for the host while the uplink comes and goes.

use std::collections::HashMap;

use zerocopy::{Immutable, IntoBytes};

/// One instruction (`struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, Immutable)]
pub(super) struct Insn {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Maps that the program looks at, as descriptors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maps {
    /// Sockets by queue.
    pub sockets: i32,
    /// One `u32` of flags, as in the constants below.
    pub flags: i32,
    /// Destination addresses that are redirected.
    pub macs: i32,
    /// VLANs that are redirected; 0 stands for untagged frames.
    pub vlans: i32,
}

/// Only frames to the addresses in the map are redirected.
pub(super) const FILTER_MACS: u32 = 1;
/// Only frames of the VLANs in the map are redirected.
pub(super) const FILTER_VLANS: u32 = 2;
/// Broadcasts are redirected, whatever the addresses in the map.
pub(super) const BROADCAST: u32 = 4;
/// Multicasts are redirected, whatever the addresses in the map.
pub(super) const MULTICAST: u32 = 8;

/// Registers, by what the program keeps in them. R1 to R5 do not survive a call.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const CONTEXT: u8 = 6;
const FLAGS: u8 = 7;
const FRAME: u8 = 8;
const VLAN: u8 = 9;
const STACK: u8 = 10;

/// `struct xdp_md`.
const MD_DATA: i16 = 0;
const MD_DATA_END: i16 = 4;
const MD_RX_QUEUE: i16 = 16;

/// Where the keys of the maps are on the stack: address and two zeros, then the VLAN.
const MAC_KEY: i16 = -8;
const VLAN_KEY: i16 = -16;

const XDP_PASS: i32 = 2;
const MAP_LOOKUP_ELEM: i32 = 1;
const REDIRECT_MAP: i32 = 51;

/// The program for these maps.
pub(super) fn assemble(maps: Maps) -> Vec<Insn> {
    let mut code = Assembler::default();
    code.move_register(CONTEXT, R1);
    code.load_map_value(R1, maps.flags);
    code.load(Width::Word, FLAGS, R1, 0);
    code.jump_if_equal(FLAGS, 0, "redirect");
    frame_keys(&mut code);
    vlan_filter(&mut code, maps.vlans);
    mac_filter(&mut code, maps.macs);
    code.label("redirect");
    code.load_map(R1, maps.sockets);
    code.load(Width::Word, R2, CONTEXT, MD_RX_QUEUE);
    code.move_value(R3, XDP_PASS); // for a queue without a socket
    code.call(REDIRECT_MAP);
    code.exit();
    code.label("pass");
    code.move_value(R0, XDP_PASS);
    code.exit();
    code.finish()
}

/// Puts the destination address and the VLAN on the stack, in R9 and R8.
fn frame_keys(code: &mut Assembler) {
    const ETHERNET: i32 = 14;
    const ETHERTYPE: i16 = 12;
    code.load(Width::Word, R2, CONTEXT, MD_DATA);
    code.load(Width::Word, R3, CONTEXT, MD_DATA_END);
    code.move_register(R4, R2);
    code.add(R4, ETHERNET);
    code.jump_if_greater(R4, R3, "pass");
    code.move_value(VLAN, 0);
    code.load(Width::Half, R1, R2, ETHERTYPE);
    // 802.1Q and 802.1ad, as a little-endian load reads them.
    code.jump_if_equal(R1, i32::from(0x8100_u16.to_be()), "tagged");
    code.jump_if_equal(R1, i32::from(0x88a8_u16.to_be()), "tagged");
    code.jump("untagged");
    code.label("tagged");
    code.move_register(R4, R2);
    code.add(R4, ETHERNET + 2);
    code.jump_if_greater(R4, R3, "pass");
    code.load(Width::Half, VLAN, R2, ETHERTYPE + 2);
    code.swap_to_host_16(VLAN);
    code.and(VLAN, 0xfff);
    code.label("untagged");
    code.store(STACK, VLAN_KEY, VLAN);
    code.load(Width::Word, FRAME, R2, 0);
    code.store(STACK, MAC_KEY, FRAME);
    code.load(Width::Half, R4, R2, 4);
    code.store(STACK, MAC_KEY + 4, R4);
}

/// Passes frames of other VLANs.
fn vlan_filter(code: &mut Assembler, vlans: i32) {
    code.jump_if_set(FLAGS, FILTER_VLANS, "filter_vlan");
    code.jump("any_vlan");
    code.label("filter_vlan");
    code.look_up(vlans, VLAN_KEY);
    code.jump_if_equal(R0, 0, "pass");
    code.label("any_vlan");
}

/// Passes frames to other addresses.
fn mac_filter(code: &mut Assembler, macs: i32) {
    code.jump_if_set(FLAGS, FILTER_MACS, "filter_mac");
    code.jump("redirect");
    code.label("filter_mac");
    // The group bit is in the first byte, which is the lowest of the word.
    code.jump_if_set(FRAME, 1, "group");
    code.jump("listed");
    code.label("group");
    code.load(Width::Half, R4, STACK, MAC_KEY + 4);
    code.jump_if_not_equal(R4, 0xffff, "multicast");
    // All ones in 32 bits, compared with a sign-extended -1 once the upper half is set too.
    code.move_register(R4, FRAME);
    code.add(R4, 1);
    code.and_32(R4, -1);
    code.jump_if_not_equal(R4, 0, "multicast");
    code.jump_if_set(FLAGS, BROADCAST, "redirect");
    code.jump("listed");
    code.label("multicast");
    code.jump_if_set(FLAGS, MULTICAST, "redirect");
    code.label("listed");
    code.look_up(macs, MAC_KEY);
    code.jump_if_equal(R0, 0, "pass");
}

/// Width of a load.
#[derive(Clone, Copy)]
enum Width {
    Word = 0x61,
    Half = 0x69,
}

/// Collects instructions, and resolves labels, which are all ahead of their jumps.
#[derive(Default)]
struct Assembler {
    code: Vec<Insn>,
    labels: HashMap<&'static str, usize>,
    jumps: Vec<(usize, &'static str)>,
}

impl Assembler {
    fn emit(&mut self, code: u8, dst: u8, src: u8, offset: i16, immediate: i32) {
        self.code.push(Insn { code, registers: dst | src << 4, offset, immediate });
    }

    fn label(&mut self, name: &'static str) {
        self.labels.insert(name, self.code.len());
    }

    fn emit_jump(&mut self, code: u8, dst: u8, src: u8, immediate: i32, to: &'static str) {
        self.jumps.push((self.code.len(), to));
        self.emit(code, dst, src, 0, immediate);
    }

    fn move_register(&mut self, dst: u8, src: u8) {
        self.emit(0xbf, dst, src, 0, 0);
    }

    fn move_value(&mut self, dst: u8, value: i32) {
        self.emit(0xb7, dst, 0, 0, value);
    }

    fn add(&mut self, dst: u8, value: i32) {
        self.emit(0x07, dst, 0, 0, value);
    }

    fn and(&mut self, dst: u8, value: i32) {
        self.emit(0x57, dst, 0, 0, value);
    }

    /// Clears the upper half too.
    fn and_32(&mut self, dst: u8, value: i32) {
        self.emit(0x54, dst, 0, 0, value);
    }

    fn swap_to_host_16(&mut self, dst: u8) {
        self.emit(0xdc, dst, 0, 0, 16);
    }

    fn load(&mut self, width: Width, dst: u8, base: u8, offset: i16) {
        self.emit(width as u8, dst, base, offset, 0);
    }

    /// Stores 32 bits.
    fn store(&mut self, base: u8, offset: i16, src: u8) {
        self.emit(0x63, base, src, offset, 0);
    }

    /// `BPF_PSEUDO_MAP_FD`: the kernel puts the address of the map in place of the descriptor.
    fn load_map(&mut self, dst: u8, map: i32) {
        self.emit(0x18, dst, 1, 0, map);
        self.emit(0, 0, 0, 0, 0);
    }

    /// `BPF_PSEUDO_MAP_VALUE`: the address of the first value of an array.
    fn load_map_value(&mut self, dst: u8, map: i32) {
        self.emit(0x18, dst, 2, 0, map);
        self.emit(0, 0, 0, 0, 0);
    }

    fn jump(&mut self, to: &'static str) {
        self.emit_jump(0x05, 0, 0, 0, to);
    }

    fn jump_if_equal(&mut self, dst: u8, value: i32, to: &'static str) {
        self.emit_jump(0x15, dst, 0, value, to);
    }

    fn jump_if_not_equal(&mut self, dst: u8, value: i32, to: &'static str) {
        self.emit_jump(0x55, dst, 0, value, to);
    }

    fn jump_if_greater(&mut self, dst: u8, src: u8, to: &'static str) {
        self.emit_jump(0x2d, dst, src, 0, to);
    }

    fn jump_if_set(&mut self, dst: u8, bits: u32, to: &'static str) {
        self.emit_jump(0x45, dst, 0, bits as i32, to);
    }

    fn call(&mut self, helper: i32) {
        self.emit(0x85, 0, 0, 0, helper);
    }

    fn exit(&mut self) {
        self.emit(0x95, 0, 0, 0, 0);
    }

    /// R0 is the address of the value of the key on the stack, or 0.
    fn look_up(&mut self, map: i32, key: i16) {
        self.load_map(R1, map);
        self.move_register(R2, STACK);
        self.add(R2, i32::from(key));
        self.call(MAP_LOOKUP_ELEM);
    }

    /// Every label that is used is there: the program is a constant but for the maps.
    fn finish(mut self) -> Vec<Insn> {
        for (at, label) in self.jumps {
            let target = self.labels[label];
            self.code[at].offset = (target - at - 1) as i16;
        }
        self.code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jump_goes_forward_and_stays_inside() {
        let code = assemble(Maps { sockets: 3, flags: 4, macs: 5, vlans: 6 });
        let jumps = code.iter().enumerate().filter(|(_, insn)| insn.code & 7 == 5);
        for (at, insn) in jumps.filter(|(_, insn)| ![0x85, 0x95].contains(&insn.code)) {
            assert!(insn.offset >= 0 && at + 1 + (insn.offset as usize) < code.len(), "at {at}");
        }
        assert_eq!(code.last().map(|insn| insn.code), Some(0x95));
        assert_eq!(size_of::<Insn>(), 8);
    }
}
