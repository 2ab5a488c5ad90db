//! TCP and UDP packets, and the checks of a receiver.

use super::mac;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
/// CWR and ACK.
pub const CWR: u8 = 0x90;
const ETHERNET: usize = 14;

/// A TCP or UDP packet from host 1 to host 2.
#[derive(Clone, Copy)]
pub struct Packet {
    pub v6: bool,
    pub protocol: u8,
    /// Source port.
    pub flow: u16,
    pub payload: usize,
    /// TCP flags.
    pub flags: u8,
}

impl Packet {
    pub fn new(v6: bool, protocol: u8, payload: usize) -> Self {
        Self { v6, protocol, flow: 1000, payload, flags: 0x10 }
    }

    fn ip_len(self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    fn l4_len(self) -> usize {
        if self.protocol == TCP { 20 } else { 8 }
    }

    pub fn l4_start(self) -> usize {
        ETHERNET + self.ip_len()
    }

    pub fn headers(self) -> usize {
        self.l4_start() + self.l4_len()
    }

    fn checksum_offset(self) -> usize {
        if self.protocol == TCP { 16 } else { 6 }
    }

    /// The frame with its transport checksum left to the device: the sum of the pseudo header is in its place.
    pub fn partial(self) -> Vec<u8> {
        let mut frame = self.bare();
        let l4 = self.l4_start();
        let sum = fold(pseudo(&frame, self.v6, self.protocol, frame.len() - l4));
        frame[l4 + self.checksum_offset()..][..2].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    /// The finished frame.
    pub fn finished(self) -> Vec<u8> {
        let mut frame = self.bare();
        let l4 = self.l4_start();
        let sum = pseudo(&frame, self.v6, self.protocol, frame.len() - l4) + words(&frame[l4..]);
        frame[l4 + self.checksum_offset()..][..2].copy_from_slice(&(!fold(sum)).to_be_bytes());
        frame
    }

    fn bare(self) -> Vec<u8> {
        let mut frame = [&mac(2).0[..], &mac(1).0].concat();
        let len = self.l4_len() + self.payload;
        if self.v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((len as u16).to_be_bytes());
            frame.extend([self.protocol, 64]);
            frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        } else {
            let mut ip = vec![0x45, 0];
            ip.extend(((20 + len) as u16).to_be_bytes());
            ip.extend([0, 1, 0, 0, 64, self.protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            let sum = !fold(words(&ip));
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend([8, 0]);
            frame.extend(ip);
        }
        frame.extend(self.flow.to_be_bytes());
        frame.extend(2000u16.to_be_bytes());
        match self.protocol {
            TCP => frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]),
            _ => {
                frame.extend((len as u16).to_be_bytes());
                frame.extend([0, 0]);
            }
        }
        frame.extend((0..self.payload).map(|i| (i % 251) as u8));
        frame
    }

    /// A virtio-net header for [`partial`](Self::partial): the checksum is left undone, and so is what `gso` names.
    pub fn header(self, gso: u8, size: u16) -> Vec<u8> {
        let mut header = vec![1, gso];
        let hdr_len = if gso == 0 { 0 } else { self.headers() };
        for value in [hdr_len as u16, size, self.l4_start() as u16, self.checksum_offset() as u16, 0] {
            header.extend(value.to_le_bytes());
        }
        header
    }
}

fn words(bytes: &[u8]) -> u64 {
    let pair = |pair: &[u8]| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
    bytes.chunks(2).map(pair).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn pseudo(frame: &[u8], v6: bool, protocol: u8, len: usize) -> u64 {
    let addresses =
        if v6 { &frame[ETHERNET + 8..ETHERNET + 40] } else { &frame[ETHERNET + 12..ETHERNET + 20] };
    words(addresses) + u64::from(protocol) + len as u64
}

/// Whether all checksums of a received packet are right, as a receiver finds out that trusts nobody.
pub fn is_finished(frame: &[u8]) -> bool {
    let v6 = frame[12..14] == [0x86, 0xdd];
    let (ip, protocol) = if v6 { (40, frame[ETHERNET + 6]) } else { (20, frame[ETHERNET + 9]) };
    let l4 = &frame[ETHERNET + ip..];
    let header = v6 || fold(words(&frame[ETHERNET..ETHERNET + 20])) == 0xffff;
    header && fold(pseudo(frame, v6, protocol, l4.len()) + words(l4)) == 0xffff
}
