//! The files under `deploy/` are what the tools that read them expect.

use std::path::{Path, PathBuf};

use daemon::config::Settings;

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(name)
}

fn read(name: &str) -> String {
    let path = deploy(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn qemus_capability_files_name_a_type_and_an_absolute_binary() {
    for entry in std::fs::read_dir(deploy("qemu")).unwrap() {
        let name = format!("qemu/{}", entry.unwrap().file_name().to_str().unwrap());
        let json: serde_json::Value = serde_json::from_str(&read(&name)).unwrap();
        assert!(json["description"].is_string(), "{name}");
        let binary = json["binary"].as_str().unwrap();
        assert!(binary.starts_with('/') && name.contains(binary.rsplit('/').next().unwrap()), "{name}");
        // Members of VhostUserBackend in QEMU's docs/interop/vhost-user.json, and no other.
        let known = ["description", "type", "binary", "tags"];
        assert!(json.as_object().unwrap().keys().all(|key| known.contains(&key.as_str())), "{name}");
    }
}

#[test]
fn the_example_configurations_have_only_settings_that_exist() {
    example("vhostd-blk.toml", "disk");
    example("vhostd-net.toml", "port");
    example("vhostd-crypto.toml", "device");
    example("vhostd-compress.toml", "device");
}

fn example(name: &str, devices: &str) {
    let text = read(name);
    let file: toml::Table = text.parse().unwrap();
    let settings: Settings = file["daemon"].clone().try_into().unwrap();
    assert!(settings.control_socket.is_some() && settings.metrics.is_some());
    // What is commented out is meant to be uncommented.
    let all: String =
        text.lines().map(|line| line.strip_prefix("# ").unwrap_or(line).to_owned() + "\n").collect();
    let shown = all.lines().filter(|line| {
        let key = line.split_once(" = ").map_or("", |(key, _)| key);
        line.starts_with('[') || (!key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
    });
    let full: toml::Table = shown.collect::<Vec<_>>().join("\n").parse().unwrap();
    let _: Settings = full["daemon"].clone().try_into().unwrap();
    assert_eq!(full[devices].as_array().unwrap().len(), 2);
}

#[test]
fn units_restart_always_but_not_on_bad_configuration() {
    for daemon in ["blk", "net", "crypto", "compress"] {
        let name = format!("systemd/vhostd-{daemon}@.service");
        let unit = read(&name);
        for line in ["Type=notify", "Restart=always", "RestartPreventExitStatus=2", "NoNewPrivileges=yes"] {
            assert!(unit.lines().any(|have| have == line), "{name}: {line}");
        }
    }
}
