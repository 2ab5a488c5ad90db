//! `cargo xtask bench`: the figures of the README.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{run, workspace};

/// Options of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Only the criterion benches.
    #[arg(long, conflicts_with = "peers")]
    micro: bool,
    /// Only the comparisons with the installed peers, the ring figure and the idle figure.
    #[arg(long)]
    peers: bool,
    /// Passed on to each `vhostd-bench compare`, such as `-- --rounds 1 --runtime 1`.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Runs the criterion benches, then everything that has an aim.
pub fn run(args: &Args) -> Result<()> {
    if !args.peers {
        run::check(&mut run::cargo(["bench", "--package", "benches", "--benches"]))?;
        for package in ["crypto-offload", "compress-offload"] {
            run::check(&mut run::cargo(["bench", "--package", package, "--bench", "engines"]))?;
        }
    }
    if args.micro { Ok(()) } else { figures(&args.rest) }
}

/// Every figure is shown, whatever became of the one before; what went wrong is named at the end.
fn figures(rest: &[String]) -> Result<()> {
    let mut build = run::cargo(["build", "--release"]);
    build.args(
        ["blk-backend", "net-backend", "crypto-offload", "compress-offload", "benches"]
            .map(|name| format!("--package={name}")),
    );
    if has_isal() {
        build.arg("--features=compress-offload/isal");
    } else {
        println!(
            "Without ISA-L, which the figures of DEFLATE at level 1 are for: apt-get install libisal-dev"
        );
    }
    run::check(&mut build)?;
    let bench = workspace::release_binary("vhostd-bench")?;
    let folder = workspace::target()?.join("bench");
    std::fs::create_dir_all(&folder).with_context(|| format!("Cannot create {}", folder.display()))?;
    let mut commands = commands(&bench, &specs(&workspace::root().join("benches/specs"))?, &folder, rest);
    commands.extend([guest_rates("tap-rates")?, guest_rates("crypto-rates")?]);
    let mut failed = Vec::new();
    for mut command in commands {
        println!("\n=== {}", run::shown(&command));
        if let Err(error) = run::check(command.current_dir(workspace::root())) {
            eprintln!("{error:#}");
            failed.push(run::shown(&command));
        }
    }
    if !failed.is_empty() {
        bail!(
            "Not everything was measured; peers come from `cargo xtask testbed`. Failed: {}",
            failed.join("; ")
        );
    }
    Ok(())
}

/// The library that compression's fastest engine is, as a linker finds it.
fn has_isal() -> bool {
    let folders = ["/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/lib/x86_64-linux-gnu"];
    folders.iter().any(|folder| Path::new(folder).join("libisal.so").exists())
}

/// What a guest in QEMU gets, through a TAP or from a crypto device, beside what QEMU's own give it.
fn guest_rates(program: &str) -> Result<Command> {
    let mut command = run::cargo(["run", "--quiet", "--package", "e2e", "--bin", program]);
    command
        .env("VHOSTD_BIN_DIR", workspace::target()?.join("release"))
        .env("VHOSTD_TESTBED", workspace::testbed());
    Ok(command)
}

/// The specifications, by name.
fn specs(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("Cannot list {}", folder.display()))?;
    let mut specs = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    specs.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    specs.sort();
    Ok(specs)
}

/// The rings, each comparison, the modes of crypto and compression devices, the composite experiment, what idle devices cost,
/// and what a kill does to frames. Images go
/// into `folder`: the temporary directory may be memory, which has no direct I/O.
fn commands(bench: &Path, specs: &[PathBuf], folder: &Path, rest: &[String]) -> Vec<Command> {
    let with = |args: &[&str]| {
        let mut command = Command::new(bench);
        command.args(args);
        command
    };
    let own_folder = rest.iter().any(|arg| arg == "--folder" || arg.starts_with("--folder="));
    let compare = |spec: &PathBuf| {
        let mut command = with(&["compare"]);
        command.arg(spec.strip_prefix(workspace::root()).unwrap_or(spec));
        if !own_folder {
            command.arg("--folder").arg(folder);
        }
        command.args(rest);
        command
    };
    let mut commands = vec![with(&["ring"])];
    commands.extend(specs.iter().map(compare));
    commands.extend([
        with(&["crypto-modes"]),
        with(&["compress-modes"]),
        with(&["composite"]),
        with(&["idle"]),
        with(&["idle", "--net"]),
        with(&["idle", "--crypto"]),
        with(&["idle", "--compress"]),
        with(&["blackout"]),
    ]);
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(rest: &[&str]) -> Vec<String> {
        let specs = specs(&workspace::root().join("benches/specs")).unwrap();
        let rest: Vec<String> = rest.iter().map(|arg| (*arg).to_owned()).collect();
        let commands = commands(Path::new("vhostd-bench"), &specs, Path::new("/images"), &rest);
        commands.iter().map(run::shown).collect()
    }

    #[test]
    fn every_specification_is_compared_between_the_rings_and_what_idles() {
        let lines = lines(&["--rounds", "1"]);
        assert_eq!(lines.first().map(String::as_str), Some("vhostd-bench ring"));
        let last = [
            "crypto-modes",
            "compress-modes",
            "composite",
            "idle",
            "idle --net",
            "idle --crypto",
            "idle --compress",
            "blackout",
        ];
        assert_eq!(lines[lines.len() - last.len()..], last.map(|args| format!("vhostd-bench {args}")));
        let null = "vhostd-bench compare benches/specs/blk-null.toml --folder /images --rounds 1";
        assert!(lines.iter().any(|line| line == null), "{lines:?}");
        assert!(lines.len() >= 7, "{lines:?}");
    }

    #[test]
    fn a_folder_of_the_user_is_the_only_one() {
        for rest in [&["--folder", "/disk"][..], &["--folder=/disk"]] {
            assert!(lines(rest).iter().all(|line| !line.contains("/images")));
        }
    }
}
