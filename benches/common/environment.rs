//! Where and when a result was measured.

use super::Result;
use super::gpu::Gpu;
use lora_kernels::cudarc::driver::sys;
use serde_json::json;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

pub struct Environment {
    /// The card's name.
    pub card: String,
    /// The driver's own version where nvidia-smi tells it, and the CUDA version it supports.
    pub driver: String,
    /// As `cublasLtGetVersion` has it, where it is used.
    pub cublaslt: Option<usize>,
    /// What nvidia-smi says of the card at work, once sampled.
    pub clocks: Option<String>,
    /// The day in UTC, as YYYY-MM-DD.
    pub date: String,
    pub commit: String,
    /// As cargo is called for it.
    command: String,
    /// The card as nvidia-smi knows it, whatever CUDA_VISIBLE_DEVICES says.
    uuid: String,
}

impl Environment {
    pub fn new(gpu: &Gpu, benchmark: &str, cublaslt: Option<usize>) -> Result<Self> {
        let bytes = gpu.context().uuid()?.bytes;
        let hex: String = bytes.iter().map(|&byte| format!("{:02x}", byte as u8)).collect();
        let groups = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
        let uuid = format!("GPU-{}", groups.join("-"));

        let mut version = 0;
        // SAFETY: the pointer is to a live c_int.
        unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
        let cuda = format!("CUDA {}.{}", version / 1000, version % 1000 / 10);
        let driver = match output(smi(&uuid, "driver_version")) {
            Some(driver) => format!("{driver} ({cuda})"),
            None => cuda,
        };
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        Ok(Environment {
            card: gpu.context().name()?,
            driver,
            cublaslt,
            clocks: None,
            date: date(seconds / 86_400),
            commit: commit(),
            command: command(benchmark),
            uuid,
        })
    }

    pub fn describe(&self) -> String {
        let Environment { card, driver, cublaslt, date, commit, .. } = self;
        let cublaslt = cublaslt.map_or(String::new(), |version| format!(", cuBLASLt {version}"));
        format!("{card}, driver {driver}{cublaslt}, {date}, commit {commit}")
    }

    /// The fields of a result file.
    pub fn json(&self) -> Vec<(&'static str, String)> {
        let Environment { card, driver, cublaslt, clocks, date, commit, command, .. } = self;
        let clocks = clocks.as_deref().unwrap_or("unknown");
        let text = |text: &str| json!(text).to_string();
        let mut fields = vec![("card", text(card)), ("driver", text(driver))];
        fields.extend(cublaslt.map(|version| ("cublaslt", version.to_string())));
        fields.extend([("clocks", text(clocks)), ("date", text(date)), ("commit", text(commit))]);
        fields.push(("command", text(command)));
        fields
    }

    /// Asks nvidia-smi for clocks and power while `work`, over and over, keeps the card busy.
    pub fn sample_clocks(&mut self, mut work: impl FnMut() -> Result<()>) -> Result<()> {
        let mut query = smi(&self.uuid, "clocks.sm,clocks.mem,power.draw");
        let Ok(mut asking) = query.stdout(Stdio::piped()).stderr(Stdio::null()).spawn() else {
            return Ok(());
        };
        while asking.try_wait()?.is_none() {
            work()?;
        }
        let answer = asking.wait_with_output()?;
        let text = String::from_utf8_lossy(&answer.stdout);
        if let (true, [sm, memory, power]) =
            (answer.status.success(), text.trim().split(", ").collect::<Vec<_>>().as_slice())
        {
            self.clocks = Some(format!("SM {sm}, memory {memory}, {power}"));
        }
        Ok(())
    }
}

fn smi(uuid: &str, fields: &str) -> Command {
    let mut command = Command::new("nvidia-smi");
    command.arg(format!("--id={uuid}"));
    command.arg(format!("--query-gpu={fields}")).arg("--format=csv,noheader");
    command
}

/// What a command prints, trimmed, if it succeeds.
fn output(mut command: Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// `LORA_KERNELS_COMMIT`, for executables that run far from their sources, else what git says.
fn commit() -> String {
    if let Ok(commit) = std::env::var("LORA_KERNELS_COMMIT") {
        return commit;
    }
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        command.arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args(args);
        output(command)
    };
    match git(&["rev-parse", "--short", "HEAD"]) {
        Some(commit) => match git(&["status", "--porcelain", "--untracked-files=no"]) {
            Some(changes) if changes.is_empty() => commit,
            _ => commit + "-dirty",
        },
        None => "unknown".to_string(),
    }
}

fn command(benchmark: &str) -> String {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let separator = if args.is_empty() { "" } else { " -- " };
    format!("cargo bench --bench {benchmark}{separator}{}", args.join(" "))
}

/// The date of a day counted from 1970-01-01 (Howard Hinnant's `civil_from_days`).
fn date(day: u64) -> String {
    // Days from 0000-03-01, so that a leap day ends its year; 400 years have 146097 days.
    let day = day + 719_468;
    let (era, day_of_era) = (day / 146_097, day % 146_097);
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    // Months from March on, of 153 days in every five.
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day_of_month:02}", era * 400 + year + later)
}
