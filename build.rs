//! Compiles each kernel file that `kernels/manifest` lists with nvcc into one fatbin, and writes
//! `$OUT_DIR/kernels.rs`, which embeds them. No GPU is needed, and nothing of CUDA is linked.
//!
//! Environment, all optional:
//! - `NVCC`, `CUDA_HOME`, `CUDA_PATH`, `PATH`: where nvcc is looked for, in this order, then
//!   `.nvcc/` (made by scripts/install-nvcc.sh) and `/usr/local/cuda`.
//! - `NVCC_CCBIN`: the host compiler, as in `nvcc -ccbin`.
//! - `LORA_KERNELS_ARCHS`: the architectures to compile for, e.g. `80,86,90a`; default `80,90`.
//!   The lowest one without a suffix is there as PTX too, for GPUs without code of their own.
//! - `CUDA_COMPUTE_CAP`: the same for one architecture, e.g. `80` or `8.0`; the former wins.
//! - `LORA_KERNELS_REQUIRE_NVCC=1`: no nvcc is an error, not a warning and a crate that has no
//!   kernels.
//! - `DOCS_RS`: builds no kernels.
//! - `NVCC_APPEND_FLAGS`, which nvcc reads by itself: `-lineinfo`, say, to see source lines in a
//!   profiler. It is not there by default, because it makes fatbins four times as large.
//!
//! The folder of a kernel is the oldest architecture that runs it: `sm80` is compiled for every
//! architecture of the list, `sm90a` for 90a alone, if the list has 90 or 90a.
//!
//! A build fails where ptxas spills registers or serialises wgmma: the kernels are written so
//! that neither happens, and either would cost more speed than any test notices. MAY_SPILL names
//! the entry points that may spill, and how much.
//!
//! The unit tests at the foot run with `rustc --test --edition 2024 build.rs`.

use std::collections::HashSet;
use std::env::consts::EXE_SUFFIX;
use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::sync::Mutex;
use std::{env, fs, io, process, thread};

#[path = "kernels/manifest/codegen.rs"]
mod codegen;

const NVCC_FLAGS: [&str; 4] = ["-O3", "-std=c++17", "--fatbin", "-Xptxas=-v"];
const DEFAULT_ARCHS: &str = "80,90";
/// Entry points, without their element, that spill: the price of a second CTA on an SM, of many
/// loads in flight, or of random numbers beside the sums of a wide tile. The bytes, stored and
/// loaded, are ptxas 13.0's largest.
const MAY_SPILL: [(&str, u32); 10] = [
    ("decode_forward_t32_rows64_splits1_loads1_", 44),
    ("decode_input_grad_t32_rows64_splits1_loads1_", 72),
    ("decode_input_grad_t16_rows32_splits1_loads2_", 124),
    ("linear_input_grad_dropout_m64_n64_shifts0_", 12),
    ("linear_input_grad_dropout_slice0_n256_", 312),
    ("linear_input_grad_dropout_slice16_n256_", 752),
    ("linear_input_grad_dropout_slice64_n256_", 756),
    ("linear_group_input_grad_dropout_slice0_n256_", 312),
    ("linear_group_input_grad_dropout_slice16_n256_", 752),
    ("linear_group_input_grad_dropout_slice64_n256_", 756),
];
/// In OUT_DIR, the headers that kernels/manifest/codegen.rs writes.
const INCLUDE: &str = "include";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernels");
    if let Err(message) = run() {
        eprintln!("{message}");
        process::exit(1);
    }
}

fn run() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let require_nvcc = match var("LORA_KERNELS_REQUIRE_NVCC").as_deref() {
        None | Some("0") => false,
        Some("1") => true,
        Some(v) => return Err(format!("LORA_KERNELS_REQUIRE_NVCC={v}: neither 0 nor 1")),
    };
    let archs = selected_archs()?;
    write(&out.join("layout.rs"), &codegen::layout_assertions())?;
    write(&out.join("entry_points.rs"), &codegen::entry_point_names())?;
    if var("DOCS_RS").is_some() {
        return write_kernels_rs(&out, &[], Some("DOCS_RS was set"));
    }
    let Some(nvcc) = find_nvcc()? else {
        let reason = "nvcc was not found (looked in NVCC, CUDA_HOME, CUDA_PATH, PATH, .nvcc and \
                      /usr/local/cuda)";
        let advice = "install the CUDA toolkit, or run scripts/install-nvcc.sh";
        if require_nvcc {
            return Err(format!("{reason}: {advice}"));
        }
        println!("cargo::warning=built without kernels, {reason}: {advice}");
        return write_kernels_rs(&out, &[], Some(reason));
    };
    for (file, text) in codegen::headers() {
        write(&out.join(INCLUDE).join(file), &text)?;
    }
    let kernels = find_kernels(&archs)?;
    compile_all(&nvcc, &kernels, &out)?;
    let none = format!("no kernel is for the architectures {}", join(&archs));
    write_kernels_rs(&out, &kernels, kernels.is_empty().then_some(&none))
}

/// An environment variable that is not blank. Cargo is told to watch it.
fn var(name: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

fn write_kernels_rs(out: &Path, kernels: &[Kernel], not_built: Option<&str>) -> Result<(), String> {
    let fatbins = kernels.iter().map(|Kernel { name, arch, .. }| {
        let image = format!(r#"include_bytes!(concat!(env!("OUT_DIR"), "/{name}.fatbin"))"#);
        let oldest = (arch.number / 10, arch.number % 10);
        let only = !arch.suffix.is_empty();
        format!(
            "    Fatbin {{ name: {name:?}, oldest: {oldest:?}, only: {only}, image: {image} }},\n"
        )
    });
    let fatbins: String = fatbins.collect();
    let code = format!(
        "/// By the names of their files.\n\
         static FATBINS: &[Fatbin] = &[\n{fatbins}];\n\
         /// Why there are no kernels in this build, if there are none.\n\
         const NOT_BUILT: Option<&str> = {not_built:?};\n\
         {}",
        codegen::kernel_modules()
    );
    write(&out.join("kernels.rs"), &code)
}

/// Writes a file, and its folder if there is none.
fn write(path: &Path, text: &str) -> Result<(), String> {
    let folder = path.parent().expect("a folder");
    let written = fs::create_dir_all(folder).and_then(|()| fs::write(path, text));
    written.map_err(|e| format!("{}: {e}", path.display()))
}

// ---- architectures -------------------------------------------------------------------------

/// `90a` is number 90 with suffix `a`: code for that architecture only, never as PTX.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Arch {
    number: u32,
    suffix: String,
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}{}", self.number, self.suffix)
    }
}

impl FromStr for Arch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.trim_end_matches(['a', 'f']);
        let suffix = text[number.len()..].to_string();
        match number.replacen('.', "", 1).parse() {
            Ok(number) if number < 80 => Err(format!("`{text}` is too old, 80 is the oldest")),
            Ok(number) if suffix.len() <= 1 => Ok(Arch { number, suffix }),
            _ => Err(format!("`{text}` is no architecture, write e.g. 80,90a")),
        }
    }
}

fn join(archs: &[Arch]) -> String {
    let names: Vec<_> = archs.iter().map(Arch::to_string).collect();
    names.join(",")
}

/// Sorted, each once.
fn parse_archs(list: &str) -> Result<Vec<Arch>, String> {
    let archs: Result<Vec<Arch>, _> = list.split(',').map(|a| a.trim().parse()).collect();
    let mut archs = archs?;
    archs.sort();
    archs.dedup();
    Ok(archs)
}

fn selected_archs() -> Result<Vec<Arch>, String> {
    for name in ["LORA_KERNELS_ARCHS", "CUDA_COMPUTE_CAP"] {
        if let Some(list) = var(name) {
            return parse_archs(&list).map_err(|e| format!("{name}={list}: {e}"));
        }
    }
    parse_archs(DEFAULT_ARCHS)
}

/// What the files of a folder are compiled for, of the architectures that are selected.
fn archs_of(folder: &Arch, selected: &[Arch]) -> Vec<Arch> {
    match folder.suffix.is_empty() {
        true => selected.iter().filter(|arch| arch.number >= folder.number).cloned().collect(),
        false if selected.iter().any(|arch| arch.number == folder.number) => vec![folder.clone()],
        false => Vec::new(),
    }
}

fn gencode(archs: &[Arch]) -> Vec<String> {
    let code = |a: &Arch, kind: &str| format!("-gencode=arch=compute_{a},code={kind}_{a}");
    let lowest_plain = archs.iter().find(|a| a.suffix.is_empty());
    let ptx = lowest_plain.map(|a| code(a, "compute"));
    archs.iter().map(|a| code(a, "sm")).chain(ptx).collect()
}

// ---- nvcc ----------------------------------------------------------------------------------

struct Nvcc {
    path: PathBuf,
    /// What besides the command line decides the code that comes out.
    identity: String,
    host_compiler: Option<String>,
}

fn find_nvcc() -> Result<Option<Nvcc>, String> {
    let Some(path) = find_nvcc_path()? else {
        return Ok(None);
    };
    println!("cargo::rerun-if-changed={}", path.display());
    let version = match Command::new(&path).arg("--version").output() {
        Ok(output) if output.status.success() => output.stdout,
        Ok(output) => return Err(format!("{} --version: {}", path.display(), output.status)),
        Err(e) => return Err(format!("{}: {e}", path.display())),
    };
    let mut identity = String::from_utf8_lossy(&version).into_owned();
    // These two nvcc reads by itself.
    for name in ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"] {
        identity += &var(name).unwrap_or_default();
    }
    let host_compiler = var("NVCC_CCBIN");
    Ok(Some(Nvcc { path, identity, host_compiler }))
}

fn find_nvcc_path() -> Result<Option<PathBuf>, String> {
    let path = var("PATH").unwrap_or_default();
    let nvcc = format!("nvcc{EXE_SUFFIX}");
    if let Some(named) = var("NVCC") {
        // An absolute path stays what it is when it is joined to a directory of PATH.
        let mut on_path = env::split_paths(&path).map(|dir| dir.join(&named));
        let found = on_path.find(|candidate| candidate.is_file());
        let missing = || format!("NVCC={named}: no such file, nor a program on PATH");
        return found.ok_or_else(missing).map(Some);
    }
    for name in ["CUDA_HOME", "CUDA_PATH"] {
        let Some(toolkit) = var(name) else {
            continue;
        };
        let candidate = Path::new(&toolkit).join("bin").join(&nvcc);
        if candidate.is_file() {
            return Ok(Some(candidate));
        }
        println!("cargo::warning={name}={toolkit} has no bin/{nvcc}, looking elsewhere");
    }
    let elsewhere = [".nvcc/nvidia/cu13/bin", "/usr/local/cuda/bin"].map(PathBuf::from);
    let dirs = env::split_paths(&path).chain(elsewhere);
    let mut candidates = dirs.map(|dir| dir.join(&nvcc));
    Ok(candidates.find(|candidate| candidate.is_file()))
}

// ---- compiling -----------------------------------------------------------------------------

struct Kernel {
    /// Like `sm90a/linear`.
    name: String,
    /// The folder's.
    arch: Arch,
    archs: Vec<Arch>,
}

/// What the manifest lists for the selected architectures, sorted by name. Paths are relative to
/// the crate, and so are the paths in nvcc's dependency files.
fn find_kernels(selected: &[Arch]) -> Result<Vec<Kernel>, String> {
    let mut kernels = Vec::new();
    for name in codegen::files() {
        let arch = name.split_once('/').and_then(|(folder, _)| folder.strip_prefix("sm"));
        let arch: Arch = arch.unwrap_or_default().parse().map_err(|e| format!("{name}: {e}"))?;
        let archs = archs_of(&arch, selected);
        if !archs.is_empty() {
            kernels.push(Kernel { name, arch, archs });
        }
    }
    Ok(kernels)
}

/// Reports the faults of all files, not only of the first.
fn compile_all(nvcc: &Nvcc, kernels: &[Kernel], out: &Path) -> Result<(), String> {
    let jobs = env::var("NUM_JOBS").map_or(1, |n| n.parse().unwrap_or(1));
    let queue = Mutex::new(kernels.iter());
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..kernels.len().min(jobs) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().next();
                    let Some(kernel) = next else { break };
                    if let Err(failure) = compile(nvcc, kernel, out) {
                        failures.lock().unwrap().push(failure);
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap();
    failures.sort();
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

fn compile(nvcc: &Nvcc, kernel: &Kernel, out: &Path) -> Result<(), String> {
    let file = |ending: &str| out.join(format!("{}.{ending}", kernel.name));
    let (fatbin, deps, stamp) = (file("fatbin"), file("d"), file("stamp"));
    let source = format!("kernels/{}.cu", kernel.name);
    let folder = fatbin.parent().expect("a folder");
    fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let include = out.join(INCLUDE);

    let mut command = Command::new(&nvcc.path);
    command.args(NVCC_FLAGS).args(gencode(&kernel.archs));
    if let Some(host_compiler) = &nvcc.host_compiler {
        command.arg("-ccbin").arg(host_compiler);
    }
    command.arg("-I").arg(&include).args(["-MD", "-MF"]).arg(&deps);
    command.arg("-o").arg(&fatbin).arg(&source);

    let recipe = format!("{command:?}\n{}", nvcc.identity);
    let old_stamp = fs::read_to_string(&stamp).ok();
    let new_stamp = || make_stamp(&recipe, &deps, &include);
    if old_stamp.is_some() && fatbin.is_file() && old_stamp == new_stamp().ok() {
        return Ok(());
    }
    // First, so that no stamp is there for a fatbin that was refused.
    fs::remove_file(&stamp).or_else(|e| match e.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(format!("{}: {e}", stamp.display())),
    })?;

    let output = command.output();
    let output = output.map_err(|e| format!("{}: {e}", nvcc.path.display()))?;
    let words = [output.stdout, output.stderr].concat();
    let words = String::from_utf8_lossy(&words);
    if !output.status.success() {
        let status = output.status;
        let report = format!("{source}: nvcc failed ({status}):\n{command:?}\n{words}");
        return Err(report);
    }
    let faults = ptxas_faults(&words).join("\n");
    if !faults.is_empty() {
        let report = format!("{source}: refused, because ptxas says:\n{faults}\n");
        return Err(report);
    }
    print!("{}", cargo_lines(&words));
    let written = new_stamp().and_then(|text| fs::write(&stamp, text));
    written.map_err(|e| format!("{}: {e}", stamp.display()))
}

/// What nvcc said, for cargo: it shows warnings always, and the rest with -vv. nvcc repeats the
/// front end's warnings for each architecture.
fn cargo_lines(words: &str) -> String {
    let mut seen = HashSet::new();
    let mut lines = String::new();
    for line in words.lines() {
        let is_warning = ["warning #", "warning :"].iter().any(|w| line.contains(w));
        if is_warning && seen.insert(line) {
            lines += "cargo::warning=";
        }
        lines += &format!("{line}\n");
    }
    lines
}

/// Says what a fatbin was made of: `recipe`, then a hash of the source and of every header of
/// ours that it includes, written or generated, by nvcc's dependency file. The toolkit's headers
/// come with `recipe`.
fn make_stamp(recipe: &str, deps: &Path, include: &Path) -> io::Result<String> {
    let mut stamp = recipe.to_string();
    for path in own_files(&fs::read_to_string(deps)?, include) {
        let mut hasher = DefaultHasher::new();
        hasher.write(&fs::read(&path)?);
        stamp += &format!("\n{:016x} {}", hasher.finish(), path.display());
    }
    Ok(stamp)
}

/// The files below kernels/ and below `include` in a Makefile rule `target : file \ file`, where
/// spaces in names have a backslash before them.
fn own_files(rule: &str, include: &Path) -> Vec<PathBuf> {
    let rule = rule.replace("\\\n", "\n").replace("\\ ", "\0");
    let words = rule.split_whitespace().map(|path| PathBuf::from(path.replace('\0', " ")));
    words.filter(|path| path.starts_with("kernels") || path.starts_with(include)).collect()
}

/// The lines of `ptxas -v` that report more spills than MAY_SPILL allows, each after the line that
/// names the entry point, and lines that report serialised wgmma or an ignored setmaxnreg.
fn ptxas_faults(output: &str) -> Vec<&str> {
    let mut faults = Vec::new();
    let mut kernel = "";
    for line in output.lines() {
        if line.contains("Compiling entry function") {
            kernel = line;
        } else if spill_bytes(line) > may_spill(kernel) {
            faults.extend([kernel, line]);
        } else if line.contains("Potential Performance Loss") {
            faults.push(line);
        }
    }
    faults
}

/// Bytes for the entry point that a line of `ptxas -v` names.
fn may_spill(kernel: &str) -> u32 {
    let allowed = MAY_SPILL.iter().find(|(name, _)| kernel.contains(name));
    allowed.map_or(0, |&(_, bytes)| bytes)
}

/// N and M of "N bytes spill stores, M bytes spill loads" added up, 0 for any other line.
fn spill_bytes(line: &str) -> u32 {
    let spills = line.split(", ").filter_map(|part| {
        let (bytes, _) = part.trim().split_once(" bytes spill")?;
        bytes.parse::<u32>().ok()
    });
    spills.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archs() {
        let list = |text: &str| parse_archs(text).map(|archs| join(&archs));
        assert_eq!(list("90a, 80,90,80").unwrap(), "80,90,90a");
        assert_eq!(list("8.0").unwrap(), "80");
        assert_eq!(list("12.0").unwrap(), "120");
        for bad in ["sm_90", "", "80,", "a", "75", "80;90", "90b", "90aa", "-90"] {
            assert!(list(bad).is_err(), "{bad:?}");
        }
        let codes = |text: &str| gencode(&parse_archs(text).unwrap()).join(" ");
        assert_eq!(codes("90a"), "-gencode=arch=compute_90a,code=sm_90a");
        assert!(codes("80,86").ends_with("-gencode=arch=compute_80,code=compute_80"));
        assert!(codes("80a,86").ends_with("-gencode=arch=compute_86,code=compute_86"));
    }

    #[test]
    fn archs_of_a_folder() {
        let of = |folder: &str, selected: &str| {
            join(&archs_of(&folder.parse().unwrap(), &parse_archs(selected).unwrap()))
        };
        assert_eq!(of("80", "80,90"), "80,90");
        assert_eq!(of("100", "80,90"), "");
        assert_eq!(of("90a", "80,90"), "90a");
        assert_eq!(of("90a", "80,90a"), "90a");
        assert_eq!(of("90a", "80"), "");
    }

    #[test]
    fn dependencies() {
        let rule = "/o/a.fatbin : kernels/a.cu \\\n  /usr/include/math.h \\\n  kernels/b.cuh \\\n  \
                    /o\\ u/c.cuh \\\n  /o/a.cuh\n";
        let files = ["kernels/a.cu", "kernels/b.cuh", "/o u/c.cuh"].map(PathBuf::from);
        assert_eq!(own_files(rule, Path::new("/o u")), files);
    }

    #[test]
    fn faults() {
        let clean = "ptxas info    : Compiling entry function 'f' for 'sm_80'\n\
                     ptxas info    : Function properties for f\n    \
                     384 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
                     ptxas info    : Used 32 registers, used 0 barriers";
        assert!(ptxas_faults(clean).is_empty());
        let spilled = clean.replace("0 bytes spill", "12 bytes spill");
        let faults = ptxas_faults(&spilled);
        assert_eq!(faults.len(), 2);
        assert!(faults[0].contains("'f' for 'sm_80'") && faults[1].contains("12 bytes spill"));
        let serialised = "ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async \
                          instructions are serialized due to insufficient register resources";
        assert_eq!(ptxas_faults(serialised), [serialised]);
    }

    #[test]
    fn allowed_spills() {
        for (name, most) in MAY_SPILL {
            let report = |name: &str, loads: u32| {
                let spills = format!("0 bytes spill stores, {loads} bytes spill loads");
                format!("Compiling entry function '{name}'\n{spills}")
            };
            assert!(ptxas_faults(&report(&format!("{name}f16"), most)).is_empty());
            assert_eq!(ptxas_faults(&report(&format!("{name}f16"), most + 1)).len(), 2);
            assert_eq!(ptxas_faults(&report("f", most)).len(), 2);
        }
    }
}
