//! How far the merge is: a bar on a terminal, otherwise a line every few seconds.

use crate::{Result, megabytes};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

const BETWEEN_LINES: Duration = Duration::from_secs(5);

pub struct Progress {
    bar: ProgressBar,
    /// When the next line is due, where there is no terminal.
    next_line: Option<Instant>,
    bytes: [u64; 2],
    weights: [usize; 2],
}

impl Progress {
    /// Of so many bytes in all, and of so many weights that change.
    pub fn new(bytes: u64, weights: usize) -> Result<Self> {
        let style = "merging  {bar:40} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";
        let bar = ProgressBar::new(bytes).with_style(ProgressStyle::with_template(style)?);
        let terminal = io::stderr().is_terminal();
        let next_line = (!terminal).then(|| Instant::now() + BETWEEN_LINES);
        Ok(Progress { bar, next_line, bytes: [0, bytes], weights: [0, weights] })
    }

    pub fn add_bytes(&mut self, bytes: u64) {
        self.bytes[0] += bytes;
        self.bar.inc(bytes);
        let now = Instant::now();
        if self.next_line.is_some_and(|due| due <= now) {
            let [done, all] = self.bytes.map(megabytes);
            let [merged, weights] = self.weights;
            eprintln!("merging  {done} of {all}, {merged} of {weights} weights");
            self.next_line = Some(now + BETWEEN_LINES);
        }
    }

    pub fn add_weight(&mut self) {
        self.weights[0] += 1;
    }

    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}
