//! What a command waits for, shown while it waits.

use std::collections::BTreeMap;
use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Bars on a terminal; elsewhere a line on standard error when something has changed.
pub(super) struct Progress {
    bars: MultiProgress,
    terminal: bool,
    shown: BTreeMap<String, (ProgressBar, String)>,
}

impl Progress {
    /// Shown on standard error.
    pub(super) fn new() -> Self {
        let terminal = stderr().is_terminal();
        let target =
            if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { bars: MultiProgress::with_draw_target(target), terminal, shown: BTreeMap::new() }
    }

    /// `done` of `all`, with a word on how it goes.
    pub(super) fn set(&mut self, name: &str, done: u64, all: u64, note: &str) {
        let text = format!("{done}/{all} {note}");
        let (bar, last) = self.shown.entry(name.to_owned()).or_insert_with(|| {
            let bar = self.bars.add(ProgressBar::new(all.max(1)));
            bar.set_style(style("{spinner} {prefix:<28} [{bar:24}] {pos}/{len} {wide_msg}"));
            bar.set_prefix(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            (bar, String::new())
        });
        bar.set_length(all.max(1));
        bar.set_position(done);
        bar.set_message(note.to_owned());
        if *last != text {
            if !self.terminal {
                eprintln!("{name}: {text}");
            }
            *last = text;
        }
        if done >= all && all > 0 {
            bar.finish();
        }
    }

    /// A step whose end is not known beforehand.
    pub(super) fn step(&self, text: &str) -> Step {
        if !self.terminal {
            eprintln!("{text}");
        }
        let bar = self.bars.add(ProgressBar::new_spinner());
        bar.set_style(style("{spinner} {wide_msg}"));
        bar.set_message(text.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Step(bar)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        for (bar, _) in self.shown.values() {
            if !bar.is_finished() {
                bar.abandon();
            }
        }
    }
}

/// A step that is under way until this is dropped.
pub(super) struct Step(ProgressBar);

impl Drop for Step {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are this module's own; with one that is not understood there are no bars.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
        .progress_chars("=> ")
}
