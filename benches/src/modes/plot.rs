//! The table of modes as a picture: throughput and latency by depth.

use anyhow::Result;

use super::table::{Run, Table};
use crate::chart::{self, Chart, Scale};

/// The picture as SVG.
pub fn draw(table: &Table) -> Result<String> {
    let chart = |title, scale, figure: fn(&Run) -> f64| {
        let mut chart = Chart::new(title, scale);
        for mode in table.modes() {
            let cells = table.cells.iter().filter(|cell| cell.mode == mode);
            chart.add(mode, cells.map(|cell| (f64::from(cell.depth), cell.median(figure))));
        }
        chart
    };
    let throughput = chart("Thousand operations per second", Scale::Linear, |run| run.ops / 1e3);
    let latency = chart("p50 latency, us", Scale::Logarithmic, |run| run.p50_us);
    chart::draw(&[throughput, latency], "requests in flight")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modes::table::tests::table;

    #[test]
    fn the_picture_names_every_mode_and_has_a_point_for_each_depth() {
        let svg = draw(&table()).unwrap();
        for mode in ["timer=1ms", "heuristic", "busy"] {
            assert_eq!(svg.matches(mode).count(), 2, "{mode}");
        }
        assert_eq!(svg.matches("<circle").count(), 2 * 3 * 3);
    }

    #[test]
    fn nothing_measured_is_nothing_drawn() {
        let mut table = table();
        table.cells.clear();
        assert!(draw(&table).unwrap_err().to_string().contains("nothing to draw"));
    }
}
