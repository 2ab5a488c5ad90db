//! Lines by a quantity that grows by factors, drawn as SVG.

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;

/// Width and height of one chart.
const SIZE: (u32, u32) = (500, 420);
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

/// How the values of a chart are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// From zero.
    Linear,
    /// By factors.
    Logarithmic,
}

/// Some lines over the same quantity.
#[derive(Clone, Debug)]
pub struct Chart<'a> {
    title: &'static str,
    scale: Scale,
    /// Name and points of each line.
    lines: Vec<(&'a str, Vec<(f64, f64)>)>,
}

impl<'a> Chart<'a> {
    /// A chart without lines.
    pub fn new(title: &'static str, scale: Scale) -> Self {
        Self { title, scale, lines: Vec::new() }
    }

    /// One more line. Points without a value are left out; the order does not matter.
    pub fn add(&mut self, name: &'a str, points: impl IntoIterator<Item = (f64, f64)>) {
        let mut points: Vec<(f64, f64)> = points.into_iter().collect();
        points.retain(|(_, value)| value.is_finite() && *value > 0.0);
        points.sort_by(|one, two| one.0.total_cmp(&two.0));
        self.lines.push((name, points));
    }

    fn points(&self) -> impl Iterator<Item = &(f64, f64)> {
        self.lines.iter().flat_map(|(_, points)| points)
    }

    /// Smallest and largest of a coordinate.
    fn range(&self, of: impl Fn(&(f64, f64)) -> f64) -> (f64, f64) {
        self.points()
            .map(of)
            .fold((f64::INFINITY, 0.0), |(low, high), value| (low.min(value), high.max(value)))
    }

    fn draw(&self, area: &DrawingArea<SVGBackend<'_>, Shift>, quantity: &str) -> Drawn {
        let (low, high) = self.range(|point| point.1);
        match self.scale {
            Scale::Linear => self.draw_in(area, quantity, 0.0..high * 1.1),
            Scale::Logarithmic => self.draw_in(area, quantity, (low / 1.5..high * 1.5).log_scale()),
        }
    }

    fn draw_in<Y>(&self, area: &DrawingArea<SVGBackend<'_>, Shift>, quantity: &str, range: Y) -> Drawn
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let (first, last) = self.range(|point| point.0);
        let (_, top) = self.range(|point| point.1);
        let decimals = if top < 10.0 { 1 } else { 0 };
        let mut chart = ChartBuilder::on(area)
            .caption(self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d((first / 1.2..last * 1.2).log_scale().base(2.0), range)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc(quantity)
            .x_label_formatter(&|value| format!("{value:.0}"))
            .y_label_formatter(&|value| format!("{value:.decimals$}"))
            .draw()?;
        for ((name, points), colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let style = colour.stroke_width(2);
            chart
                .draw_series(LineSeries::new(points.iter().copied(), style))?
                .label(*name)
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

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// Charts over the same `quantity`, side by side, as SVG. An error if one of them is empty.
pub fn draw(charts: &[Chart<'_>], quantity: &str) -> Result<String> {
    for chart in charts {
        chart.points().next().with_context(|| format!("There is nothing to draw of {}", chart.title))?;
    }
    let mut svg = String::new();
    {
        let size = (SIZE.0 * charts.len() as u32, SIZE.1);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE).map_err(|error| anyhow!("{error}"))?;
        for (chart, part) in charts.iter().zip(area.split_evenly((1, charts.len()))) {
            let drawn = chart.draw(&part, quantity);
            drawn.map_err(|error| anyhow!("Cannot draw {}: {error}", chart.title))?;
        }
        area.present().map_err(|error| anyhow!("{error}"))?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chart_has_its_title_and_its_lines_with_a_point_for_each_value() {
        let mut one = Chart::new("Speed", Scale::Linear);
        one.add("fast", [(1.0, 5.0), (4.0, 6.0), (2.0, f64::NAN)]);
        let mut two = Chart::new("Wait", Scale::Logarithmic);
        two.add("fast", [(1.0, 50.0)]);
        let svg = draw(&[one, two], "in flight").unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert_eq!((svg.matches("<circle").count(), svg.matches("fast").count()), (3, 2));
        assert!(svg.contains("Speed") && svg.contains("Wait") && svg.contains("in flight"));
    }

    #[test]
    fn nothing_measured_is_nothing_drawn() {
        let error = draw(&[Chart::new("Speed", Scale::Linear)], "in flight").unwrap_err();
        assert!(error.to_string().contains("nothing to draw"), "{error}");
    }
}
