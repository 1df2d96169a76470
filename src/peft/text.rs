//! What a file may hold instead of JSON or tensors, and JSON as Python writes it.

use super::file::{malformed, unsupported};
use crate::error::Result;
use std::borrow::Cow;
use std::path::Path;

const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Refuses a file that begins as a Git LFS pointer does.
pub(super) fn refuse_pointer(path: &Path, start: &[u8]) -> Result<()> {
    if !start.starts_with(LFS_POINTER) {
        return Ok(());
    }
    let reason = "a Git LFS pointer, which only names the file: run `git lfs install` and \
                  `git lfs pull` in the clone that it comes from, or download the file itself";
    Err(unsupported(path, "the file", reason))
}

/// Refuses JSON in an encoding that PEFT does not read, and makes texts of Python's `NaN`,
/// `Infinity` and `-Infinity`, so that the field that has one can be named, or ignored.
pub(super) fn json<'a>(path: &Path, json: &'a [u8]) -> Result<Cow<'a, [u8]>> {
    refuse_pointer(path, json)?;
    let marks: [(&[u8], &str); 3] =
        [(b"\xef\xbb\xbf", "UTF-8"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")];
    if let Some((_, name)) = marks.iter().find(|(mark, _)| json.starts_with(mark)) {
        let reason = format!(
            "begins with a byte order mark (BOM) of {name}, which PEFT does not read either: save \
             it as UTF-8 without BOM"
        );
        return Err(malformed(path, "the JSON", reason));
    }
    // serde_json does not look into texts that nobody asks for.
    if let Err(error) = std::str::from_utf8(json) {
        return Err(malformed(path, "the JSON", format!("is not UTF-8: {error}")));
    }
    Ok(with_quoted_numbers(json))
}

fn with_quoted_numbers(json: &[u8]) -> Cow<'_, [u8]> {
    let mut quoted: Vec<u8> = Vec::new();
    let (mut copied, mut at, mut in_text) = (0, 0, false);
    while at < json.len() {
        match json[at] {
            b'\\' if in_text => at += 1,
            b'"' => in_text = !in_text,
            b'N' | b'I' | b'-' if !in_text => {
                let words: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];
                let word = words.into_iter().find(|word| json[at..].starts_with(word));
                if let Some(word) = word {
                    let end = at + word.len();
                    // A key must be a text.
                    let next = json[end..].iter().find(|byte| !byte.is_ascii_whitespace());
                    if next != Some(&b':') {
                        quoted.extend_from_slice(&json[copied..at]);
                        quoted.push(b'"');
                        quoted.extend_from_slice(word);
                        quoted.push(b'"');
                        copied = end;
                    }
                    at = end - 1;
                }
            }
            _ => {}
        }
        at += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(json);
    }
    quoted.extend_from_slice(&json[copied..]);
    Cow::Owned(quoted)
}
