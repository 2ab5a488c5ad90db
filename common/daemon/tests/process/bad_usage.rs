//! A bad command line or configuration: one sentence, exit code 2, nothing left behind.

use std::path::Path;

use crate::toy;

/// Asserts that these arguments are refused and returns the sentence.
fn refused(args: &[&str]) -> String {
    let output = toy::run(args);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
    assert!(output.stdout.is_empty(), "{args:?}");
    assert!(text.starts_with("toy: ") && text.len() > 15, "{args:?}: {text}");
    assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
    text
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn bad_arguments_are_one_sentence_and_exit_code_2() {
    let long = format!("/tmp/{}", "x".repeat(110));
    let cases: &[&[&str]] = &[
        &[],
        &["--unknown"],
        &["stray"],
        &["--socket-path"],
        &["--socket-path", &long],
        &["--socket-path", "/nonexistent/dir/s"],
        &["--connect", &long],
        &["--fd", "1"],
        &["--fd", "77"],
        &["--fd", "3", "--socket-path", "s"],
        &["--socket-path", "s", "--poll", "maybe"],
        &["--socket-path", "s", "--cpus", "x"],
        &["--socket-path", "s", "--cpus", "1023"],
        &["--socket-path", "s", "--workers", "0"],
        &["--socket-path", "s", "--metrics", "nowhere"],
        &["--socket-path", "s", "--socket-mode", "8"],
        &["--socket-path", "s", "--socket-group", "no such group"],
        &["--socket-path", "s", "--allow-path", "/nonexistent"],
        &["--socket-path", "s", "--config", "/nonexistent.toml"],
        &["--socket-path", "s", "--no-sandbox", "--sandbox", "enforce"],
    ];
    for args in cases {
        refused(args);
    }
}

#[test]
fn a_path_that_is_taken_is_named_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    std::fs::write(&path, "precious").unwrap();
    let sentence = refused(&["--socket-path", path.to_str().unwrap()]);
    assert!(sentence.contains(path.to_str().unwrap()), "{sentence}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn a_live_socket_is_refused_and_goes_on_living() {
    let running = toy::Toy::start(&[]);
    let socket = running.socket();
    let sentence = refused(&["--socket-path", socket.to_str().unwrap()]);
    assert!(sentence.contains("in use"), "{sentence}");
    let control = running.control();
    let other = running.dir.path().join("other");
    refused(&["--socket-path", other.to_str().unwrap(), "--control-socket", control.to_str().unwrap()]);
    assert_eq!(names(running.dir.path()), ["c", "s"]);
    running.call("status", serde_json::Value::Null).unwrap();
}

#[test]
fn what_was_opened_before_the_error_is_gone_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    refused(&[
        "--socket-path",
        &path("s"),
        "--control-socket",
        &path("c"),
        "--metrics",
        "unix:/nonexistent/m",
    ]);
    assert!(names(dir.path()).is_empty(), "{:?}", names(dir.path()));
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = busy.local_addr().unwrap().to_string();
    refused(&["--socket-path", &path("s"), "--control-socket", &path("c"), "--metrics", &address]);
    assert!(names(dir.path()).is_empty(), "{:?}", names(dir.path()));
}

#[test]
fn a_bad_configuration_file_is_named_with_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("toy.toml");
    let config = |text: &str| {
        std::fs::write(&path, text).unwrap();
        refused(&["--config", path.to_str().unwrap()])
    };
    let unknown = config("[daemon]\nlog-level = 'info'\n[[disk]]\nid = 'a'\nsokcet = '/tmp/a'\n");
    assert!(
        unknown.contains("line 5") && unknown.contains("`sokcet`") && unknown.contains("`socket`"),
        "{unknown}"
    );
    let value = config("[daemon]\npoll = 'maybe'\n");
    assert!(value.contains("line 2") && value.contains("adaptive"), "{value}");
    assert!(config("[daemon\n").contains("line 1"));
    config("[daemon]\ncolour = 'blue'\n");
    config("[[disk]]\nid = 'a'\n");
    config("[[disk]]\nid = 'a'\nfd-name = 'not passed'\n");
    assert_eq!(names(dir.path()), ["toy.toml"]);
}

#[test]
fn help_version_and_capabilities_are_on_standard_output_and_exit_0() {
    for (args, text) in [
        ("--help", "--socket-path"),
        ("-h", "Usage"),
        ("--version", "toy "),
        ("--print-capabilities", "\"block\""),
    ] {
        let output = toy::run(&[args]);
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8(output.stdout).unwrap().contains(text), "{args}");
        assert!(output.stderr.is_empty());
    }
    let output = toy::run(&["--print-capabilities"]);
    let capabilities: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(capabilities, serde_json::json!({"type": "block", "features": ["read-only"]}));
}

#[test]
fn arguments_win_over_the_configuration_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("toy.toml");
    let socket = dir.path().join("a.sock");
    let text = format!(
        "[daemon]\nlog-level = 'warn'\nsandbox = 'log'\n[[disk]]\nid = 'a'\nsocket = '{}'\n",
        socket.display()
    );
    std::fs::write(&file, text).unwrap();
    let mut command = std::process::Command::new(toy::program());
    command.arg("--config").arg(&file);
    let toy = toy::Toy::start_as(command, dir, &["--log-level", "debug"]);
    let status = toy.call("status", serde_json::Value::Null).unwrap();
    assert_eq!((status["log_level"].as_str(), status["sandbox"].as_str()), (Some("debug"), Some("log")));
    assert_eq!(status["sessions"]["a"]["state"], "running");
}
