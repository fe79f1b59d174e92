//! How things are printed.

mod flow;

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub use flow::CompactFlows;
pub(super) use flow::{flow_json, rule_text};

/// How flows are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A line each.
    #[default]
    Compact,
    /// A line each, with everything that is known.
    Wide,
    /// An object each.
    Json,
}

/// How everything else is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TableOrJson {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Colours, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paint(pub bool);

impl Paint {
    /// As standard output takes it.
    pub fn stdout() -> Self {
        Self(colours(&io::stdout()))
    }

    fn paint(self, code: &str, text: impl Display) -> String {
        if self.0 { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_string() }
    }

    /// All is well.
    pub fn good(self, text: impl Display) -> String {
        self.paint("32", text)
    }

    /// It is not.
    pub fn bad(self, text: impl Display) -> String {
        self.paint("31", text)
    }

    /// Worth a look.
    pub fn doubtful(self, text: impl Display) -> String {
        self.paint("33", text)
    }

    /// Less important.
    pub fn dim(self, text: impl Display) -> String {
        self.paint("2", text)
    }

    /// More important.
    pub fn strong(self, text: impl Display) -> String {
        self.paint("1", text)
    }

    /// `allowed` green, `denied` red.
    pub fn verdict(self, verdict: &str, text: impl Display) -> String {
        match verdict {
            "allowed" => self.good(text),
            "denied" => self.bad(text),
            _ => self.doubtful(text),
        }
    }
}

/// Whether a stream takes colours (<https://no-color.org>).
pub(super) fn colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// A table without lines, whose columns align.
pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.to_vec());
    table.force_no_tty();
    table
}

/// A table's lines, without the spaces that comfy-table puts around.
pub(super) fn lines(table: &mut Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// A line on standard output.
pub(super) fn print(line: impl Display) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()?;
    Ok(())
}

/// RFC 3339.
pub(super) fn timestamp(nanoseconds: u64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanoseconds))
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}
