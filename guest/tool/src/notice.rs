//! What the library has to say, in the words of a tool.

use std::fmt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// `vhostd-guest: message`, and nothing else.
struct Plain;

impl<S, N> FormatEvent<S, N> for Plain
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = FormattedFields::<N>::new(String::new());
        context.format_fields(text.as_writer(), event)?;
        writeln!(writer, "vhostd-guest: {text}")
    }
}

/// Warnings go to standard error, or nowhere; with `VHOSTD_GUEST_DEBUG` in the environment, everything does.
pub fn install(quiet: bool) {
    let level = match std::env::var_os("VHOSTD_GUEST_DEBUG") {
        Some(_) => Level::DEBUG,
        None if quiet => Level::ERROR,
        None => Level::WARN,
    };
    let subscriber = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    // A second one in the same process is a test's.
    let _ = subscriber.event_format(Plain).try_init();
}
