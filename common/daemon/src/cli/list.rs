//! One device on one argument: `KEY=VALUE,KEY=VALUE,SWITCH`, read into the same structure as the device's table in the
//! configuration file.

use serde::de::value::{SeqDeserializer, StrDeserializer};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use std::fmt;

/// Why such an argument is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// No `=`, and not a switch.
    #[error("'{0}' is not KEY=VALUE")]
    NoValue(String),
    /// The same key twice.
    #[error("'{0}' is given twice")]
    Twice(String),
    /// A key that does not exist.
    #[error("There is no key '{key}'; {instead}")]
    Unknown {
        /// What was written.
        key: String,
        /// The key that was probably meant, or all there are.
        instead: String,
    },
    /// A value that does not fit its key.
    #[error("{0}")]
    Value(String),
}

impl de::Error for ListError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Value(message.to_string())
    }
}

/// Reads `T` from `id=a,path=/img,read-only`. A comma in a value is written twice; a list in a value is joined with `+`;
/// a switch may be set to `on` or `off`.
pub fn parse_list<T: DeserializeOwned>(text: &str) -> Result<T, ListError> {
    from_items::<T>(&split_items(text))
}

/// [`parse_list`] with an item that has no key of its own but comes first: `tap:tap0,queues=2` with `first` as the key.
pub fn parse_list_after<T: DeserializeOwned>(first: &str, text: &str) -> Result<T, ListError> {
    let mut items = split_items(text);
    if let Some(item) = items.first_mut()
        && !item.contains('=')
    {
        *item = format!("{first}={item}");
    }
    from_items::<T>(&items)
}

fn from_items<T: DeserializeOwned>(items: &[String]) -> Result<T, ListError> {
    let keys = keys_of::<T>();
    let mut entries: Vec<Item<'_>> = Vec::new();
    for item in items {
        let (key, value) =
            item.split_once('=').map_or((item.as_str(), None), |(key, value)| (key, Some(value)));
        if entries.iter().any(|earlier| earlier.key == key) {
            return Err(ListError::Twice(key.to_owned()));
        }
        if !keys.contains(&key) {
            return Err(unknown(key, value.is_some(), keys));
        }
        entries.push(Item { key, value });
    }
    T::deserialize(Items { left: entries.into_iter(), next: None })
}

fn unknown(key: &str, with_value: bool, keys: &[&str]) -> ListError {
    let close = nearest(key, keys);
    if !with_value && close.is_none() {
        return ListError::NoValue(key.to_owned());
    }
    let instead = match close {
        Some(close) => format!("did you mean '{close}'?"),
        None => format!("the keys are {}", keys.join(", ")),
    };
    ListError::Unknown { key: key.to_owned(), instead }
}

/// Splits at single commas; a double one is a comma in a value (QEMU's rule).
fn split_items(text: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ',' if chars.next_if_eq(&',').is_none() => items.push(String::new()),
            other => items.last_mut().expect("there is always one").push(other),
        }
    }
    items.retain(|item| !item.is_empty());
    items
}

/// The candidate that differs least from `word`, if it differs little.
pub fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let distances = candidates.iter().map(|candidate| (distance(word, candidate), *candidate));
    let (distance, closest) = distances.min()?;
    (distance <= 1 + closest.len() / 4).then_some(closest)
}

/// Levenshtein's.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.chars().enumerate() {
            let best = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], best);
        }
    }
    row.last().copied().unwrap_or_default()
}

/// The field names of a structure, as `serde` tells them to whoever deserializes it.
fn keys_of<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Ask<'a>(&'a mut &'static [&'static str]);
    impl<'de> Deserializer<'de> for Ask<'_> {
        type Error = ListError;
        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, ListError> {
            Err(ListError::custom("only the names were asked for"))
        }
        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, ListError> {
            *self.0 = fields;
            self.deserialize_any(visitor)
        }
        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }
    let mut keys: &'static [&'static str] = &[];
    // Always the error above; the names are what stays.
    let _ = T::deserialize(Ask(&mut keys));
    keys
}

/// All keys with their values.
struct Items<'a> {
    left: std::vec::IntoIter<Item<'a>>,
    next: Option<Item<'a>>,
}

impl<'de> Deserializer<'de> for Items<'_> {
    type Error = ListError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ListError> {
        visitor.visit_map(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de> MapAccess<'de> for Items<'_> {
    type Error = ListError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ListError> {
        self.next = self.left.next();
        let key = |item: Item<'_>| -> Result<K::Value, ListError> {
            let key: StrDeserializer<'_, ListError> = item.key.into_deserializer();
            seed.deserialize(key)
        };
        self.next.map(key).transpose()
    }

    /// What is wrong with a value is said with its key.
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ListError> {
        let Some(item) = self.next.take() else { return Err(ListError::custom("a value without a key")) };
        seed.deserialize(item).map_err(|error| match error {
            ListError::Value(text) => ListError::Value(format!("Key '{}': {text}", item.key)),
            other => other,
        })
    }
}

/// The text of one value, turned into what its key asks for.
#[derive(Clone, Copy)]
struct Item<'a> {
    key: &'a str,
    value: Option<&'a str>,
}

impl<'a> Item<'a> {
    fn text(self) -> Result<&'a str, ListError> {
        self.value.ok_or_else(|| ListError::NoValue(self.key.to_owned()))
    }
}

impl<'de> IntoDeserializer<'de, ListError> for Item<'_> {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! numbers {
    ($($deserialize:ident $visit:ident $number:ty),*) => {$(
        fn $deserialize<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ListError> {
            let text = self.text()?;
            let number = text.parse::<$number>().map_err(|_| {
                let (least, most) = (<$number>::MIN, <$number>::MAX);
                ListError::custom(format!("'{text}' is not a number from {least} to {most}"))
            })?;
            visitor.$visit(number)
        }
    )*};
}

impl<'de> Deserializer<'de> for Item<'_> {
    type Error = ListError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ListError> {
        visitor.visit_str(self.text()?)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ListError> {
        match self.value {
            None | Some("on" | "true" | "yes") => visitor.visit_bool(true),
            Some("off" | "false" | "no") => visitor.visit_bool(false),
            Some(other) => Err(ListError::custom(format!("'{other}' is neither on nor off"))),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ListError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, ListError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ListError> {
        let parts = self.text()?.split('+').map(|part| Item { key: self.key, value: Some(part) });
        visitor.visit_seq(SeqDeserializer::new(parts))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ListError> {
        let chosen: StrDeserializer<'_, ListError> = self.text()?.into_deserializer();
        chosen.deserialize_enum(name, variants, visitor)
    }

    numbers! {
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16, deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64, deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64
    }

    forward_to_deserialize_any! {
        i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple tuple_struct map struct identifier
        ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ByteSize;
    use serde::Deserialize;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
    struct Device {
        id: Option<String>,
        read_only: bool,
        queues: Option<u16>,
        size: Option<ByteSize>,
        vlans: Vec<u16>,
        colour: Option<Colour>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Colour {
        DarkRed,
    }

    fn error(text: &str) -> String {
        parse_list::<Device>(text).unwrap_err().to_string()
    }

    #[test]
    fn every_kind_of_value_is_read() {
        let device: Device =
            parse_list("id=a,,b,read-only,queues=4,size=2M,vlans=1+20,colour=dark-red").unwrap();
        let expected = Device {
            id: Some("a,b".into()),
            read_only: true,
            queues: Some(4),
            size: Some(ByteSize(2 << 20)),
            vlans: vec![1, 20],
            colour: Some(Colour::DarkRed),
        };
        assert_eq!(device, expected);
        assert_eq!(parse_list::<Device>("read-only=off"), Ok(Device::default()));
    }

    #[test]
    fn an_item_without_a_key_may_come_first() {
        let device: Device = parse_list_after("id", "tap:a,queues=2").unwrap();
        assert_eq!((device.id.as_deref(), device.queues), (Some("tap:a"), Some(2)));
        assert_eq!(parse_list_after::<Device>("id", "queues=2").unwrap().queues, Some(2));
    }

    #[test]
    fn a_misspelt_key_is_answered_with_the_right_one() {
        assert_eq!(error("quees=2"), "There is no key 'quees'; did you mean 'queues'?");
        assert_eq!(error("read_only"), "There is no key 'read_only'; did you mean 'read-only'?");
        assert!(error("nothing-alike=1").contains("the keys are id, read-only, queues"));
    }

    #[test]
    fn a_wrong_value_is_named_with_its_key() {
        assert_eq!(error("queues=many"), "Key 'queues': 'many' is not a number from 0 to 65535");
        assert_eq!(error("queues=65536"), "Key 'queues': '65536' is not a number from 0 to 65535");
        assert!(error("size=big").starts_with("Key 'size': Size 'big'"), "{}", error("size=big"));
        assert!(error("vlans=1+x").contains("'x'"));
        assert!(error("colour=blue").contains("dark-red"));
        assert_eq!(error("read-only=perhaps"), "Key 'read-only': 'perhaps' is neither on nor off");
        assert_eq!(error("id"), "'id' is not KEY=VALUE");
        assert_eq!(error("stray"), "'stray' is not KEY=VALUE");
        assert_eq!(error("id=a,id=b"), "'id' is given twice");
    }
}
