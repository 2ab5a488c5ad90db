//! What is asked of the switch, by name: the numbers of the ports, their policies, and who mirrors to whom.

use crate::frame::MacAddr;
use crate::options::{CAPTURE_PREFIX, MirrorOptions};
use crate::switch::{
    CaptureOptions, MAX_PORTS, MirrorPolicy, MirrorTarget, Policy, PortId, PortPolicy, SwitchOptions,
};
use daemon::{Failure, Setup};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// How a full mirror file makes room for the next.
#[cfg(target_arch = "x86_64")]
const RENAMES: &[i64] = &[libc::SYS_rename, libc::SYS_renameat, libc::SYS_renameat2];
#[cfg(not(target_arch = "x86_64"))]
const RENAMES: &[i64] = &[libc::SYS_renameat, libc::SYS_renameat2];

/// Names, numbers and policies of all ports. A change is made on a copy, which then takes the place of the original.
#[derive(Clone, Debug)]
pub struct Board {
    numbers: BTreeMap<String, PortId>,
    policy: Arc<Policy>,
}

impl Board {
    /// A switch without ports.
    pub fn new(aging: u32) -> Result<Self, Failure> {
        let policy = Policy::new(SwitchOptions { aging }, BTreeMap::new()).map_err(Failure::usage)?;
        Ok(Self { numbers: BTreeMap::new(), policy: Arc::new(policy) })
    }

    /// What the workers decide by.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// The number of a port.
    pub fn number(&self, id: &str) -> Result<PortId, Failure> {
        self.numbers.get(id).copied().ok_or_else(|| Failure::usage(format!("There is no port '{id}'")))
    }

    /// The name behind a number.
    pub fn name(&self, number: PortId) -> Option<&str> {
        self.numbers.iter().find(|(_, held)| **held == number).map(|(name, _)| name.as_str())
    }

    /// What is asked of a port.
    pub fn port(&self, id: &str) -> Option<&PortPolicy> {
        self.policy.port(*self.numbers.get(id)?)
    }

    /// Whether a port of this name and with these addresses can be added.
    pub fn check_new(&self, id: &str, macs: &[MacAddr]) -> Result<(), Failure> {
        if self.numbers.contains_key(id) {
            return Err(Failure::usage(format!("There is a port '{id}' already")));
        }
        if self.numbers.len() >= MAX_PORTS {
            return Err(Failure::usage(format!(
                "A switch has at most {MAX_PORTS} ports, the uplink included"
            )));
        }
        self.check_macs(id, macs)
    }

    /// One address is one guest's, whatever its VLAN: two with the same are a mistake far more often than a wish.
    fn check_macs(&self, id: &str, macs: &[MacAddr]) -> Result<(), Failure> {
        let mut others = self.numbers.keys().filter(|other| *other != id);
        let taken = others.find_map(|other| {
            let held = &self.port(other)?.macs;
            macs.iter().find(|mac| held.contains(mac)).map(|mac| (mac, other))
        });
        match taken {
            Some((mac, other)) => Err(Failure::usage(format!(
                "The address {mac} of port '{id}' is already that of port '{other}'"
            ))),
            None => Ok(()),
        }
    }

    /// Whether a port can go: no other one mirrors to it.
    pub fn check_removable(&self, id: &str) -> Result<(), Failure> {
        let number = self.number(id)?;
        let target = Some(MirrorTarget::Port(number));
        let source = self
            .policy
            .ports()
            .iter()
            .find(|(_, port)| port.mirror.as_ref().map(|mirror| mirror.to.clone()) == target);
        match source.and_then(|(source, _)| self.name(*source)) {
            Some(source) => Err(Failure::usage(format!("The port '{id}' is the mirror of port '{source}'"))
                .hint("take the mirror away first: mirror.remove")),
            None => Ok(()),
        }
    }

    /// Gives a name a number; its policy follows by [`set`](Self::set), and may by then refer to other names.
    pub fn reserve(&mut self, id: &str) -> Result<PortId, Failure> {
        let free = (0..MAX_PORTS as u16).map(PortId).find(|number| self.name(*number).is_none());
        let number = free.ok_or_else(|| Failure::usage("The switch has no room for one more port"))?;
        self.numbers.insert(id.to_owned(), number);
        Ok(number)
    }

    /// Adds a port with its policy.
    pub fn add(
        &mut self,
        id: &str,
        policy: PortPolicy,
        mirror: Option<&MirrorOptions>,
    ) -> Result<(), Failure> {
        self.reserve(id)?;
        self.set(id, policy, mirror)
    }

    /// Takes a port away.
    pub fn remove(&mut self, id: &str) -> Result<(), Failure> {
        let number = self.number(id)?;
        self.policy = Arc::new(self.policy.without_port(number).map_err(Failure::usage)?);
        self.numbers.remove(id);
        Ok(())
    }

    /// Sets all that is asked of a port.
    pub fn set(
        &mut self,
        id: &str,
        policy: PortPolicy,
        mirror: Option<&MirrorOptions>,
    ) -> Result<(), Failure> {
        let mirror = mirror.map(|mirror| self.mirror(mirror)).transpose()?;
        self.put(id, PortPolicy { mirror, ..policy })
    }

    /// Changes some of it.
    pub fn change(
        &mut self,
        id: &str,
        change: impl FnOnce(&mut PortPolicy) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let Some(mut policy) = self.port(id).cloned() else { return self.number(id).map(|_| ()) };
        change(&mut policy)?;
        self.put(id, policy)
    }

    /// Begins, changes or ends the copying of a port's frames.
    pub fn set_mirror(&mut self, id: &str, mirror: Option<&MirrorOptions>) -> Result<(), Failure> {
        let mirror = mirror.map(|mirror| self.mirror(mirror)).transpose()?;
        self.change(id, |policy| {
            policy.mirror = mirror;
            Ok(())
        })
    }

    fn put(&mut self, id: &str, policy: PortPolicy) -> Result<(), Failure> {
        self.check_macs(id, &policy.macs)?;
        let number = self.number(id)?;
        let policy = PortPolicy { name: id.to_owned(), ..policy };
        self.policy = Arc::new(self.policy.with_port(number, policy).map_err(Failure::usage)?);
        Ok(())
    }

    /// Changes what all ports share, and returns it.
    pub fn set_options(&mut self, options: SwitchOptions) -> Result<SwitchOptions, Failure> {
        self.policy = Arc::new(self.policy.with_options(options).map_err(Failure::usage)?);
        Ok(options)
    }

    /// A mirror with its target looked up.
    fn mirror(&self, options: &MirrorOptions) -> Result<MirrorPolicy, Failure> {
        let to = match options.target.strip_prefix(CAPTURE_PREFIX) {
            Some("") => return Err(Failure::usage("The mirror pcapng: has no path")),
            Some(path) => MirrorTarget::File(capture(path, options)),
            None => MirrorTarget::Port(self.number(&options.target).map_err(|_| {
                Failure::usage(format!("The mirror '{}' is no port", options.target))
                    .hint("a file is written pcapng:PATH")
            })?),
        };
        Ok(MirrorPolicy { to, direction: options.direction })
    }

    /// Makes mirror files before the sandbox closes, and has it leave them open.
    pub fn prepare_mirrors(&self, setup: &mut Setup) -> Result<(), Failure> {
        for directory in setup.common().sandbox.allow_paths.clone() {
            allow_rotation(setup, &directory);
        }
        let targets = self.policy.ports().values().filter_map(|port| port.mirror.as_ref());
        for mirror in targets {
            if let MirrorTarget::File(capture) = &mirror.to {
                create(&capture.path)?;
                setup.sandbox().allow_file(&capture.path);
                if capture.files > 1 {
                    let directory = capture.path.parent().unwrap_or(&capture.path).to_owned();
                    allow_rotation(setup, &directory);
                }
            }
        }
        Ok(())
    }
}

fn capture(path: &str, options: &MirrorOptions) -> CaptureOptions {
    let usual = CaptureOptions::default();
    CaptureOptions {
        path: path.into(),
        snaplen: options.snaplen.unwrap_or(usual.snaplen),
        max_bytes: options.max_bytes.or(usual.max_bytes),
        files: options.files.unwrap_or(usual.files),
    }
}

/// Files may be made and renamed in this directory.
fn allow_rotation(setup: &mut Setup, directory: &Path) {
    let sandbox = setup.sandbox();
    sandbox.allow_new_files_in(directory);
    RENAMES.iter().for_each(|call| sandbox.allow_syscall(*call));
}

fn create(path: &Path) -> Result<(), Failure> {
    let refused =
        |error| Failure::usage(format!("The mirror file {} cannot be written: {error}", path.display()));
    std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(path).map(drop).map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board(ids: &[&str]) -> Board {
        let mut board = Board::new(300).unwrap();
        ids.iter().for_each(|id| board.add(id, PortPolicy::default(), None).unwrap());
        board
    }

    fn macs(text: &str) -> Vec<MacAddr> {
        vec![text.parse().unwrap()]
    }

    /// Gives a port the address that ends in 1.
    fn own(board: &mut Board, id: &str) -> Result<(), Failure> {
        board.change(id, |policy| {
            policy.macs = macs("52:54:00:00:00:01");
            Ok(())
        })
    }

    #[test]
    fn a_number_is_given_again_only_after_its_port_is_gone() {
        let mut board = board(&["a", "b"]);
        assert_eq!((board.number("a").unwrap(), board.number("b").unwrap()), (PortId(0), PortId(1)));
        board.remove("a").unwrap();
        board.add("c", PortPolicy::default(), None).unwrap();
        assert_eq!(board.number("c").unwrap(), PortId(0));
        assert!(board.number("a").is_err());
    }

    #[test]
    fn a_name_or_an_address_is_one_ports() {
        let mut board = board(&["a", "b"]);
        assert!(board.check_new("a", &[]).unwrap_err().message().contains("a port 'a' already"));
        own(&mut board, "a").unwrap();
        let error = board.check_new("c", &macs("52:54:00:00:00:01")).unwrap_err();
        assert_eq!(error.message(), "The address 52:54:00:00:00:01 of port 'c' is already that of port 'a'");
        assert!(own(&mut board, "b").is_err());
        own(&mut board, "a").unwrap();
    }

    #[test]
    fn a_mirrors_target_is_a_port_or_a_file_and_stays_while_it_is_one() {
        let mut board = board(&["a", "b"]);
        let mirror = |target: &str| MirrorOptions::new(target);
        board.set("a", PortPolicy::default(), Some(&mirror("b"))).unwrap();
        assert!(board.check_removable("b").unwrap_err().to_string().contains("mirror of port 'a'"));
        assert!(board.check_removable("a").is_ok());
        assert!(board.mirror(&mirror("nobody")).is_err());
        assert!(board.mirror(&mirror("pcapng:")).is_err());
        assert!(
            matches!(board.mirror(&mirror("pcapng:/x")).unwrap().to, MirrorTarget::File(file) if file.path == Path::new("/x"))
        );
    }
}
