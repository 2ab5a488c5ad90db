//! A device as the user writes it: options on the command line, a table in the configuration file, a list `KEY=VALUE,...`,
//! or the parameters of a control method. All have the same keys.

use crate::EndpointSpec;

/// What can be said about any device; [`device_spec!`](crate::device_spec) implements it.
pub trait Spec: Clone + Default + PartialEq {
    /// What such a device is called in sentences and in the option that adds one: `disk`, `port`.
    const NOUN: &'static str;

    /// Its name, if it has one of its own.
    fn id(&self) -> Option<&str>;

    /// Gives it a name.
    fn set_id(&mut self, id: String);

    /// Where its frontend is, when it says so itself.
    fn endpoint(&self) -> EndpointSpec;

    /// Whether it says itself where its frontend is.
    fn has_endpoint(&self) -> bool {
        !self.endpoint().is_empty()
    }
}

/// Defines the description of a device: the structure with the given keys, of which one is `id`, and those of its endpoint.
///
/// It is a group of `clap` arguments (without the endpoint, which the command line has in
/// [`EndpointArgs`](crate::cli::EndpointArgs)), a table of a configuration file, a `KEY=VALUE,...` list, and a [`Spec`].
/// (Endpoint keys in a structure of their own would need serde's `flatten`, which loses the names of the keys and where a
/// wrong one stands.)
#[macro_export]
macro_rules! device_spec {
    (
        $(#[$about:meta])*
        $visibility:vis struct $name:ident($noun:literal) {
            $($(#[$about_key:meta])* $key_visibility:vis $key:ident: $type:ty,)*
        }
    ) => {
        #[derive(Clone, Debug, Default, PartialEq, ::serde::Deserialize, ::clap::Args)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        $(#[$about])*
        $visibility struct $name {
            $($(#[$about_key])* $key_visibility $key: $type,)*

            /// Listen on this socket for the frontend.
            #[arg(skip)]
            pub socket: Option<::std::path::PathBuf>,

            /// Connect to this socket of the frontend.
            #[arg(skip)]
            pub connect: Option<::std::path::PathBuf>,

            /// Serve this inherited descriptor.
            #[arg(skip)]
            pub fd: Option<i32>,

            /// Serve the socket systemd passes under this name.
            #[arg(skip)]
            pub fd_name: Option<String>,

            /// Permission bits of the listening socket.
            #[arg(skip)]
            pub socket_mode: Option<$crate::cli::SocketMode>,

            /// Group of the listening socket.
            #[arg(skip)]
            pub socket_group: Option<$crate::cli::GroupName>,
        }

        impl ::std::str::FromStr for $name {
            type Err = $crate::cli::ListError;

            /// `id=a,socket=/run/a.sock,...`; a comma in a value is written twice.
            fn from_str(text: &str) -> ::std::result::Result<Self, Self::Err> {
                $crate::cli::parse_list(text)
            }
        }

        impl $crate::device::Spec for $name {
            const NOUN: &'static str = $noun;

            fn id(&self) -> Option<&str> {
                self.id.as_deref()
            }

            fn set_id(&mut self, id: String) {
                self.id = Some(id);
            }

            fn endpoint(&self) -> $crate::EndpointSpec {
                $crate::EndpointSpec {
                    socket_path: self.socket.clone(),
                    connect: self.connect.clone(),
                    fd: self.fd,
                    fd_name: self.fd_name.clone(),
                    socket_mode: self.socket_mode.unwrap_or_default(),
                    socket_group: self.socket_group.clone(),
                }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    device_spec! {
        /// One lamp.
        #[command(next_help_heading = "Lamp")]
        pub struct Lamp("lamp") {
            /// Name of the lamp
            #[arg(long)]
            pub id: Option<String>,

            /// How bright it is
            #[arg(long)]
            pub lumens: Option<u16>,
        }
    }

    #[test]
    fn own_keys_and_those_of_the_endpoint_are_read_alike() {
        let lamp: Lamp = "id=a,lumens=5,socket=/run/a,,1.sock,socket-mode=0660".parse().unwrap();
        assert_eq!((lamp.id(), lamp.lumens), (Some("a"), Some(5)));
        assert_eq!(lamp.endpoint().socket_path, Some("/run/a,1.sock".into()));
        let text = "id = 'a'\nlumens = 5\nsocket = '/run/a,1.sock'\nsocket-mode = '0660'\n";
        assert_eq!(toml::from_str::<Lamp>(text).unwrap(), lamp);
    }

    #[test]
    fn any_way_to_a_frontend_is_an_endpoint() {
        let has = |text: &str| text.parse::<Lamp>().unwrap().has_endpoint();
        assert!(has("socket=/a") && has("connect=/a") && has("fd=3") && has("fd-name=a"));
        assert!(!has("id=a,socket-mode=0660"));
    }

    #[test]
    fn a_misspelt_key_is_answered_with_the_right_one() {
        let error = |text: &str| text.parse::<Lamp>().unwrap_err().to_string();
        assert_eq!(error("sockt=/a"), "There is no key 'sockt'; did you mean 'socket'?");
        assert_eq!(error("lumens=x"), "Key 'lumens': 'x' is not a number from 0 to 65535");
    }
}
