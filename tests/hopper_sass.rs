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

#[test]
fn nothing_fences_the_main_loop() {
    let fatbin = Path::new(env!("OUT_DIR")).join("hopper_linear.fatbin");
    let (Some(cuobjdump), true) = (cuobjdump(), fatbin.is_file()) else {
        // Where kernels are required, as in CI, so is this check.
        assert!(std::env::var_os("LORA_KERNELS_REQUIRE_NVCC").is_none(), "nothing to check with");
        println!("nothing was checked: there is no cuobjdump, or there are no Hopper kernels");
        return;
    };
    let output = Command::new(cuobjdump).arg("-sass").arg(&fatbin).output().expect("cuobjdump");
    let sass = String::from_utf8(output.stdout).expect("text");
    let kernels: Vec<&str> = sass.split("Function : ").skip(1).collect();
    assert_eq!(kernels.len(), 18, "three products, three tiles, bf16 and f16");
    for kernel in kernels {
        let name = kernel.lines().next().unwrap_or_default();
        let instructions: Vec<&str> =
            kernel.lines().filter(|line| line.contains(';')).map(str::trim).collect();
        let is_wgmma = |line: &&str| line.contains("HGMMA");
        let first = instructions.iter().position(is_wgmma).unwrap_or_else(|| panic!("{name}"));
        let last = instructions.iter().rposition(is_wgmma).expect("the first at least");
        assert!(last - first >= 4, "{name}: the steps of a stage are not unrolled");
        // Those that order shared memory before a store by the TMA wait for nobody else's.
        let is_fence = |line: &&&str| line.contains("MEMBAR") && !line.contains(".CTA");
        let fence = instructions[first..=last].iter().find(is_fence);
        assert_eq!(fence, None, "{name}");
    }
}
