//! Which devices a process has, from its command line and its configuration file.

use std::collections::BTreeSet;

use vhost_user::Transport;

use super::Spec;
use crate::cli::Common;
use crate::{EndpointSpec, Failure, Setup};

/// Where a device of the command line or the file meets its frontend.
#[derive(Clone, Debug)]
pub enum Place {
    /// At the socket of the command line, or the one that systemd passed.
    CommandLine,
    /// At its own.
    Own(EndpointSpec),
}

impl Place {
    /// Where that is, with what the command line says.
    pub fn endpoint(self, common: &Common) -> EndpointSpec {
        match self {
            Self::CommandLine => EndpointSpec::from(&common.endpoint),
            Self::Own(endpoint) => endpoint,
        }
    }

    /// Opens it, and says where it is.
    pub fn open(self, setup: &mut Setup) -> Result<(EndpointSpec, Transport), Failure> {
        let transport = match &self {
            Self::CommandLine => setup.endpoint()?,
            Self::Own(endpoint) => setup.endpoint_of(endpoint)?,
        };
        Ok((self.endpoint(setup.common()), transport))
    }
}

/// A device, and where it meets its frontend.
pub type Arranged<S> = (S, Place);

/// Puts together the device that the command line describes by options of its own, and the `listed` ones of the file and of
/// repeated options. `given`: the command line names a socket.
///
/// Without any list, there is the command line's own device. A single listed device that names no socket has the command
/// line's. Several are called by their place, unless they have names.
pub fn arrange<'a, S: Spec + 'a>(
    own: &S,
    listed: impl Iterator<Item = &'a S>,
    given: bool,
) -> Result<Vec<Arranged<S>>, Failure> {
    let (noun, listed) = (S::NOUN, listed.collect::<Vec<_>>());
    let described = *own != S::default();
    let lone = !described && matches!(*listed, [spec] if !spec.has_endpoint());
    let has_own = (given && !lone) || listed.is_empty();
    if described && !has_own {
        return Err(Failure::usage(format!("Options of a {noun} are given without --socket-path"))
            .hint(format!("inside --{noun}, they are written KEY=VALUE,...")));
    }
    let mut arranged: Vec<_> = has_own.then(|| (own.clone(), Place::CommandLine)).into_iter().collect();
    let mut sockets = BTreeSet::new();
    for (index, spec) in listed.into_iter().enumerate() {
        let endpoint = spec.endpoint();
        if let Some(path) = endpoint.socket_path.as_ref().or(endpoint.connect.as_ref())
            && !sockets.insert(path.clone())
        {
            return Err(Failure::usage(format!("Two {noun}s have the socket {}", path.display())));
        }
        arranged.push((named(spec, index), if lone { Place::CommandLine } else { Place::Own(endpoint) }));
    }
    Ok(arranged)
}

/// One of several that has no name of its own is called by its place.
fn named<S: Spec>(spec: &S, index: usize) -> S {
    let mut spec = spec.clone();
    if spec.id().is_none() {
        spec.set_id(format!("{}{index}", S::NOUN));
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::device_spec! {
        /// One lamp.
        pub struct Lamp("lamp") {
            /// Name of the lamp
            #[arg(long)]
            pub id: Option<String>,
        }
    }

    /// Names, and whether each is at the command line's socket.
    fn names(own: &str, listed: &[&str], given: bool) -> Result<Vec<(Option<String>, bool)>, String> {
        let spec = |text: &str| if text.is_empty() { Lamp::default() } else { text.parse().unwrap() };
        let listed: Vec<Lamp> = listed.iter().map(|text| spec(text)).collect();
        let arranged = arrange(&spec(own), listed.iter(), given).map_err(|failure| failure.to_string())?;
        let shown = |(lamp, place): Arranged<Lamp>| (lamp.id, matches!(place, Place::CommandLine));
        Ok(arranged.into_iter().map(shown).collect())
    }

    #[test]
    fn the_command_line_has_a_device_unless_others_are_listed() {
        assert_eq!(names("", &[], true), Ok(vec![(None, true)]));
        assert_eq!(names("id=a", &[], false), Ok(vec![(Some("a".into()), true)]));
        assert_eq!(names("", &["socket=s"], false), Ok(vec![(Some("lamp0".into()), false)]));
        let both = vec![(None, true), (Some("lamp0".into()), false)];
        assert_eq!(names("", &["socket=s"], true), Ok(both));
    }

    #[test]
    fn a_single_listed_device_without_a_socket_has_the_command_lines() {
        assert_eq!(names("", &["id=a"], true), Ok(vec![(Some("a".into()), true)]));
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        assert!(names("id=a", &["socket=s"], false).unwrap_err().contains("without --socket-path"));
        assert!(
            names("", &["socket=s", "socket=s"], false).unwrap_err().contains("Two lamps have the socket s")
        );
    }
}
