//! Checks that the options of every device need.

/// Most characters of a device's name.
const MAX_NAME: usize = 64;
/// Most entries of a ring (virtio 1.3 §2.7, §2.8).
const MAX_QUEUE_SIZE: u16 = 1 << 15;

/// Why a value is refused; one sentence each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadValue {
    /// A name that could not be used in a metric or a path.
    #[error("The {noun} id '{id}' is not 1 to 64 letters, digits or any of -_.:")]
    Name {
        /// What such a device is called.
        noun: &'static str,
        /// What was given.
        id: String,
    },
    /// A number out of range.
    #[error("The value {value} for {name} is not between {least} and {most}")]
    Range {
        /// Option without dashes.
        name: &'static str,
        /// What was given.
        value: u32,
        /// Smallest.
        least: u32,
        /// Largest.
        most: u32,
    },
    /// A size that no split ring can have.
    #[error("The value {0} for queue-size is not a power of two between 2 and {MAX_QUEUE_SIZE}")]
    QueueSize(u16),
}

/// Refuses a name that metrics, logs and paths cannot hold.
pub fn check_name(noun: &'static str, id: &str) -> Result<(), BadValue> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    let valid = !id.is_empty() && id.len() <= MAX_NAME && id.chars().all(good);
    valid.then_some(()).ok_or_else(|| BadValue::Name { noun, id: id.to_owned() })
}

/// Refuses a number that is not in this range, ends included.
pub fn check_range(name: &'static str, value: u32, least: u32, most: u32) -> Result<(), BadValue> {
    let inside = (least..=most).contains(&value);
    inside.then_some(()).ok_or(BadValue::Range { name, value, least, most })
}

/// Refuses a largest queue size that a split ring cannot have (virtio 1.3 §2.7: always a power of two), since a guest is free
/// to use one.
pub fn check_queue_size(size: u16) -> Result<(), BadValue> {
    let fits = size.is_power_of_two() && (2..=MAX_QUEUE_SIZE).contains(&size);
    fits.then_some(()).ok_or(BadValue::QueueSize(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_metrics_and_paths_can_hold() {
        for good in ["disk0", "vm-1.net:a_b", &"x".repeat(64)] {
            assert_eq!(check_name("disk", good), Ok(()));
        }
        for wrong in ["", "a/b", "a b", "ä", "a\"", &"x".repeat(65)] {
            assert!(check_name("disk", wrong).is_err(), "{wrong}");
        }
        let error = check_name("disk", "a b").unwrap_err().to_string();
        assert_eq!(error, "The disk id 'a b' is not 1 to 64 letters, digits or any of -_.:");
    }

    #[test]
    fn numbers_are_refused_with_their_range() {
        assert_eq!((check_range("n", 1, 1, 3), check_range("n", 3, 1, 3)), (Ok(()), Ok(())));
        let error = check_range("queues", 4, 1, 3).unwrap_err().to_string();
        assert_eq!(error, "The value 4 for queues is not between 1 and 3");
    }

    #[test]
    fn a_queue_size_is_a_power_of_two() {
        assert!([2, 4, 1024, 32768].iter().all(|size| check_queue_size(*size).is_ok()));
        assert!([0, 1, 3, 1000, 32769, u16::MAX].iter().all(|size| check_queue_size(*size).is_err()));
        let error = check_queue_size(3).unwrap_err().to_string();
        assert_eq!(error, "The value 3 for queue-size is not a power of two between 2 and 32768");
    }
}
