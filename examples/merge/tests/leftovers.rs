//! Hidden files of runs that were killed.

use super::Setting;
use crate::Result;
use crate::leftovers::prefix;
use lora_kernels::DType;
use std::fs;
use std::process::Command;

#[cfg(target_os = "linux")]
#[test]
fn what_killed_runs_left_is_removed() -> Result<()> {
    let mut child = Command::new("true").spawn()?;
    let dead = child.id();
    child.wait()?;
    let this = prefix();
    let parts: Vec<&str> = this.trim_end_matches('-').split('-').collect();
    let [_, pid, start, boot, namespace] = parts[..] else { panic!("{this}") };
    assert_eq!(pid, std::process::id().to_string());
    let name = |pid: &str, start: &str, boot: &str, namespace: &str| {
        format!(".merging-{pid}-{start}-{boot}-{namespace}-abc")
    };
    let dead = dead.to_string();
    // One that has ended, but that nobody has waited for.
    let mut zombie = Command::new("true").spawn()?;
    let zombie_stat = loop {
        let stat = fs::read_to_string(format!("/proc/{}/stat", zombie.id()))?;
        match stat.contains(") Z ") {
            true => break stat,
            false => std::thread::yield_now(),
        }
    };
    let zombie_start = zombie_stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap();
    let zombie_name = name(&zombie.id().to_string(), zombie_start, boot, namespace);
    let killed = [name(&dead, "1", boot, namespace), name(pid, "1", boot, namespace), zombie_name];
    let others = [
        name(pid, start, boot, namespace),
        name(&dead, "1", "0123", namespace),
        name(&dead, "1", boot, "1"),
        ".merging-a1b2c3".to_string(),
        format!(".merging-{dead}-1-{boot}-{namespace}"),
        format!("merging-{dead}-1-{boot}-{namespace}-abc"),
    ];
    let setting = Setting::new(DType::F32);
    fs::create_dir(setting.path(&killed[0]))?;
    fs::write(setting.path(&killed[0]).join("model.safetensors"), "half")?;
    for file in killed[1..].iter().chain(&others) {
        fs::write(setting.path(file), "half")?;
    }
    // Never through a link.
    let link = name(&dead, "2", boot, namespace);
    std::os::unix::fs::symlink("adapter", setting.path(&link))?;

    let said = setting.run("model.safetensors", "", &["--dry-run"])?;
    assert!(!said.contains(".merging"), "{said}");
    let said = setting.run("model.safetensors", "out", &[])?;
    zombie.wait()?;
    for file in &killed {
        assert!(!setting.path(file).exists(), "{file}");
        assert!(said.contains(&format!("{file}, left from a run that was killed")), "{said}");
    }
    for (i, file) in others.iter().enumerate() {
        assert!(setting.path(file).exists(), "{file}");
        // One is in use, and one has another name.
        assert_eq!(said.contains(&format!("{file} may be left")), i != 0 && i != 5, "{said}");
    }
    assert!(setting.path("adapter/adapter_config.json").exists());
    assert!(said.contains(&format!("{link} could not be removed")), "{said}");
    Ok(())
}
