//! Medians, spreads, ratios, and when a comparison is too noisy to conclude.

use serde::Serialize;

/// Which way a figure is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Throughput.
    Higher,
    /// Latency, CPU time.
    Lower,
}

/// The figures of one side over all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Middle value.
    pub median: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
}

impl Spread {
    /// `None` without values.
    pub fn of(values: &[f64]) -> Option<Self> {
        let sorted = sorted(values);
        Some(Self { median: quantile(&sorted, 0.5)?, min: *sorted.first()?, max: *sorted.last()? })
    }
}

/// Our figure against the peer's, round by round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// Median of the per-round ratios; above 1 we are better, whatever the figure is.
    pub ratio: f64,
    /// Lower quartile of the per-round ratios.
    pub low: f64,
    /// Upper quartile of the per-round ratios.
    pub high: f64,
    /// The ratio reaches the aim.
    pub reached: bool,
    /// The quartiles lie on both sides of the aim and far apart: run again on a quieter machine.
    pub noisy: bool,
}

/// Quartiles closer together than this share of the ratio are not called noise.
const STEADY: f64 = 0.05;

impl Verdict {
    /// Compares rounds pairwise: both sides of a round ran one after the other, so a machine that changes
    /// speed between rounds cancels out. `None` without a complete round or with a figure of 0.
    pub fn of(ours: &[f64], peer: &[f64], better: Better, aim: f64) -> Option<Self> {
        let ratios: Vec<f64> = ours
            .iter()
            .zip(peer)
            .map(|(&ours, &peer)| if better == Better::Higher { ours / peer } else { peer / ours })
            .collect();
        if ratios.iter().any(|ratio| !ratio.is_finite()) {
            return None;
        }
        let sorted = sorted(&ratios);
        let [low, ratio, high] =
            [quantile(&sorted, 0.25)?, quantile(&sorted, 0.5)?, quantile(&sorted, 0.75)?];
        let noisy = low < aim && aim <= high && (high - low) > STEADY * ratio;
        Some(Self { ratio, low, high, reached: ratio >= aim, noisy })
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Quantile by linear interpolation between the neighbours.
fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let position = q * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (position.floor() as usize, position.ceil() as usize);
    Some(sorted[below] + (sorted[above] - sorted[below]) * position.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_extremes_ignore_the_order_of_rounds() {
        let spread = Spread::of(&[3.0, 1.0, 2.0, 10.0, 2.5]).unwrap();
        assert_eq!((spread.median, spread.min, spread.max), (2.5, 1.0, 10.0));
        assert_eq!(Spread::of(&[4.0, 2.0]).unwrap().median, 3.0);
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn above_one_means_better_for_throughput_and_for_latency() {
        let faster = Verdict::of(&[300.0; 3], &[200.0; 3], Better::Higher, 1.2).unwrap();
        assert_eq!((faster.ratio, faster.reached), (1.5, true));
        let quicker = Verdict::of(&[10.0; 3], &[20.0; 3], Better::Lower, 1.0 / 0.6).unwrap();
        assert_eq!((quicker.ratio, quicker.reached), (2.0, true));
        let slower = Verdict::of(&[25.0; 3], &[20.0; 3], Better::Lower, 1.0).unwrap();
        assert_eq!((slower.ratio, slower.reached), (0.8, false));
    }

    #[test]
    fn a_machine_that_changes_speed_between_rounds_does_not_disturb_the_ratio() {
        let verdict = Verdict::of(&[150.0, 300.0, 75.0], &[100.0, 200.0, 50.0], Better::Higher, 1.2).unwrap();
        assert_eq!((verdict.ratio, verdict.low, verdict.high), (1.5, 1.5, 1.5));
        assert!(verdict.reached && !verdict.noisy);
    }

    #[test]
    fn rounds_on_both_sides_of_the_aim_are_too_noisy_to_conclude() {
        let verdict =
            Verdict::of(&[90.0, 140.0, 100.0, 150.0, 125.0], &[100.0; 5], Better::Higher, 1.2).unwrap();
        assert!(verdict.noisy, "{verdict:?}");
    }

    #[test]
    fn rounds_that_agree_on_the_aim_conclude_however_wide_they_are() {
        let verdict = Verdict::of(&[150.0, 300.0, 200.0], &[100.0; 3], Better::Higher, 1.2).unwrap();
        assert!(!verdict.noisy && verdict.reached);
        let close = Verdict::of(&[119.0, 120.0, 121.0], &[100.0; 3], Better::Higher, 1.2).unwrap();
        assert!(!close.noisy && close.reached);
    }

    #[test]
    fn a_figure_of_zero_gives_no_verdict() {
        assert_eq!(Verdict::of(&[1.0], &[0.0], Better::Higher, 1.0), None);
        assert_eq!(Verdict::of(&[], &[], Better::Higher, 1.0), None);
    }
}
