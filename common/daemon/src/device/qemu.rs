//! The arguments with which QEMU attaches devices, shown to someone who starts a daemon in a terminal.

use std::fmt::Write;
use std::io::IsTerminal;

use crate::EndpointSpec;
use crate::cli::{qemu_path, shell_word};

/// Whose devices a process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guests {
    /// All are those of one guest.
    One,
    /// Each has a guest of its own.
    Each,
}

/// What becomes of QEMU's connection when the daemon is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reconnect {
    /// QEMU tries again every second.
    EverySecond,
    /// Never: QEMU cannot start this kind of device a second time.
    Never,
}

/// For QEMU to try again every second.
const RECONNECT: &str = ",reconnect=1";

/// What to do next; nothing if no device has a socket with a path. `arguments` has those of each device.
pub fn first_steps(guests: Guests, arguments: impl Iterator<Item = Option<String>>) -> String {
    let attached: Vec<_> = arguments.flatten().collect();
    let mut text = String::new();
    if attached.is_empty() {
        return text;
    }
    text.push_str(if guests == Guests::One || attached.len() == 1 {
        "Start the guest with these arguments besides its own (share=on: the daemon works in the guest's memory):\n"
    } else {
        "Start each guest with the first line and one of the others besides its own arguments (share=on: the daemon \
         works in the guest's memory):\n"
    });
    text.push_str(
        "  -m 2G -object memory-backend-memfd,id=mem,size=2G,share=on -machine q35,accel=kvm:tcg,memory-backend=mem",
    );
    let reconnects = attached.iter().any(|each| each.contains(RECONNECT));
    for each in attached {
        // Writing to a string does not fail.
        let _ = write!(text, " \\\n  {each}");
    }
    text.push('\n');
    if reconnects {
        text.push_str("QEMU from 9.2 on takes reconnect-ms=1000 instead of reconnect=1.\n");
    }
    text
}

/// `-chardev` with this id, the other end of a socket with a path; nothing for a socket without one.
pub fn chardev(id: &str, endpoint: &EndpointSpec, reconnect: Reconnect) -> Option<String> {
    let (path, mode) = match (&endpoint.socket_path, &endpoint.connect, reconnect) {
        (Some(path), _, Reconnect::EverySecond) => (path, RECONNECT),
        (Some(path), _, Reconnect::Never) => (path, ""),
        (None, Some(path), _) => (path, ",server=on,wait=off"),
        (None, None, _) => return None,
    };
    let word = shell_word(&format!("socket,id={id},path={}", qemu_path(path)));
    Some(format!("-chardev {word}{mode}"))
}

/// Shows the text to someone who tries it by hand; a service has no terminal.
pub fn show(first_steps: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("{first_steps}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listens() -> EndpointSpec {
        EndpointSpec { socket_path: Some("/run/a,b c".into()), ..EndpointSpec::default() }
    }

    #[test]
    fn memory_is_shared_and_devices_follow() {
        let text = first_steps(Guests::One, [Some("-device a".into()), None].into_iter());
        assert!(text.contains("share=on") && text.contains("memory-backend=mem \\\n  -device a\n"), "{text}");
    }

    #[test]
    fn devices_of_several_guests_are_not_for_one() {
        let two = || [Some("-device a".to_owned()), Some("-device b".to_owned())].into_iter();
        assert!(first_steps(Guests::One, two()).starts_with("Start the guest "));
        assert!(first_steps(Guests::Each, two()).starts_with("Start each guest "));
        assert!(first_steps(Guests::Each, two().take(1)).starts_with("Start the guest "));
    }

    #[test]
    fn users_of_newer_qemu_are_told_its_word_for_reconnect_where_it_matters() {
        let of = |reconnect| first_steps(Guests::One, [chardev("c", &listens(), reconnect)].into_iter());
        assert!(of(Reconnect::EverySecond).contains("reconnect-ms=1000"));
        assert!(!of(Reconnect::Never).contains("reconnect"));
    }

    #[test]
    fn a_socket_becomes_a_chardev() {
        let word = "-chardev 'socket,id=c,path=/run/a,,b c'";
        assert_eq!(chardev("c", &listens(), Reconnect::EverySecond), Some(format!("{word},reconnect=1")));
        assert_eq!(chardev("c", &listens(), Reconnect::Never), Some(word.to_owned()));
    }

    #[test]
    fn a_frontend_that_is_connected_to_must_listen() {
        let endpoint = EndpointSpec { connect: Some("/run/a".into()), ..EndpointSpec::default() };
        let word = chardev("c", &endpoint, Reconnect::Never).unwrap();
        assert!(word.ends_with("path=/run/a,server=on,wait=off"), "{word}");
    }

    #[test]
    fn an_inherited_socket_needs_no_words() {
        let inherited = EndpointSpec { fd: Some(3), ..EndpointSpec::default() };
        assert_eq!(chardev("c", &inherited, Reconnect::EverySecond), None);
        assert_eq!(first_steps(Guests::One, [None].into_iter()), "");
    }
}
