//! `top` on a whole terminal: a summary line and a CPU gauge a daemon, a table of devices, a trend of the busiest.

use std::collections::VecDeque;
use std::time::Instant;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Cell, Gauge, Row, Sparkline, Table};
use ratatui::{DefaultTerminal, Frame};

use crate::Stop;
use crate::format;
use crate::top::{self, Listing, Sample, Watch};

/// Samples the trend shows at most; more than any terminal has columns.
const TREND: usize = 512;

/// Shows rates until the user presses q or Escape; the terminal is as before afterwards, also after a panic.
pub fn run(watch: &mut Watch) -> Result<(), Stop> {
    let mut terminal = ratatui::try_init()?;
    let outcome = show(&mut terminal, watch);
    ratatui::restore();
    outcome
}

fn show(terminal: &mut DefaultTerminal, watch: &mut Watch) -> Result<(), Stop> {
    let mut trend = VecDeque::new();
    let mut samples = Vec::new();
    loop {
        terminal.draw(|frame| draw(frame, &samples, &trend))?;
        if !watch.more() || left_by_user(terminal, watch, &samples, &trend)? {
            return Ok(());
        }
        samples = watch.sample()?;
        trend.push_back(total_iops(&samples));
        if trend.len() > TREND {
            trend.pop_front();
        }
    }
}

/// Waits for the next sample's time, redrawing when the terminal changes its size; true when the user wants to leave.
fn left_by_user(
    terminal: &mut DefaultTerminal,
    watch: &Watch,
    samples: &[Sample],
    trend: &VecDeque<u64>,
) -> Result<bool, Stop> {
    let next = Instant::now() + watch.interval;
    while event::poll(next.saturating_duration_since(Instant::now()))? {
        match event::read()? {
            Event::Key(key) if key.kind == KeyEventKind::Press => {
                let interrupt =
                    key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
                if interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                    return Ok(true);
                }
            }
            Event::Resize(..) => {
                terminal.draw(|frame| draw(frame, samples, trend))?;
            }
            _ => {}
        }
    }
    Ok(false)
}

fn total_iops(samples: &[Sample]) -> u64 {
    samples.iter().flat_map(|sample| &sample.rates.devices).map(|device| device.iops as u64).sum()
}

fn draw(frame: &mut Frame<'_>, samples: &[Sample], trend: &VecDeque<u64>) {
    let daemons = u16::try_from(samples.len()).unwrap_or(u16::MAX);
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(daemons),
        Constraint::Fill(1),
        Constraint::Length(7),
    ])
    .split(frame.area());
    frame.render_widget(Line::from("vhostctl top: q leaves").style(Modifier::BOLD), areas[0]);
    let lines = Layout::vertical(vec![Constraint::Length(1); samples.len()]).split(areas[1]);
    for (sample, area) in samples.iter().zip(lines.iter()) {
        frame.render_widget(cpu(sample), *area);
    }
    let listings = top::listings(samples);
    let heights = listings.iter().map(|listing| Constraint::Length(rows_of(listing) + 2));
    let tables = Layout::vertical(heights).split(areas[2]);
    for (listing, area) in listings.iter().zip(tables.iter()) {
        frame.render_widget(devices(listing), *area);
    }
    let latest = trend.back().copied().unwrap_or(0);
    let title = format!("requests/s of all devices: {}", format::count(latest as f64));
    let width = usize::from(areas[3].width.saturating_sub(2));
    let shown: Vec<u64> = trend.iter().skip(trend.len().saturating_sub(width)).copied().collect();
    frame.render_widget(Sparkline::default().block(Block::bordered().title(title)).data(&shown), areas[3]);
}

/// CPU time of one daemon as a share of the CPUs there are.
fn cpu(sample: &Sample) -> Gauge<'_> {
    let cpus = std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64);
    let share = (sample.rates.cpu / cpus).clamp(0.0, 1.0);
    Gauge::default().ratio(share).label(top::summary(sample)).use_unicode(true)
}

fn rows_of(listing: &Listing) -> u16 {
    u16::try_from(listing.rows.len()).unwrap_or(u16::MAX - 2)
}

fn devices(listing: &Listing) -> Table<'_> {
    let rows = listing.rows.iter().map(|cells| Row::new(cells.iter().map(|cell| Cell::from(cell.as_str()))));
    let widths = listing.columns.iter().map(|(_, width)| Constraint::Min(*width));
    let header = Row::new(listing.titles()).style(Style::new().add_modifier(Modifier::REVERSED));
    Table::new(rows, widths).header(header).column_spacing(1)
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::rates::{DeviceRates, Rates};

    fn sample(iops: f64) -> Sample {
        let device = DeviceRates {
            name: "disk0".into(),
            kind: "block".into(),
            connected: true,
            in_flight: 1,
            iops,
            operations: vec![("read".into(), iops)],
            operation_bytes: vec![("read".into(), 4096.0 * iops)],
            bytes: 4096.0 * iops,
            errors: 0.0,
            p50_ns: Some(12_000.0),
            p99_ns: None,
            p999_ns: None,
            kicks_per_request: Some(0.031),
            interrupts_per_request: None,
            ratio: None,
        };
        let rates = Rates {
            cpu: 0.42,
            poll_success: Some(0.9),
            parks: 3.0,
            devices: vec![device],
            ..Rates::default()
        };
        Sample { name: "vhostd-blk".into(), rates }
    }

    /// The screen as text.
    fn screen(width: u16, height: u16, samples: &[Sample]) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let trend = VecDeque::from(vec![5; 1000]);
        terminal.draw(|frame| draw(frame, samples, &trend)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn the_screen_shows_rates_and_what_they_cost() {
        let shown = screen(160, 24, &[sample(12_345.0)]);
        for text in ["disk0", "12.3k", "48.2 MiB", "12.0 us", "0.031", "CPU 42.0%", "polls that paid 90.0%"] {
            assert!(shown.contains(text), "no {text} in\n{shown}");
        }
    }

    #[test]
    fn ports_have_their_rates_each_way() {
        let mut port = sample(3_000.0);
        let device = &mut port.rates.devices[0];
        device.kind = "net".into();
        device.operations = vec![("rx".into(), 1_000.0), ("tx".into(), 2_000.0)];
        device.operation_bytes = vec![("rx".into(), 125_000.0), ("tx".into(), 250_000.0)];
        let shown = screen(160, 24, &[port, sample(12_345.0)]);
        for text in ["TX PKT/S", "2.00k", "2.00M", "1.00k", "1.00M", "IOPS", "12.3k"] {
            assert!(shown.contains(text), "no {text} in\n{shown}");
        }
    }

    #[test]
    fn any_terminal_size_and_any_number_of_daemons_can_be_drawn() {
        for (width, height) in [(1, 1), (20, 5), (80, 24), (200, 50)] {
            screen(width, height, &[]);
            let many: Vec<_> = (0..50).map(|_| sample(1e12)).collect();
            screen(width, height, &many);
        }
    }
}
