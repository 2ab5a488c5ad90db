//! The table of modes as a picture: throughput and latency by depth.

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;

use super::table::{Run, Table};

const SIZE: (u32, u32) = (1000, 420);
/// Colours that are told apart without colour vision (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(0, 0, 0),
];

/// The picture as SVG.
pub fn draw(table: &Table) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(|error| anyhow!("{error}"))?;
        let (left, right) = area.split_horizontally(SIZE.0 / 2);
        let throughput = Lines::of(table, |run| run.ops / 1e3)?;
        throughput.chart(&left, "Thousand operations per second", 0.0..throughput.top() * 1.1)?;
        let latency = Lines::of(table, |run| run.p50_us)?;
        let range = latency.bottom() / 1.5..latency.top() * 1.5;
        latency.chart(&right, "p50 latency, us", range.log_scale())?;
        area.present().map_err(|error| anyhow!("{error}"))?;
    }
    Ok(svg)
}

/// A line for each mode: medians by depth.
struct Lines<'a>(Vec<(&'a str, Vec<(f64, f64)>)>);

impl<'a> Lines<'a> {
    fn of(table: &'a Table, figure: fn(&Run) -> f64) -> Result<Self> {
        let points = |mode: &str| {
            let cells = table.cells.iter().filter(|cell| cell.mode == mode);
            let mut points: Vec<(f64, f64)> =
                cells.map(|cell| (f64::from(cell.depth), cell.median(figure))).collect();
            points.retain(|(_, value)| value.is_finite() && *value > 0.0);
            points.sort_by(|one, two| one.0.total_cmp(&two.0));
            points
        };
        let lines: Vec<_> = table.modes().into_iter().map(|mode| (mode, points(mode))).collect();
        let some = lines.iter().any(|(_, points)| !points.is_empty());
        some.then_some(Self(lines)).context("There is nothing to draw")
    }

    fn points(&self) -> impl Iterator<Item = &(f64, f64)> {
        self.0.iter().flat_map(|(_, points)| points)
    }

    fn top(&self) -> f64 {
        self.points().map(|point| point.1).fold(0.0, f64::max)
    }

    fn bottom(&self) -> f64 {
        self.points().map(|point| point.1).fold(f64::INFINITY, f64::min)
    }

    fn chart<Y>(&self, area: &DrawingArea<SVGBackend<'_>, Shift>, title: &str, range: Y) -> Result<()>
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        self.draw(area, title, range).map_err(|error| anyhow!("Cannot draw {title}: {error}"))
    }

    fn draw<Y>(
        &self,
        area: &DrawingArea<SVGBackend<'_>, Shift>,
        title: &str,
        range: Y,
    ) -> std::result::Result<(), Box<dyn std::error::Error>>
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let depths: Vec<f64> = self.points().map(|point| point.0).collect();
        let (first, last) = (
            depths.iter().copied().fold(f64::INFINITY, f64::min),
            depths.iter().copied().fold(1.0, f64::max),
        );
        let mut chart = ChartBuilder::on(area)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d((first / 1.2..last * 1.2).log_scale().base(2.0), range)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc("requests in flight")
            .x_label_formatter(&|depth| format!("{depth:.0}"))
            .y_label_formatter(&|value| format!("{value:.0}"))
            .draw()?;
        for ((mode, points), colour) in self.0.iter().zip(COLOURS.iter().cycle()) {
            let style = colour.stroke_width(2);
            chart
                .draw_series(LineSeries::new(points.iter().copied(), style))?
                .label(*mode)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
            chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, colour.filled())))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::table::tests::table;

    #[test]
    fn the_picture_names_every_mode_and_has_a_point_for_each_depth() {
        let svg = draw(&table()).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
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
