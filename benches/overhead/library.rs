//! Whether there are libraries that cudarc loads when it first needs them, and panics without.

/// Looks for `libNAME` by the file names of NVIDIA's packages. They are some of cudarc's
/// (`cudarc::get_lib_name_candidates`, which exists only if cudarc links dynamically).
pub fn is_present(name: &str) -> bool {
    let unix = ["so", "so.13", "so.12"].map(|suffix| format!("lib{name}.{suffix}"));
    let windows = ["13", "12", "130_0", "120_0"].map(|version| format!("{name}64_{version}.dll"));
    unix.iter().chain(&windows).any(|file| {
        // SAFETY: loading a library of CUDA runs its initialisers, as cudarc is about to do anyway.
        let library = unsafe { libloading::Library::new(file) };
        // Left loaded, for cudarc to find.
        library.map(std::mem::forget).is_ok()
    })
}
