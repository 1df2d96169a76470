//! Constants that plans and launches share with the kernels. Modules are named like kernel files.

macro_rules! constants {
    ($($arch:ident { $($file:ident {
        $($(#[$doc:meta])* const $name:ident: $ty:ty = $value:expr;)*
    })* })*) => {
        $(pub(crate) mod $arch {
            $(#[allow(dead_code)] // What only kernels and the build need.
            pub(crate) mod $file {
                $($(#[$doc])* pub(crate) const $name: $ty = $value;)*
            })*
        })*
    };
}
include!("../kernels/manifest/constants.rs");
