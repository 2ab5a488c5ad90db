//! Values as people write them: rates with units, lists of VLANs.

use crate::switch::{Rate, VlanSet};
use serde::Deserialize;
use serde::de::{self, Deserializer};
use std::str::FromStr;

/// Why a rate is refused; one sentence each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRate {
    /// Not a number, or one with an unknown unit.
    #[error("'{0}' is not a rate such as 500, 10M or 1G:50M")]
    Text(String),
    /// Would be no limit, although it looks like one.
    #[error("'{0}' is not a limit: neither a rate nor its burst may be below 1; 0 alone is no limit")]
    BelowOne(String),
}

/// A rate with an optional burst, `RATE` or `RATE:BURST`; 0 is no limit, and then has no burst. Units are powers of 1000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateText(pub Rate);

/// A number with an optional decimal unit: `1500`, `10k`, `2.5G`.
fn decimal(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale: u64 = match unit {
        "" => 1,
        "k" | "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let places = 10u64.checked_pow(fraction.len().try_into().ok()?)?;
    let parts = fraction.parse::<u64>().ok()?.checked_mul(scale)? / places;
    whole.parse::<u64>().ok()?.checked_mul(scale)?.checked_add(parts)
}

impl FromStr for RateText {
    type Err = InvalidRate;

    fn from_str(text: &str) -> Result<Self, InvalidRate> {
        let number = |part| decimal(part).ok_or_else(|| InvalidRate::Text(text.into()));
        let Some((rate, burst)) = text.split_once(':') else {
            let rate = number(text)?;
            let rounded = rate == 0 && text.contains(|digit| matches!(digit, '1'..='9'));
            return if rounded {
                Err(InvalidRate::BelowOne(text.into()))
            } else {
                Ok(Self(Rate::per_second(rate)))
            };
        };
        match (number(rate)?, number(burst)?) {
            (0, _) | (_, 0) => Err(InvalidRate::BelowOne(text.into())),
            (rate, burst) => Ok(Self(Rate { rate, burst })),
        }
    }
}

impl<'de> Deserialize<'de> for RateText {
    /// A number, a string as on the command line, or a table with `rate` and `burst`.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a rate: a number, a string such as \"10M:1M\", or rate and burst")]
        enum Form {
            Number(u64),
            Text(String),
            Table(Rate),
        }
        Ok(match Form::deserialize(deserializer)? {
            Form::Number(rate) => Self(Rate::per_second(rate)),
            Form::Text(text) => text.parse().map_err(de::Error::custom)?,
            Form::Table(Rate { rate: 0, burst: 1.. }) => {
                return Err(de::Error::custom("a burst needs a rate above 0"));
            }
            Form::Table(rate) => Self(rate),
        })
    }
}

/// Not a list of VLANs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a list of VLANs from 1 to 4094 such as 10+20+100-199")]
pub struct InvalidVlanList(String);

/// VLANs, written `10+20+100-199` or `all`; in a file also a list of numbers and ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VlanText(pub VlanSet);

impl FromStr for VlanText {
    type Err = InvalidVlanList;

    fn from_str(text: &str) -> Result<Self, InvalidVlanList> {
        match text {
            "all" => Ok(Self(VlanSet::all())),
            list => list.replace('+', ",").parse().map(Self).map_err(|_| InvalidVlanList(list.into())),
        }
    }
}

impl<'de> Deserialize<'de> for VlanText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "VLANs: \"10+20+100-199\", \"all\", or a list of numbers and ranges")]
        enum Form {
            One(Part),
            Many(Vec<Part>),
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Part {
            Number(u16),
            Text(String),
        }
        let text = |part: Part| match part {
            Part::Number(number) => number.to_string(),
            Part::Text(text) => text,
        };
        let list = match Form::deserialize(deserializer)? {
            Form::One(part) => text(part),
            Form::Many(parts) => parts.into_iter().map(text).collect::<Vec<_>>().join("+"),
        };
        list.parse().map_err(de::Error::custom)
    }
}

/// Several values: a list, or a text in which they are joined with `+`, as on the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

impl<'de, T> Deserialize<'de> for List<T>
where
    T: FromStr<Err: std::fmt::Display>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a list of texts, or a text with + between its parts")]
        enum Form {
            Text(String),
            List(Vec<String>),
        }
        let parts = match Form::deserialize(deserializer)? {
            Form::Text(text) if text.is_empty() => Vec::new(),
            Form::Text(text) => text.split('+').map(str::to_owned).collect(),
            Form::List(list) => list,
        };
        parts.iter().map(|part| part.parse().map_err(de::Error::custom)).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_decimal_units_and_a_burst() {
        let rate = |text: &str| text.parse::<RateText>().map(|rate| (rate.0.rate, rate.0.burst));
        assert_eq!(rate("10M"), Ok((10_000_000, 0)));
        assert_eq!(rate("2.5G:1M"), Ok((2_500_000_000, 1_000_000)));
        assert_eq!(rate("64"), Ok((64, 0)));
        assert_eq!(rate("1.5"), Ok((1, 0)));
        for wrong in ["", "fast", "1Q", "-1", ".", "1.", "99999999999T", "1:2:3", "1.99999999999999999999"] {
            assert!(matches!(rate(wrong), Err(InvalidRate::Text(_))), "{wrong}");
        }
    }

    #[test]
    fn a_rate_of_zero_is_no_limit_and_has_no_burst() {
        for none in ["0", "0M", "0.0"] {
            assert_eq!(none.parse(), Ok(RateText(Rate::UNLIMITED)), "{none}");
        }
        for wrong in ["0:0", "0:5", "5:0", "10M:0.5", "0.5"] {
            assert_eq!(wrong.parse::<RateText>(), Err(InvalidRate::BelowOne(wrong.into())));
        }
        let file = |text: &str| serde_json::from_str::<RateText>(text).map(|rate| rate.0);
        assert_eq!(file("0").unwrap(), Rate::UNLIMITED);
        assert_eq!(file("{\"rate\": 0, \"burst\": 0}").unwrap(), Rate::UNLIMITED);
        assert_eq!(file("{\"rate\": 5}").unwrap(), Rate::per_second(5));
        for wrong in ["\"0:5\"", "{\"rate\": 0, \"burst\": 5}", "{\"burst\": 5}"] {
            assert!(file(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn vlans_are_numbers_and_ranges() {
        let vlans = |text: &str| text.parse::<VlanText>().map(|vlans| vlans.0.iter().collect::<Vec<_>>());
        assert_eq!(vlans("10+20+100-102"), Ok(vec![10, 20, 100, 101, 102]));
        assert_eq!(vlans("all").unwrap().len(), 4094);
        for wrong in ["", "0", "4095", "5-3", "1-", "a"] {
            assert!(vlans(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn lists_are_lists_or_joined_texts() {
        let list = |text: &str| serde_json::from_str::<List<u16>>(text).map(|list| list.0);
        assert_eq!(list("[\"1\", \"2\"]").unwrap(), [1, 2]);
        assert_eq!(list("\"1+2\"").unwrap(), [1, 2]);
        assert_eq!(list("\"\"").unwrap(), Vec::<u16>::new());
        assert!(list("\"1+x\"").is_err());
    }
}
