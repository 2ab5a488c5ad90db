//! Other people's programs: python3 (zlib itself), gzip, zstd and lz4 read what engines write, and the other way round.

use std::io::Write;
use std::process::{Command, Stdio};

use super::*;
use crate::algorithm::levels;

/// Feeds `input` to a program; its output. A program that is missing is an error: `cargo xtask testbed` says what to install.
#[track_caller]
fn pipe(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; install it"));
    let mut stdin = child.stdin.take().expect("a pipe");
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).expect("the program reads"));
        child.wait_with_output().expect("it ends")
    });
    assert!(output.status.success(), "{program} {arguments:?}: {}", output.status);
    output.stdout
}

const INFLATE: &str = "import sys,zlib; d=zlib.decompressobj(int(sys.argv[1])); o=d.decompress(sys.stdin.buffer.read()); \
     assert d.eof and not d.unused_data; sys.stdout.buffer.write(o)";
const DEFLATE: &str = "import sys,zlib; c=zlib.compressobj(int(sys.argv[2]),8,int(sys.argv[1])); \
     sys.stdout.buffer.write(c.compress(sys.stdin.buffer.read())+c.flush())";

/// How zlib calls the wrappers.
fn window_bits(format: Format) -> &'static str {
    match format {
        Format::Deflate => "-15",
        Format::Zlib => "15",
        _ => "31",
    }
}

fn foreign_decompress(format: Format, data: &[u8]) -> Vec<u8> {
    match format {
        Format::Deflate | Format::Zlib => pipe("python3", &["-c", INFLATE, window_bits(format)], data),
        Format::Gzip => pipe("gzip", &["-dc"], data),
        Format::Zstd => pipe("zstd", &["-dcq"], data),
        _ => pipe("lz4", &["-dcq"], data),
    }
}

fn foreign_compress(format: Format, level: &str, data: &[u8]) -> Vec<u8> {
    match format {
        Format::Deflate | Format::Zlib => pipe("python3", &["-c", DEFLATE, window_bits(format), level], data),
        Format::Gzip => pipe("gzip", &["-c", &format!("-{level}")], data),
        Format::Zstd => pipe("zstd", &["-cq", &format!("-{level}")], data),
        _ => pipe("lz4", &["-cq", &format!("-{level}")], data),
    }
}

/// The formats that foreign programs have: nobody has blocks of LZ4 without frames.
fn formats() -> impl Iterator<Item = Format> {
    Format::ALL.into_iter().filter(|&format| format != Format::Lz4Block)
}

#[test]
fn others_read_what_engines_write() {
    let data = [text(150_000), noise(3_000), vec![0; 50_000]].concat();
    for format in formats() {
        for level in [levels(format).min, 3, levels(format).max] {
            let params = Params::new(format).with_level(level.into());
            for mut engine in engines(Op::Compress, &params) {
                for data in [&data[..], &[]] {
                    let compressed = compress(&mut *engine, &params, data);
                    assert!(foreign_decompress(format, &compressed) == data, "{} {params:?}", engine.name());
                }
            }
        }
    }
}

#[test]
fn engines_read_what_others_write() {
    let data = [text(400_000), noise(3_000), vec![0; 50_000]].concat();
    for format in formats() {
        for level in ["1", "9"] {
            for data in [&data[..], &[]] {
                let compressed = foreign_compress(format, level, data);
                for mut engine in engines(Op::Decompress, &Params::new(format)) {
                    let again = decompress(&mut *engine, format, &compressed, data.len());
                    assert!(again == data, "{} {format} -{level}", engine.name());
                }
            }
        }
    }
}

#[test]
fn python_reads_gzip_as_well() {
    let data = text(10_000);
    let compressed = stream(Format::Gzip, &data);
    assert_eq!(pipe("python3", &["-c", INFLATE, "31"], &compressed), data);
    let with_header = pipe(
        "python3",
        &[
            "-c",
            "import sys,gzip; f=gzip.GzipFile('name','wb',6,sys.stdout.buffer,12345); f.write(sys.stdin.buffer.read()); f.close()",
        ],
        &data,
    );
    for mut engine in engines(Op::Decompress, &Params::new(Format::Gzip)) {
        assert_eq!(
            decompress(&mut *engine, Format::Gzip, &with_header, data.len()),
            data,
            "{}",
            engine.name()
        );
    }
}
