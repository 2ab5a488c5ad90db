//! Others read what the device writes, and the device reads what others write: Python's zlib, gzip, zstd and lz4, as they
//! come with the system.

use crate::frontend::{PACKED, Request, SPLIT, Server, Vmm};
use crate::samples::{mixture, text};
use compress_offload::algorithm;
use compress_offload::options::Limits;
use compress_protocol::{Format, Header, compress_bound};
use std::io::Write;
use std::process::{Command, Stdio};

/// What a program makes of some input.
pub fn pipe(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} does not start, see `cargo xtask testbed`: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        // A program that has seen enough closes its end.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().unwrap()
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
    output.stdout
}

/// Pieces with a length in front.
fn pack<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let piece = |piece: &'a [u8]| [&(piece.len() as u32).to_le_bytes()[..], piece].concat();
    pieces.into_iter().flat_map(piece).collect()
}

fn unpack(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk() {
        let len = u32::from_le_bytes(*len) as usize;
        assert!(
            len <= rest.len(),
            "a piece of {len} bytes in {}: {:x?}",
            rest.len(),
            &rest[..rest.len().min(64)]
        );
        let (piece, behind) = rest.split_at(len);
        pieces.push(piece.to_vec());
        bytes = behind;
    }
    pieces
}

const PYTHON: &str = r"
import sys, zlib, gzip, struct
data, out, at = sys.stdin.buffer.read(), sys.stdout.buffer, 0
def pieces():
    at = 0
    while at < len(data):
        (n,) = struct.unpack_from('<I', data, at)
        yield data[at + 4:at + 4 + n]
        at += 4 + n
def one(piece, bits):
    coder = zlib.decompressobj(bits)
    result = coder.decompress(piece) + coder.flush()
    assert coder.eof and not coder.unused_data
    return result
def make(piece, level, bits, memory, strategy):
    coder = zlib.compressobj(level, zlib.DEFLATED, bits, memory, strategy)
    return coder.compress(piece) + coder.flush()
def dictionary(piece):
    coder = zlib.compressobj(zdict=b'dictionary')
    return coder.compress(piece) + coder.flush()
for piece in pieces():
    for expression in sys.argv[1:]:
        result = eval(expression)
        out.write(struct.pack('<I', len(result)) + result)
";

/// What expressions of Python make of each piece.
pub fn python(expressions: &[&str], pieces: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let args = [&["-c", PYTHON], expressions].concat();
    unpack(&pipe("python3", &args, &pack(pieces.iter().map(Vec::as_slice))))
}

/// An LZ4 block in a frame of the old kind, which is nothing but a length in front of it.
fn legacy(block: &[u8]) -> Vec<u8> {
    [&0x184c_2102u32.to_le_bytes()[..], &(block.len() as u32).to_le_bytes(), block].concat()
}

/// What others read in each of these.
pub fn decode(format: Format, pieces: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let each = |program: &str, wrap: fn(&[u8]) -> Vec<u8>| {
        pieces.iter().map(|piece| pipe(program, &["-d", "-c", "-q"], &wrap(piece))).collect()
    };
    match format {
        Format::Deflate => python(&["one(piece, -15)"], pieces),
        Format::Zlib => python(&["one(piece, 15)"], pieces),
        Format::Gzip => python(&["gzip.decompress(piece)"], pieces),
        Format::Zstd => each("zstd", <[u8]>::to_vec),
        Format::Lz4Block => each("lz4", legacy),
        Format::Lz4Frame => each("lz4", <[u8]>::to_vec),
    }
}

/// What others make of a text, each in several ways.
fn encode(format: Format, text: &[u8]) -> Vec<Vec<u8>> {
    let piped = |program: &str, ways: &[&[&str]]| -> Vec<Vec<u8>> {
        ways.iter().map(|args| pipe(program, &[&["-c", "-q"], *args].concat(), text)).collect()
    };
    let zlib = |bits: &[&str]| -> Vec<Vec<u8>> {
        // Level, memory and strategy: default, filtered, only Huffman codes, runs, fixed codes.
        let ways = [(0, 8, 0), (1, 8, 0), (6, 9, 0), (9, 1, 0), (6, 8, 1), (6, 8, 2), (6, 8, 3), (6, 8, 4)];
        let make = |bits: &&str| {
            ways.map(|(level, memory, strategy)| {
                format!("make(piece, {level}, {bits}, {memory}, {strategy})")
            })
        };
        let expressions: Vec<String> = bits.iter().flat_map(make).collect();
        python(&expressions.iter().map(String::as_str).collect::<Vec<_>>(), &[text.to_vec()])
    };
    match format {
        Format::Deflate => zlib(&["-15", "-9"]),
        Format::Zlib => zlib(&["15", "10"]),
        Format::Gzip => {
            let name =
                std::env::temp_dir().join(format!("vhostd-gzip-{}-{}", std::process::id(), text.len()));
            std::fs::write(&name, text).unwrap();
            let named = pipe("gzip", &["-N", "-c", name.to_str().unwrap()], &[]);
            std::fs::remove_file(name).unwrap();
            [zlib(&["31"]), piped("gzip", &[&["-1"], &["-9"]]), vec![named]].concat()
        }
        Format::Zstd => piped(
            "zstd",
            &[
                &["-1"],
                &["--fast=5"],
                &["-19"],
                &["--no-check"],
                &["-3", "--no-content-size"],
                &["-B65536", "-T2"],
            ],
        ),
        Format::Lz4Block => {
            // Of the frame of the old kind: one block, as long as the text is short.
            piped("lz4", &[&["-l", "-1"], &["-l", "-9"]]).into_iter().map(|file| file[8..].to_vec()).collect()
        }
        Format::Lz4Frame => piped(
            "lz4",
            &[
                &["-1"],
                &["-12"],
                &["-B4", "-BD"],
                &["-B5", "-BX"],
                &["--no-frame-crc"],
                &["--content-size"],
                &["-B7"],
            ],
        ),
    }
}

/// Levels worth a try: both ends, the default, some between.
pub fn levels(format: Format) -> Vec<i32> {
    let (min, max) = (i32::from(algorithm::levels(format).min), i32::from(algorithm::levels(format).max));
    let mut levels = vec![0, min, -1, 1, 3, 4, 6, 9, max];
    levels.retain(|level| *level == 0 || (min..=max).contains(level));
    levels.dedup();
    levels
}

#[test]
fn what_the_device_writes_is_read_by_others() {
    let server = Server::new();
    for (wanted, sizes) in [(SPLIT, vec![0, 1, 100, 4096, 70_001]), (PACKED, vec![12_345, 300_000])] {
        let mut vmm = Vmm::running(&server, wanted);
        for format in Format::ALL {
            let (mut results, mut texts) = (Vec::new(), Vec::new());
            for level in levels(format) {
                for text in sizes.iter().flat_map(|len| [text(*len), mixture(*len), vec![7; *len]]) {
                    let bound = compress_bound(text.len() as u32) as u32;
                    let header = Header::compress(format, text.len() as u32, bound).with_level(level);
                    let answer = vmm.ask(Request::new(header, &text));
                    assert_eq!(answer.response.consumed as usize, text.len());
                    results.push(answer.result().to_vec());
                    texts.push(text);
                }
            }
            for (index, read) in decode(format, &results).into_iter().enumerate() {
                assert!(read == texts[index], "{format}, {index}, of {} bytes", texts[index].len());
            }
        }
    }
}

#[test]
fn what_others_write_is_read_by_the_device() {
    let server = Server::limited(Limits { max_size: 2 << 20, ..Limits::default() });
    let mut vmm = Vmm::running(&server, SPLIT);
    for format in Format::ALL {
        for text in [text(1), text(5000), mixture(200_000), vec![0; 1 << 20]] {
            for (index, data) in encode(format, &text).into_iter().enumerate() {
                let header = Header::decompress(format, data.len() as u32, text.len() as u32);
                let answer = vmm.ask(Request::new(header, &data));
                assert!(answer.result() == text, "{format}, {index}, of {} bytes", text.len());
                assert_eq!(answer.response.consumed as usize, data.len(), "{format}, {index}");
            }
        }
    }
}
