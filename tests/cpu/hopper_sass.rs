//! What the compiler made of the Hopper kernels, which no result would show: a main loop that is
//! serialised or fenced is right, and slow.

use std::path::{Path, PathBuf};
use std::process::Command;

/// `cuobjdump` of the toolkit, or of `scripts/install-nvcc.sh --with-disassembler`.
fn cuobjdump() -> Option<PathBuf> {
    let local = Path::new(env!("CARGO_MANIFEST_DIR")).join(".nvcc/nvidia/cu13/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs = std::iter::once(local).chain(std::env::split_paths(&path));
    dirs.find_map(|dir| Some(dir.join("cuobjdump")).filter(|file| file.is_file()))
}

// ENTRY_POINTS: the names of all, by file, from the manifest.
include!(concat!(env!("OUT_DIR"), "/entry_points.rs"));

fn name(kernel: &str) -> &str {
    kernel.lines().next().unwrap_or_default().trim()
}

/// The instructions of a kernel by their addresses, up to the last exit. Behind it are the slow
/// paths of waits, which jump back into loops.
fn instructions(kernel: &str) -> Vec<(usize, &str)> {
    let lines = kernel.lines().filter(|line| line.contains(';'));
    let parsed = lines.filter_map(|line| {
        let (address, text) = line.split_once("/*")?.1.split_once("*/")?;
        Some((usize::from_str_radix(address, 16).ok()?, text.split_once(';')?.0.trim()))
    });
    let mut code: Vec<_> = parsed.collect();
    let exit = code.iter().rposition(|(_, text)| text.contains("EXIT"));
    code.truncate(exit.map_or(0, |exit| exit + 1));
    code
}

/// The innermost loops with a wgmma in them, from where a branch goes back to, to the branch.
fn main_loops<'a>(code: &'a [(usize, &'a str)]) -> Vec<&'a [(usize, &'a str)]> {
    let is_wgmma = |&(_, text): &(usize, &str)| text.contains("HGMMA");
    let loops = code.iter().enumerate().filter_map(|(end, (address, text))| {
        let target = text.split_once("BRA 0x")?.1;
        let target = usize::from_str_radix(target, 16).ok().filter(|target| target < address)?;
        let start = code.iter().position(|&(address, _)| address == target)?;
        Some(start..=end).filter(|body| code[body.clone()].iter().any(is_wgmma))
    });
    let loops: Vec<_> = loops.collect();
    let is_inner = |body: &&std::ops::RangeInclusive<usize>| {
        let within = |other: &std::ops::RangeInclusive<usize>| {
            other != *body && body.contains(other.start()) && body.contains(other.end())
        };
        !loops.iter().any(within)
    };
    loops.iter().filter(is_inner).map(|body| &code[body.clone()]).collect()
}

#[test]
fn nothing_fences_the_main_loops() {
    for (file, entry_points) in ENTRY_POINTS.iter().filter(|(file, _)| file.starts_with("sm90a/")) {
        let fatbin = Path::new(env!("OUT_DIR")).join(file).with_extension("fatbin");
        let (Some(cuobjdump), true) = (cuobjdump(), fatbin.is_file()) else {
            // Where kernels are required, as in CI, so is this check.
            assert!(
                std::env::var_os("LORA_KERNELS_REQUIRE_NVCC").is_none(),
                "nothing to check with"
            );
            println!("nothing was checked: there is no cuobjdump, or there are no Hopper kernels");
            return;
        };
        let output = Command::new(cuobjdump).arg("-sass").arg(&fatbin).output().expect("cuobjdump");
        let sass = String::from_utf8(output.stdout).expect("text");
        let kernels: Vec<&str> = sass.split("Function : ").skip(1).collect();
        let mut names: Vec<_> = kernels.iter().map(|kernel| name(kernel)).collect();
        names.sort_unstable();
        assert_eq!(names, *entry_points, "{}", fatbin.display());
        for kernel in kernels {
            let name = name(kernel);
            let code = instructions(kernel);
            let loops = main_loops(&code);
            let wgmmas = |code: &[(usize, &str)]| {
                code.iter().filter(|(_, text)| text.contains("HGMMA")).count()
            };
            assert!(loops.iter().any(|code| wgmmas(code) >= 4), "{name}: no step is unrolled");
            // A fence of the CTA, before a store by the TMA, waits for no other CTA.
            let is_fence =
                |(_, text): &&(usize, &str)| text.contains("MEMBAR") && !text.contains(".CTA");
            let fence = loops.iter().flat_map(|code| code.iter()).find(is_fence);
            assert_eq!(fence, None, "{name}");
        }
    }
}
