//! The table as a picture: throughput of either phase and CPU time of the submitter by the bandwidth of the disk.

use anyhow::Result;

use super::table::{Run, Table};
use super::way::Way;
use crate::chart::{self, Chart, Scale};

/// The picture as SVG.
pub fn draw(table: &Table) -> Result<String> {
    let chart = |title, scale, figure: fn(&Run) -> f64| {
        let mut chart = Chart::new(title, scale);
        for way in Way::ALL {
            let cells = table.cells.iter().filter(|cell| cell.way == way);
            chart.add(way.label(), cells.map(|cell| (f64::from(cell.bandwidth), cell.median(figure))));
        }
        chart
    };
    let charts = [
        chart("Written, MB/s of plain data", Scale::Logarithmic, Run::write_rate),
        chart("Read, MB/s of plain data", Scale::Logarithmic, Run::read_rate),
        chart("Submitter, CPU seconds per GB", Scale::Linear, Run::submitter_cpu),
    ];
    chart::draw(&charts, "bandwidth of the disk, MB/s")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::composite::table::tests::table;

    #[test]
    fn every_way_has_a_point_for_each_bandwidth_in_each_chart() {
        let svg = draw(&table()).unwrap();
        for way in Way::ALL {
            let label = way.label().replace('\'', "&apos;");
            assert_eq!(svg.matches(&label).count(), 3, "{label}");
        }
        assert_eq!(svg.matches("<circle").count(), 3 * 3 * 2);
    }
}
