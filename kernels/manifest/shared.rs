//! constants.rs and params.rs as build.rs sees them: declarations in C++, and layouts.

pub use layout::structs;

// ---- constants -----------------------------------------------------------------------------

pub struct Constant {
    docs: &'static [&'static str],
    name: &'static str,
    value: Option<usize>,
}

/// A constant's value in C++. Lists stay in Rust.
trait Value {
    fn value(self) -> Option<usize>;
}

impl Value for usize {
    fn value(self) -> Option<usize> {
        Some(self)
    }
}

impl<T, const N: usize> Value for [T; N] {
    fn value(self) -> Option<usize> {
        None
    }
}

macro_rules! constants {
    ($($arch:ident { $($file:ident {
        $($(#[doc = $doc:literal])* const $name:ident: $ty:ty = $value:expr;)*
    })* })*) => {
        $(pub mod $arch {
            $(#[allow(dead_code)] // What only kernels and plans need.
            pub mod $file {
                $($(#[doc = $doc])* pub const $name: $ty = $value;)*
            })*
        })*

        /// By kernel file.
        pub fn constants() -> Vec<(&'static str, Vec<Constant>)> {
            vec![$($((
                concat!(stringify!($arch), "/", stringify!($file)),
                vec![$(Constant {
                    docs: &[$($doc),*],
                    name: stringify!($name),
                    value: $arch::$file::$name.value(),
                }),*],
            )),*),*]
        }
    };
}
include!("constants.rs");

impl Constant {
    /// In C++, if it is a number.
    pub fn declaration(&self) -> Option<String> {
        let words = self.name.split('_').map(|word| capitalised(&word.to_lowercase()));
        let (name, value) = (words.collect::<String>(), self.value?);
        Some(format!("{}constexpr int k{name} = {value};\n", comment("", self.docs)))
    }
}

// ---- parameters ----------------------------------------------------------------------------

pub struct Struct {
    docs: &'static [&'static str],
    pub name: &'static str,
    base: Option<&'static str>,
    pub size: usize,
    pub fields: Vec<Field>,
}

pub struct Field {
    docs: &'static [&'static str],
    pub name: &'static str,
    declaration: String,
    pub offset: usize,
}

/// A type of a field, laid out as in the kernels.
trait Cpp {
    /// The declaration of something with this name.
    fn declaration(name: &str) -> String;
}

impl<T: Cpp, const N: usize> Cpp for [T; N] {
    fn declaration(name: &str) -> String {
        T::declaration(&format!("{name}[{N}]"))
    }
}

macro_rules! cpp {
    ($($ty:ty => $cpp:literal,)*) => {
        $(impl Cpp for $ty {
            fn declaration(name: &str) -> String {
                format!(concat!($cpp, "{}"), name)
            }
        })*
    };
}

macro_rules! params {
    ($($arch:ident { $($file:ident { $(
        $(#[doc = $doc:literal])*
        struct $name:ident $(: $base:ident)? {
            $($(#[doc = $field_doc:literal])* $field:ident: $ty:ty,)*
        }
    )* })* })*) => {
        $($($(
            #[repr(C)]
            struct $name {
                $(base: $base,)?
                $($field: $ty,)*
            }

            impl Cpp for $name {
                fn declaration(name: &str) -> String {
                    format!(concat!(stringify!($name), " {}"), name)
                }
            }
        )*)*)*

        /// By kernel file.
        pub fn structs() -> Vec<(&'static str, Vec<Struct>)> {
            vec![$($((
                concat!(stringify!($arch), "/", stringify!($file)),
                vec![$(Struct {
                    docs: &[$($doc),*],
                    name: stringify!($name),
                    base: None $(.or(Some(stringify!($base))))?,
                    size: size_of::<$name>(),
                    fields: vec![$(Field {
                        docs: &[$($field_doc),*],
                        name: stringify!($field),
                        declaration: <$ty>::declaration(stringify!($field)),
                        offset: offset_of!($name, $field),
                    }),*],
                }),*],
            )),*),*]
        }
    };
}

/// Types with the layout that they have in the kernels.
#[allow(dead_code)] // Only their layout counts.
mod layout {
    use super::common::limits::MAX_PROJECTIONS;
    use super::sm80::align::COPIES;
    use super::sm80::round::MAX_SEGMENTS;
    use super::{Cpp, Field, Struct};
    use std::mem::{offset_of, size_of};

    macro_rules! addresses {
        ($($name:ident)*) => { $(#[repr(transparent)] struct $name(u64);)* };
    }
    addresses!(F32 ConstF32 Flags ConstU32 Memory);

    /// A CUtensorMap, as in kernels/sm90a/ptx.cuh.
    #[repr(C, align(64))]
    struct TensorMap([u64; 16]);

    /// As in kernels/sm90a/parts.cuh.
    #[repr(transparent)]
    struct Parts(LayerParts);

    cpp! {
        i32 => "int ",
        i64 => "int64_t ",
        u32 => "uint32_t ",
        f32 => "float ",
        F32 => "float* ",
        ConstF32 => "const float* ",
        Flags => "uint32_t* ",
        ConstU32 => "const uint32_t* ",
        Memory => "void* ",
        TensorMap => "TensorMap ",
        Parts => "Parts ",
    }

    include!("params.rs");
}

impl Struct {
    /// In C++, with assertions of its layout.
    pub fn declaration(&self) -> String {
        let Struct { docs, name, base, size, fields } = self;
        let extends = base.map(|base| format!(" : {base}")).unwrap_or_default();
        let mut text = format!("\n{}struct {name}{extends} {{\n", comment("", docs));
        for Field { docs, declaration, .. } in fields {
            text += &format!("{}    {declaration};\n", comment("    ", docs));
        }
        text += &format!("}};\nstatic_assert(sizeof({name}) == {size});\n");
        let offsets = fields.iter().map(|Field { name: field, offset, .. }| {
            format!("static_assert(offsetof({name}, {field}) == {offset});\n")
        });
        let offsets: String = offsets.collect();
        match base {
            None => text + &offsets,
            // C++ leaves it to compilers whether offsets behind a base class are known. nvcc knows
            // them, and warns.
            Some(_) => {
                let quiet = "#pragma nv_diagnostic push\n#pragma nv_diag_suppress 1427\n";
                text + quiet + &offsets + "#pragma nv_diagnostic pop\n"
            }
        }
    }
}

/// `short` with a capital.
pub fn capitalised(word: &str) -> String {
    let (first, rest) = word.split_at(1);
    first.to_uppercase() + rest
}

fn comment(indent: &str, docs: &[&str]) -> String {
    docs.iter().map(|line| format!("{indent}//{line}\n")).collect()
}
