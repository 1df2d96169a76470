//! The wgmma instructions, whose accumulators an asm statement has to list one by one.

use super::ELEMENTS;
use super::shared::sm90a::wgmma::COLS;

/// `manifest/sm90a/wgmma_asm.cuh`: `WgmmaAsm<E, kCols>` for both element types and all widths.
pub fn header() -> String {
    let mut text = "// The wgmma instructions, from kernels/manifest/wgmma.rs.\n\
                    #pragma once\n\n#include <cstdint>\n\n#include <cuda_bf16.h>\n\
                    #include <cuda_fp16.h>\n\n\
                    template <typename E, int kCols>\nstruct WgmmaAsm;\n"
        .to_string();
    for (ty, element) in ELEMENTS {
        for cols in COLS {
            text += &instruction(ty, element, cols);
        }
    }
    text
}

fn instruction(ty: &str, element: &str, cols: usize) -> String {
    let floats = cols / 2;
    let list =
        |item: &dyn Fn(usize) -> String| (0..floats).map(item).collect::<Vec<_>>().join(", ");
    let registers = list(&|i| format!("%{i}"));
    let operands = list(&|i| format!("\"+f\"(d[kAt + {i}])"));
    let at = |i: usize| format!("%{}", floats + i);
    let name = format!("wgmma.mma_async.sync.aligned.m64n{cols}k16.f32.{ty}.{ty}");
    let function = |template: &str, function: &str, arguments: &str, asm: &str, inputs: &str| {
        format!(
            "    template <{template}, int kAt, int kFloats>\n    \
             static __device__ __forceinline__ void {function}(float (&d)[kFloats], {arguments}) \
             {{\n        asm volatile({asm}\n            : {operands}\n            : {inputs});\n    \
             }}\n"
        )
    };
    let shared = function(
        "int kLhsMn, int kRhsMn",
        "shared",
        "uint64_t lhs, uint64_t rhs, int accumulate",
        &format!(
            "\"{{\\n.reg .pred p;\\nsetp.ne.b32 p, {}, 0;\\n{name} {{{registers}}}, {}, {}, p, 1, 1, \
             {}, {};\\n}}\\n\"",
            at(2),
            at(0),
            at(1),
            at(3),
            at(4)
        ),
        "\"l\"(lhs), \"l\"(rhs), \"r\"(accumulate), \"n\"(kLhsMn), \"n\"(kRhsMn)",
    );
    let of_registers = function(
        "int kRhsMn",
        "registers",
        "const uint32_t (&lhs)[4], uint64_t rhs",
        &format!(
            "\"{name} {{{registers}}}, {{{}, {}, {}, {}}}, {}, 1, 1, 1, {};\\n\"",
            at(0),
            at(1),
            at(2),
            at(3),
            at(4),
            at(5)
        ),
        "\"r\"(lhs[0]), \"r\"(lhs[1]), \"r\"(lhs[2]), \"r\"(lhs[3]), \"l\"(rhs), \"n\"(kRhsMn)",
    );
    format!("\ntemplate <>\nstruct WgmmaAsm<{element}, {cols}> {{\n{shared}{of_registers}}};\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest() {
        let text = instruction("f16", "__half", 8);
        for part in [
            "struct WgmmaAsm<__half, 8> {",
            "setp.ne.b32 p, %6, 0;\\n\
             wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%0, %1, %2, %3}, %4, %5, p, 1, 1, \
             %7, %8;",
            ": \"+f\"(d[kAt + 0]), \"+f\"(d[kAt + 1]), \"+f\"(d[kAt + 2]), \"+f\"(d[kAt + 3])\n",
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, %8, 1, 1, 1, %9;",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
