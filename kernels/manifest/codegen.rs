//! What build.rs writes from the manifest: headers for the kernels, and Rust for the crate.

use kernels::{Cta, Kernel, kernels};
use shared::{Constant, Field, Struct, capitalised, constants, structs};
use std::collections::{BTreeMap, BTreeSet};

mod kernels;
mod shared;
mod wgmma;

// ---- kernels -------------------------------------------------------------------------------

/// Element types, as entry points and C++ call them.
const ELEMENTS: [(&str, &str); 2] = [("bf16", "__nv_bfloat16"), ("f16", "__half")];

impl Kernel {
    /// Like `sm90a/short`.
    fn path(&self) -> String {
        format!("{}/{}", self.arch, self.file)
    }

    /// The name of an instance for the element type of this index, which not all kernels have.
    fn entry_point(&self, instance: &[usize], element: usize) -> String {
        let mut name = self.name.clone();
        for (axis, value) in self.axes.iter().zip(instance) {
            name += &format!("_{axis}{value}");
        }
        if self.body.contains("{E}") {
            name += &format!("_{}", ELEMENTS[element].0);
        }
        name
    }

    /// An entry point in C++.
    fn definition(&self, instance: &[usize], element: usize) -> String {
        let name = self.entry_point(instance, element);
        let Cta { threads: [x, y], per_sm, cluster, .. } = (self.cta)(instance);
        let cluster = match cluster {
            1 => String::new(),
            _ => format!("__cluster_dims__({cluster}, 1, 1) "),
        };
        let per_sm = per_sm.map(|per_sm| format!(", {per_sm}")).unwrap_or_default();
        let mut body = self.body.replace("{E}", ELEMENTS[element].1);
        for (axis, value) in self.axes.iter().zip(instance) {
            body = body.replace(&format!("{{{axis}}}"), &value.to_string());
        }
        format!(
            "\nextern \"C\" __global__ void {cluster}__launch_bounds__({}{per_sm})\n    \
             {name}(const __grid_constant__ {} p) {{\n    {body}\n}}\n",
            x * y,
            self.cpp_params
        )
    }

    /// The struct that tells its instances apart, if an axis alone does not.
    fn key(&self) -> Option<String> {
        (self.axes.len() > 1).then(|| self.name.split('_').map(capitalised).collect())
    }

    /// Its type in Rust.
    fn field(&self) -> String {
        let params = &self.params;
        match (self.axes, self.key()) {
            ([], _) => format!("Kernel<{params}>"),
            (_, None) => format!("Instances<usize, {params}>"),
            (_, Some(key)) => format!("Instances<{key}, {params}>"),
        }
    }

    /// How Rust loads it.
    fn load(&self) -> String {
        let path = self.path();
        let of = |instance: &Vec<usize>| {
            let Cta { threads, shared_bytes, .. } = (self.cta)(instance);
            let names = [0, 1].map(|element| self.entry_point(instance, element));
            let footprint =
                format!("Footprint {{ threads: {threads:?}, shared_bytes: {shared_bytes} }}");
            format!("{names:?}[element], {footprint}")
        };
        if self.axes.is_empty() {
            return format!("modules.kernel({path:?}, {})?", of(&self.instances[0]));
        }
        let instances = self.instances.iter().map(|instance| {
            let axes = self.axes.iter().zip(instance);
            let key = match self.key() {
                None => instance[0].to_string(),
                Some(key) => {
                    axes.fold(key + " {", |key, (axis, value)| format!("{key} {axis}: {value},"))
                        + " }"
                }
            };
            format!("\n                    ({key}, {}),", of(instance))
        });
        format!("modules.instances({path:?}, &[{}])?", instances.collect::<String>())
    }
}

/// All kernel files, like `sm90a/short`.
pub fn files() -> BTreeSet<String> {
    kernels().iter().map(Kernel::path).collect()
}

/// The entry points of each file, by name, in C++.
fn entry_points() -> BTreeMap<String, BTreeMap<String, String>> {
    let mut files = BTreeMap::<_, BTreeMap<_, _>>::new();
    for kernel in kernels() {
        let of_file = files.entry(kernel.path()).or_default();
        for (instance, element) in kernel.instances.iter().flat_map(|of| [(of, 0), (of, 1)]) {
            let name = kernel.entry_point(instance, element);
            of_file.insert(name, kernel.definition(instance, element));
        }
    }
    files
}

// ---- output --------------------------------------------------------------------------------

/// The kernels' headers by path: what they share with the host, and their entry points.
pub fn headers() -> BTreeMap<String, String> {
    let constants = constants().into_iter().map(|(file, constants)| {
        (file, constants.iter().filter_map(Constant::declaration).collect::<String>())
    });
    let structs = structs()
        .into_iter()
        .map(|(file, structs)| (file, structs.iter().map(Struct::declaration).collect::<String>()));
    let mut headers = BTreeMap::new();
    for (file, text) in constants.chain(structs).filter(|(_, text)| !text.is_empty()) {
        let prelude = || {
            format!(
                "// What kernels/{file} shares with the host, from kernels/manifest.\n\
                 #pragma once\n\n#include <cstddef>\n#include <cstdint>\n\n"
            )
        };
        *headers.entry(format!("manifest/{file}.cuh")).or_insert_with(prelude) += &text;
    }
    headers.insert("manifest/sm90a/wgmma_asm.cuh".to_string(), wgmma::header());
    for (file, entry_points) in entry_points() {
        let definitions = entry_points.into_values().collect::<String>();
        let text = format!("// The entry points of kernels/{file}.cu, from kernels/manifest.\n");
        headers.insert(format!("instances/{file}.cuh"), text + &definitions);
    }
    headers
}

/// In Rust, a module for each architecture with its kernels and how they are loaded.
pub fn kernel_modules() -> String {
    let mut archs = BTreeMap::<_, Vec<_>>::new();
    for kernel in kernels() {
        archs.entry(kernel.arch).or_default().push(kernel);
    }
    let mut text = String::new();
    for (arch, kernels) in archs {
        let (mut keys, mut fields, mut loads) = (String::new(), String::new(), String::new());
        for kernel in &kernels {
            let name = &kernel.name;
            fields += &format!("        pub(crate) {name}: {},\n", kernel.field());
            loads += &format!("                {name}: {},\n", kernel.load());
            if let Some(key) = kernel.key() {
                let axes = kernel.axes.iter().map(|axis| format!("pub(crate) {axis}: usize,"));
                keys += &format!(
                    "    #[derive(Clone, Copy, PartialEq)]\n    pub(crate) struct {key} {{ {} }}\n",
                    axes.collect::<Vec<_>>().join(" ")
                );
            }
        }
        text += &format!(
            "pub(crate) mod {arch} {{\n    use super::*;\n{keys}    \
             pub(crate) struct Kernels {{\n{fields}    }}\n    impl Kernels {{\n        \
             pub(super) fn load(modules: &Modules, element: usize) -> Result<Self> {{\n            \
             Ok(Kernels {{\n{loads}            }})\n        }}\n    }}\n}}\n"
        );
    }
    text
}

/// For tests: the names of all entry points by file.
pub fn entry_point_names() -> String {
    let files = entry_points().into_iter().map(|(file, of_file)| {
        format!("    ({file:?}, &{:?}),\n", of_file.into_keys().collect::<Vec<_>>())
    });
    format!("const ENTRY_POINTS: &[(&str, &[&str])] = &[\n{}];\n", files.collect::<String>())
}

/// Assertions that the crate's structs have the layout of the headers.
pub fn layout_assertions() -> String {
    let mut text = "const _: () = {\n".to_string();
    for Struct { name, size, fields, .. } in structs().iter().flat_map(|(_, of)| of) {
        text += &format!("    assert!(size_of::<{name}>() == {size});\n");
        for Field { name: field, offset, .. } in fields {
            text += &format!("    assert!(std::mem::offset_of!({name}, {field}) == {offset});\n");
        }
    }
    text + "};\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header() {
        let headers = headers();
        let text = &headers["manifest/sm90a/linear_layout.cuh"];
        let barriers = "// The barriers in shared memory.\nconstexpr int kBarriersAt = 229376;\n";
        assert!(text.contains(barriers), "{text}");
        let text = &headers["manifest/sm80/round.cuh"];
        for line in
            ["const float* src[8];", "int64_t elements[8];", "    // Segments that are used."]
        {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(!headers.contains_key("manifest/sm90a/linear.cuh"), "lists stay in Rust");
    }

    /// Offsets as C lays structs out, base classes included.
    #[test]
    fn layouts() {
        let headers = headers();
        let text = &headers["manifest/sm90a/linear_tiles.cuh"];
        for line in [
            "struct ForwardParams : HopperProduct {",
            "static_assert(sizeof(HopperProduct) == 136);",
            "static_assert(offsetof(HopperProduct, parts) == 68);",
            "static_assert(offsetof(ForwardParams, of_lhs) == 192);",
            "static_assert(offsetof(ForwardParams, of) == 576);",
            "static_assert(sizeof(ForwardParams) == 3136);",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        let assertions = layout_assertions();
        let line = "assert!(std::mem::offset_of!(HopperShortParams, out_cols) == 700);";
        assert!(assertions.contains(line), "{assertions}");
    }

    /// No kernel file is left out.
    #[test]
    fn files_are_listed() {
        let mut found = BTreeSet::new();
        for arch in ["sm80", "sm90a"] {
            for entry in std::fs::read_dir(format!("kernels/{arch}")).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                found.extend(name.strip_suffix(".cu").map(|file| format!("{arch}/{file}")));
            }
        }
        assert_eq!(files(), found);
    }

    #[test]
    fn instances() {
        let headers = headers();
        let text = &headers["instances/sm90a/decode.cuh"];
        let definition = "\n\
            extern \"C\" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(288, 1)\n    \
            decode_forward_t128_f16(const __grid_constant__ HopperDecodeParams p) {\n    \
            hopper_decode<__half, 128, Major::K>(p, nullptr);\n}\n";
        assert!(text.contains(definition), "{text}");
        assert_eq!(text.matches("__global__").count(), 18);
        let linear = &headers["instances/sm80/linear.cuh"];
        assert_eq!(linear.matches("__global__").count(), 2 * (5 + 3) * 2);
        let modules = kernel_modules();
        for line in [
            "pub(crate) linear_forward: Instances<LinearForward, LinearParams>,",
            "pub(crate) decode_forward: Instances<usize, HopperDecodeParams>,",
            "pub(crate) short_forward: Instances<ShortForward, HopperShortParams>,",
            "(ShortForward { m: 64, n: 224, }, [\"short_forward_m64_n224_bf16\", \
             \"short_forward_m64_n224_f16\"][element], Footprint { threads: [384, 1], \
             shared_bytes: 230912 }),",
        ] {
            assert!(modules.contains(line), "{line} in {modules}");
        }
    }
}
