//! Devices on their way from what the user wrote to being served.

use std::collections::BTreeSet;

use vhost_user::Transport;

use super::{Arranged, BadValue, Place, Spec};
use crate::cli::Common;
use crate::{EndpointSpec, Failure, Setup};

/// A description that can be checked.
pub trait Described: Spec {
    /// What comes out: every option with its value.
    type Options;

    /// The options of the device, checked.
    fn options(&self) -> Result<Self::Options, BadValue>;

    /// The device's name, which its options always have.
    fn name(options: &Self::Options) -> &str;
}

/// The options of all devices, checked; no two have the same name.
pub fn options_of<S: Described>(arranged: Vec<Arranged<S>>) -> Result<Vec<(S::Options, Place)>, Failure> {
    let mut names = BTreeSet::new();
    let check = |(spec, place): Arranged<S>| {
        let options = spec.options().map_err(Failure::usage)?;
        if !names.insert(S::name(&options).to_owned()) {
            let (noun, name) = (S::NOUN, S::name(&options));
            return Err(Failure::usage(format!("Two {noun}s have the name '{name}'")));
        }
        Ok((options, place))
    };
    arranged.into_iter().map(check).collect()
}

/// A device that has its socket, and is about to be served.
pub struct Opened<O> {
    /// As it was asked for.
    pub options: O,
    /// Its socket.
    pub transport: Transport,
    /// Where that is.
    pub endpoint: EndpointSpec,
}

impl<O> Opened<O> {
    /// Opens the socket of a device.
    pub fn at(options: O, place: Place, setup: &mut Setup) -> Result<Self, Failure> {
        let (endpoint, transport) = place.open(setup)?;
        Ok(Self { options, transport, endpoint })
    }

    /// The same for a device whose connections another process hands over through `fd`.
    pub fn handed(options: O, place: Place, fd: i32, setup: &mut Setup) -> Result<Self, Failure> {
        let kept = EndpointSpec { fd: Some(fd), ..EndpointSpec::default() };
        let endpoint = place.endpoint(setup.common());
        Ok(Self { options, transport: setup.endpoint_of(&kept)?, endpoint })
    }
}

/// Where each of these devices will be, for a process that opens the sockets itself.
pub fn placed<O>(devices: Vec<(O, Place)>, common: &Common) -> Vec<(O, EndpointSpec)> {
    devices.into_iter().map(|(options, place)| (options, place.endpoint(common))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{arrange, check_name};

    crate::device_spec! {
        /// One lamp.
        pub struct Lamp("lamp") {
            /// Name of the lamp
            #[arg(long)]
            pub id: Option<String>,
        }
    }

    impl Described for Lamp {
        type Options = String;

        fn options(&self) -> Result<String, BadValue> {
            let id = self.id.clone().unwrap_or_default();
            check_name("lamp", &id).map(|()| id)
        }

        fn name(options: &String) -> &str {
            options
        }
    }

    #[test]
    fn devices_have_names_of_their_own() {
        let names = |listed: &[&str]| {
            let listed: Vec<Lamp> = listed.iter().map(|text| text.parse().unwrap()).collect();
            let options = options_of(arrange(&Lamp::default(), listed.iter(), false)?)?;
            Ok(options.into_iter().map(|(name, _)| name).collect::<Vec<_>>())
        };
        let sentence = |result: Result<Vec<String>, Failure>| result.unwrap_err().to_string();
        assert_eq!(names(&["id=a,socket=a", "socket=b"]).unwrap(), ["a", "lamp1"]);
        assert_eq!(sentence(names(&["id=a,socket=a", "id=a,socket=b"])), "Two lamps have the name 'a'");
        assert!(sentence(names(&["id=a b,socket=a"])).contains("lamp id 'a b'"));
    }
}
