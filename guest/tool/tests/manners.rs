//! The tool as a program, beside the programs whose formats it speaks.

use std::fs::{self, File, FileTimes, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

const TOOL: &str = env!("CARGO_BIN_EXE_vhostd-guest");

/// Options, suffix and the other program of each format that has one.
const FORMATS: [(&[&str], &str, &str); 3] =
    [(&[], "gz", "gzip"), (&["--format", "zstd"], "zst", "zstd"), (&["--format", "lz4"], "lz4", "lz4")];

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, contents).unwrap();
        path
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The tool in that directory, in software.
    fn tool(&self, args: &[&str]) -> Command {
        let mut command = Command::new(TOOL);
        command.args(args).args(["--device", "none"]).current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.tool(args).output().unwrap()
    }

    fn succeeds(&self, args: &[&str]) -> Vec<u8> {
        let output = self.run(args);
        assert!(output.status.success() && output.stderr.is_empty(), "{args:?}: {output:?}");
        output.stdout
    }

    /// Exit code and what was said.
    fn fails(&self, args: &[&str]) -> (i32, String) {
        let output = self.run(args);
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    fn other(&self, program: &str, args: &[&str]) -> Vec<u8> {
        let output = Command::new(program)
            .args(args)
            .current_dir(self.dir.path())
            .output()
            .unwrap_or_else(|error| panic!("{program} is needed ({error}); run: cargo xtask testbed"));
        assert!(output.status.success(), "{program} {args:?}: {output:?}");
        output.stdout
    }
}

/// Bytes that compress, but not to nothing.
fn data(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        b"abcdefgh"[(state >> 28) as usize % 8]
    };
    (0..len).map(next).collect()
}

fn piped(mut command: Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // It may end without having read everything.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().unwrap()
    })
}

#[test]
fn d_decompresses_as_it_does_with_gzip() {
    let bench = Bench::new();
    let data = data(300_000);
    bench.file("a", &data);
    bench.succeeds(&["compress", "-k", "a"]);
    assert!(bench.succeeds(&["compress", "-dc", "a.gz"]) == data);
    let packed = fs::read(bench.path("a.gz")).unwrap();
    assert!(piped(bench.tool(&["compress", "-d"]), &packed).stdout == data);
    fs::remove_file(bench.path("a")).unwrap();
    bench.succeeds(&["decompress", "-d", "a.gz"]);
    assert_eq!((bench.names(), fs::read(bench.path("a")).unwrap() == data), (vec!["a".to_owned()], true));
}

#[test]
fn other_programs_read_what_this_makes_and_the_other_way_round() {
    let bench = Bench::new();
    for len in [0, 1, 1000, 70_000, 1_000_000] {
        let data = data(len);
        bench.file("x", &data);
        for (options, suffix, program) in FORMATS {
            let (packed, level) = (format!("x.{suffix}"), ["-1", "-9", "-5"][len % 3]);
            bench.succeeds(&[&["compress", "-k", level, "--chunk", "64K"], options, &["x"]].concat());
            assert!(bench.other(program, &["-dc", &packed]) == data, "{program} reads {len} bytes");
            fs::remove_file(bench.path("x")).unwrap();
            bench.succeeds(&["decompress", &packed]);
            assert!(fs::read(bench.path("x")).unwrap() == data, "{packed} of {len} bytes is restored");
            let theirs = bench.other(program, &["-c", "x"]);
            bench.file(&packed, &theirs);
            assert!(
                bench.succeeds(&["decompress", "-c", &packed]) == data,
                "{program}'s {len} bytes are read"
            );
            // Several in one file.
            bench.file(&packed, &[&theirs[..], &theirs[..]].concat());
            assert!(bench.succeeds(&["decompress", "-c", &packed]) == [&data[..], &data[..]].concat());
            fs::remove_file(bench.path(&packed)).unwrap();
        }
    }
}

#[test]
fn a_zlib_file_of_any_length_is_one_stream() {
    let bench = Bench::new();
    for len in [10, 300_000] {
        let data = data(len);
        bench.file("x", &data);
        bench.succeeds(&["compress", "--format", "zlib", "--chunk", "64K", "x"]);
        assert_eq!(bench.names(), ["x.zz"]);
        // The same behind gzip's header is gzip's, but for the trailer.
        let packed = fs::read(bench.path("x.zz")).unwrap();
        let mut member = b"\x1f\x8b\x08\0\0\0\0\0\0\x03".to_vec();
        member.extend(&packed[2..packed.len() - 4]);
        bench.file("raw.gz", &member);
        let gzip = Command::new("gzip").arg("-dc").arg(bench.path("raw.gz")).output().unwrap();
        assert!(gzip.stdout == data, "{len}");
        bench.succeeds(&["decompress", "x.zz"]);
        assert!(fs::read(bench.path("x")).unwrap() == data);
        fs::remove_file(bench.path("raw.gz")).unwrap();
    }
}

#[test]
fn a_file_is_replaced_and_keeps_mode_and_time() {
    let bench = Bench::new();
    let path = bench.file("x", &data(5000));
    fs::set_permissions(&path, Permissions::from_mode(0o641)).unwrap();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let file = File::options().write(true).open(&path).unwrap();
    file.set_times(FileTimes::new().set_modified(long_ago)).unwrap();
    bench.succeeds(&["compress", "x"]);
    assert_eq!(bench.names(), ["x.gz"]);
    let meta = fs::metadata(bench.path("x.gz")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o641, 1_000_000_000));
    let packed = fs::read(bench.path("x.gz")).unwrap();
    assert_eq!(packed[4..8], 1_000_000_000u32.to_le_bytes(), "the time is saved");
    assert!(packed.windows(2).any(|bytes| bytes == b"x\0"), "the name is saved");
    bench.succeeds(&["decompress", "x.gz"]);
    let meta = fs::metadata(bench.path("x")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o641, 1_000_000_000));
    bench.succeeds(&["compress", "-n", "x"]);
    let packed = fs::read(bench.path("x.gz")).unwrap();
    assert_eq!((packed[3] & 8, &packed[4..8]), (0, &[0; 4][..]), "neither name nor time");
    bench.succeeds(&["decompress", "-k", "x.gz"]);
    assert_eq!(bench.names(), ["x", "x.gz"]);
}

#[test]
fn standard_input_goes_to_standard_output() {
    let bench = Bench::new();
    let data = data(400_000);
    for args in [&["compress"][..], &["compress", "-"], &["c", "-c", "--format", "zstd"]] {
        let packed = piped(bench.tool(args), &data);
        assert!(packed.status.success() && packed.stdout.len() < data.len() / 2, "{args:?}");
        let restored = piped(bench.tool(&["d"]), &packed.stdout);
        assert!(restored.status.success() && restored.stdout == data, "{args:?}");
    }
    assert!(bench.names().is_empty());
}

#[test]
fn what_is_refused_is_left_as_it_is() {
    let bench = Bench::new();
    bench.file("x", b"x");
    bench.file("x.gz", b"precious");
    bench.file("y.gz", b"");
    fs::create_dir(bench.path("dir")).unwrap();
    fs::hard_link(bench.path("x"), bench.path("twin")).unwrap();
    symlink("x", bench.path("link")).unwrap();
    let names = bench.names();
    for (args, code, text) in [
        (&["compress", "missing"][..], 1, "missing: No such file or directory"),
        (&["compress", "dir"], 2, "dir is a directory -- ignored"),
        (&["compress", "link"], 1, "link: Too many levels of symbolic links"),
        (&["compress", "twin"], 2, "twin has 1 other link -- ignored"),
        (&["compress", "y.gz"], 2, "y.gz already has .gz suffix -- unchanged"),
        (&["decompress", "x"], 2, "x has 1 other link -- ignored"),
        (&["decompress", "-k", "y.gz"], 1, "y.gz: unexpected end of file"),
        (&["decompress", "-c", "x.gz"], 1, "x.gz: not in gzip, zlib, zstd or lz4 format"),
        (&["compress", "--no-such-option"], 1, "unexpected argument"),
    ] {
        let (actual, said) = bench.fails(args);
        assert!(actual == code && said.contains(text), "{args:?}: {actual}, {said}");
    }
    assert_eq!(bench.names(), names);
    fs::remove_file(bench.path("twin")).unwrap();
    let (code, said) = bench.fails(&["compress", "x"]);
    assert!(code == 2 && said.contains("x.gz already exists; not overwritten"), "{code}, {said}");
    assert_eq!(fs::read(bench.path("x.gz")).unwrap(), b"precious");
    assert_eq!(fs::read(bench.path("x")).unwrap(), b"x");
    let unknown = (2, "vhostd-guest: x: unknown suffix -- ignored\n".to_owned());
    assert_eq!(bench.fails(&["decompress", "x"]), unknown);
    assert_eq!(bench.fails(&["decompress", "-q", "x"]), (2, String::new()));
}

#[test]
fn force_overwrites_and_one_bad_file_does_not_stop_the_others() {
    let bench = Bench::new();
    for name in ["a", "b", "c"] {
        bench.file(name, name.as_bytes());
    }
    bench.file("b.gz", b"in the way");
    let (code, said) = bench.fails(&["compress", "a", "none", "b", "c"]);
    assert!(code == 1 && said.lines().count() == 2, "an error counts for more than a warning: {said}");
    assert_eq!(bench.names(), ["a.gz", "b", "b.gz", "c.gz"]);
    bench.succeeds(&["compress", "-f", "b"]);
    assert_eq!(bench.names(), ["a.gz", "b.gz", "c.gz"]);
    assert_eq!(bench.succeeds(&["d", "-c", "a.gz", "b.gz", "c.gz"]), b"abc");
}

#[test]
fn damaged_files_are_found_and_nothing_is_left_of_them() {
    let bench = Bench::new();
    let data = data(300_000);
    bench.file("x", &data);
    for (options, suffix, program) in FORMATS {
        bench.succeeds(&[&["compress", "-k", "--chunk", "64K"], options, &["x"]].concat());
        let name = format!("x.{suffix}");
        let ours = fs::read(bench.path(&name)).unwrap();
        // Zstandard's program leaves the checksum out unless it is told otherwise.
        let theirs =
            bench.other(program, if program == "zstd" { &["-c", "--check", "x"] } else { &["-c", "x"] });
        fs::rename(bench.path("x"), bench.path("aside")).unwrap();
        for good in [&ours, &theirs] {
            let flipped = |at: usize| {
                let mut bad = good.clone();
                bad[at] ^= 0x10;
                bad
            };
            let cases = [
                (good[..good.len() / 2].to_vec(), "unexpected end of file"),
                (good[..good.len() - 1].to_vec(), "unexpected end of file"),
                (flipped(good.len() / 2), "invalid compressed data"),
                (flipped(good.len() - 2), "invalid compressed data"),
            ];
            for (index, (bad, expected)) in cases.into_iter().enumerate() {
                bench.file(&name, &bad);
                let (code, said) = bench.fails(&["decompress", &name]);
                let right = said.contains(expected) || index > 1 && said.contains("end of file");
                assert!(code == 1 && right, "{name} {index}: {code}, {said}");
                assert_eq!(bench.names(), ["aside", &name], "{name} {index}");
                assert_eq!(bench.fails(&["decompress", "-t", &name]).0, 1, "{name} {index}");
            }
            bench.file(&name, &[&good[..], b"garbage"].concat());
            let (code, said) = bench.fails(&["decompress", "-kf", &name]);
            assert!(code == 2 && said.contains("trailing garbage ignored"), "{name}: {code}, {said}");
            assert!(fs::read(bench.path("x")).unwrap() == data);
            fs::remove_file(bench.path("x")).unwrap();
            bench.file(&name, &[&good[..], &[0; 512]].concat());
            assert!(bench.succeeds(&["d", "-t", &name]).is_empty());
        }
        fs::remove_file(bench.path(&name)).unwrap();
        fs::rename(bench.path("aside"), bench.path("x")).unwrap();
    }
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing_behind() {
    let bench = Bench::new();
    bench.file("x", &data(3_000_000));
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = bench.tool(&["compress", "-c", "x"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "vhostd-guest: stdout: No space left on device\n");
    // A file system would take the right to mount one; a limit on the length of files fails in the same place.
    let script = format!("ulimit -f 100; trap '' XFSZ; exec {TOOL} compress --device none x");
    let output = Command::new("sh").args(["-c", &script]).current_dir(bench.dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "vhostd-guest: x.gz: File too large\n");
    assert_eq!(bench.names(), ["x"]);
}

#[test]
fn an_interrupted_run_removes_its_output_and_ends_by_the_signal() {
    let bench = Bench::new();
    for signal in [libc::SIGINT, libc::SIGTERM] {
        bench.file("large", &data(30_000_000));
        let mut child = bench.tool(&["compress", "-9", "large"]).stderr(Stdio::piped()).spawn().unwrap();
        let begin = Instant::now();
        while fs::metadata(bench.path("large.gz")).map_or(0, |meta| meta.len()) == 0 {
            assert!(begin.elapsed() < Duration::from_secs(20) && child.try_wait().unwrap().is_none());
            std::thread::sleep(Duration::from_millis(1));
        }
        kill(child.id(), signal);
        assert_eq!(child.wait().unwrap().signal(), Some(signal));
        let mut said = String::new();
        child.stderr.unwrap().read_to_string(&mut said).unwrap();
        assert_eq!((bench.names(), said.as_str()), (vec!["large".into()], ""));
    }
    // One that waits for input.
    let mut waiting = bench.tool(&["compress", "-c"]);
    let mut child = waiting.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    kill(child.id(), libc::SIGINT);
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGINT));
}

#[expect(unsafe_code, reason = "kill(2)")]
fn kill(process: u32, signal: i32) {
    // SAFETY: our child, which was not waited for yet.
    assert_eq!(unsafe { libc::kill(process as i32, signal) }, 0);
}

#[test]
fn a_reader_that_has_enough_ends_the_tool_in_silence() {
    let bench = Bench::new();
    bench.file("x", &data(4_000_000));
    bench.succeeds(&["compress", "x"]);
    let mut command = bench.tool(&["d", "-c", "x.gz"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut some = [0; 1000];
    child.stdout.take().unwrap().read_exact(&mut some).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.signal(), output.stderr.len()), (Some(libc::SIGPIPE), 0));
}

#[test]
fn a_missing_device_is_said_once_and_is_an_error_only_on_demand() {
    let bench = Bench::new();
    let path = bench.file("x", &data(2_000_000));
    let run = |extra: &[&str]| {
        let place = ["--device", "/nowhere/vcomp.sock"];
        Command::new(TOOL).args(["compress", "-c"]).arg(&path).args(place).args(extra).output().unwrap()
    };
    let output = run(&[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.lines().count() == 1, "{said}");
    assert!(said.contains("/nowhere/vcomp.sock") && said.contains("working in software"), "{said}");
    assert!(run(&["-q"]).stderr.is_empty());
    let output = run(&["--require-device"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("in software"));
}

#[test]
fn help_teaches_and_info_and_bench_work_without_a_device() {
    let bench = Bench::new();
    let help = String::from_utf8(bench.other(TOOL, &["--help"])).unwrap();
    for word in ["compress", "decompress", "bench", "info", "Examples:", "Exit codes"] {
        assert!(help.contains(word), "{word}");
    }
    let info = String::from_utf8(bench.succeeds(&["info"])).unwrap();
    assert!(info.contains("device          none"), "{info}");
    bench.file("x", &data(300_000));
    let table = String::from_utf8(bench.succeeds(&["bench", "x", "--seconds", "0.1"])).unwrap();
    assert_eq!(table.lines().filter(|line| line.starts_with("software")).count(), 2, "{table}");
}
