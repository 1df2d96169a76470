//! Python's regular expressions, as far as they decide which modules match.
//!
//! fancy-regex matches them. An expression is read here first, by Python's rules, and written again
//! by the rules of fancy-regex, which differ in sets, escapes and braces.

use std::cell::Cell;
use std::fmt::Write;

/// The longest expression that is read.
const MAX_LENGTH: usize = 4096;
/// How deep groups may nest.
const MAX_DEPTH: usize = 32;
/// Bytes of a compiled expression, and steps back in a match. Real ones take a fraction of either.
const MAX_BYTES: usize = 1 << 20;
const MAX_STEPS: usize = 100_000;
/// Steps back that a match may take any number of times, and how many may take more.
const QUICK_STEPS: usize = 2_000;
const MAX_SLOW: usize = 1_000;

/// A regular expression of Python's `re`, of ASCII, without back-references, flags, atomic groups
/// and possessive repetitions.
#[derive(Debug, Clone)]
pub(super) struct Regex(fancy_regex::Regex);

/// Why a match could not be decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooCostly;

impl Regex {
    /// Of whole texts (`re.fullmatch`); the reason, where the meaning in Python is not certain here.
    fn new(expression: &str, steps: usize) -> Result<Self, String> {
        Regex::written("", expression, steps)
    }

    /// Of whole texts, or of their ends after a dot.
    pub fn at_dots(expression: &str) -> Result<Self, String> {
        Regex::written(r"(?:.*\.)?", expression, MAX_STEPS)
    }

    fn written(before: &str, expression: &str, steps: usize) -> Result<Self, String> {
        if expression.len() > MAX_LENGTH {
            return Err(format!("a regular expression of more than {MAX_LENGTH} bytes"));
        }
        if !expression.is_ascii() {
            return Err("a regular expression with characters that are not ASCII".into());
        }
        let mut writer = Writer { rest: expression.as_bytes(), out: String::new() };
        writer.write().map_err(|what| format!("a regular expression with {what}"))?;
        let expression = format!(r"\A{before}(?:{})\z", writer.out);
        fancy_regex::RegexBuilder::new(&expression)
            .backtrack_limit(steps)
            .delegate_size_limit(MAX_BYTES)
            .delegate_dfa_size_limit(MAX_BYTES)
            .max_prog_size(MAX_BYTES)
            .build()
            .map(Regex)
            .map_err(|error| format!("a regular expression that is too large, or none: {error}"))
    }

    pub fn matches(&self, text: &str) -> Result<bool, TooCostly> {
        self.0.is_match(text).map_err(|_| TooCostly)
    }
}

/// An expression for the modules of a file, of which only so many may take long.
#[derive(Debug)]
pub(super) struct Budgeted {
    quick: Regex,
    slow: Regex,
}

/// How many matches may still take long, over all expressions of a configuration.
#[derive(Debug)]
pub(super) struct Budget(Cell<usize>);

impl Default for Budget {
    fn default() -> Self {
        Budget(Cell::new(MAX_SLOW))
    }
}

impl Budgeted {
    /// Of whole texts (`re.fullmatch`); the reason, where the meaning in Python is not certain here.
    pub fn new(expression: &str) -> Result<Self, String> {
        let quick = Regex::new(expression, QUICK_STEPS)?;
        Ok(Budgeted { quick, slow: Regex::new(expression, MAX_STEPS)? })
    }

    pub fn matches(&self, text: &str, budget: &Budget) -> Result<bool, TooCostly> {
        if let Ok(matches) = self.quick.matches(text) {
            return Ok(matches);
        }
        let left = budget.0.get().checked_sub(1).ok_or(TooCostly)?;
        budget.0.set(left);
        self.slow.matches(text)
    }
}

const DIGIT: u128 = 0x3ff << b'0';
const SPACE: u128 = 1 << b' ' | 0x1f << b'\t' | 0xf << 0x1c;
const WORD: u128 = DIGIT | 0x3ff_ffff << b'A' | 0x3ff_ffff << b'a' | 1 << b'_';

type Read<T> = Result<T, &'static str>;

/// Reads an expression of Python, and writes it for fancy-regex.
struct Writer<'a> {
    rest: &'a [u8],
    out: String,
}

impl Writer<'_> {
    fn next(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn take(&mut self, prefix: &str) -> bool {
        let rest = self.rest.strip_prefix(prefix.as_bytes());
        rest.inspect(|rest| self.rest = rest).is_some()
    }

    fn write(&mut self) -> Read<()> {
        let (mut depth, mut names) = (0, Vec::new());
        // Whether what was written last can be repeated.
        let mut repeatable = false;
        while let Some(byte) = self.next() {
            let repetition = match byte {
                b'*' => Some((0, None)),
                b'+' => Some((1, None)),
                b'?' => Some((0, Some(1))),
                b'{' => self.count(),
                _ => None,
            };
            if let Some(repetition) = repetition {
                if !repeatable {
                    return Err("a repetition of nothing, or of a repetition");
                }
                self.repeat(repetition)?;
                repeatable = false;
                continue;
            }
            repeatable = !matches!(byte, b'|' | b'(' | b'^' | b'$');
            match byte {
                b'|' | b'^' => self.out.push(byte as char),
                b'$' => self.out.push_str(r"\z"),
                b'(' => {
                    depth += 1;
                    if depth > MAX_DEPTH {
                        return Err("groups that nest too deep");
                    }
                    self.group(&mut names)?;
                }
                b')' if depth == 0 => return Err("an unbalanced parenthesis"),
                b')' => {
                    depth -= 1;
                    self.out.push(')');
                }
                b'.' => self.set(!(1 << b'\n')),
                b'[' => {
                    let mask = self.read_set()?;
                    self.set(mask);
                }
                b'\\' => repeatable = self.escape()?,
                other => self.set(1 << other),
            }
        }
        if depth > 0 { Err("an unbalanced parenthesis") } else { Ok(()) }
    }

    /// Writes a set of ASCII characters.
    fn set(&mut self, mask: u128) {
        let mut left = mask;
        let mut ranges = String::new();
        while left != 0 {
            let low = left.trailing_zeros();
            let high = low + (left >> low).trailing_ones() - 1;
            // Writing to a string does not fail.
            let _ = write!(ranges, r"\x{{{low:x}}}-\x{{{high:x}}}");
            left &= u128::MAX.checked_shl(high + 1).unwrap_or(0);
        }
        match mask {
            0 => self.out.push_str("(?!)"),
            _ => _ = write!(self.out, "[{ranges}]"),
        }
    }

    fn repeat(&mut self, (min, max): (u32, Option<u32>)) -> Read<()> {
        if max.is_some_and(|max| max < min) {
            return Err("a repetition from more to fewer");
        }
        let max = max.map_or(String::new(), |max| max.to_string());
        let _ = write!(self.out, "{{{min},{max}}}");
        if self.take("+") {
            return Err("a possessive repetition");
        }
        if self.take("?") {
            self.out.push('?');
        }
        Ok(())
    }

    /// What follows `{`, if it is a count; else the brace stands for itself.
    fn count(&mut self) -> Option<(u32, Option<u32>)> {
        let end = self.rest.iter().position(|&byte| byte == b'}')?;
        let text = std::str::from_utf8(&self.rest[..end]).ok()?;
        let number = |digits: &str| match digits {
            "" => Some(None),
            _ if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok().map(Some),
            _ => None,
        };
        let (min, max) = match text.split_once(',') {
            Some((min, max)) => (number(min)?, number(max)?),
            None => (Some(number(text)??), number(text)?),
        };
        self.rest = &self.rest[end + 1..];
        Some((min.unwrap_or(0), max))
    }

    /// What follows `(`.
    fn group(&mut self, names: &mut Vec<Vec<u8>>) -> Read<()> {
        for look in ["?=", "?!", "?<=", "?<!"] {
            if self.take(look) {
                self.out.push('(');
                self.out.push_str(look);
                return Ok(());
            }
        }
        if self.take("?P<") {
            names.push(self.group_name(names)?);
        } else if !self.take("?:") && self.rest.first() == Some(&b'?') {
            return Err("a group of flags, or another that is not understood");
        }
        self.out.push_str("(?:");
        Ok(())
    }

    /// What follows `(?P<`: a name of Python, once.
    fn group_name(&mut self, names: &[Vec<u8>]) -> Read<Vec<u8>> {
        let end = self.rest.iter().position(|&byte| byte == b'>');
        let (name, rest) = self.rest.split_at(end.ok_or("a name without an end")?);
        let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        if name.is_empty() || name[0].is_ascii_digit() || !name.iter().all(is_name) {
            return Err("a group whose name is none");
        }
        if names.iter().any(|other| other == name) {
            return Err("a name of two groups");
        }
        self.rest = &rest[1..];
        Ok(name.to_vec())
    }

    /// What follows a backslash out of a set; whether it can be repeated.
    fn escape(&mut self) -> Read<bool> {
        const WORD: &str = "[0-9A-Za-z_]";
        match self.rest.first() {
            Some(b'A') => self.out.push_str(r"\A"),
            Some(b'Z') => self.out.push_str(r"\z"),
            Some(b'b') => {
                _ = write!(self.out, "(?:(?<={WORD})(?!{WORD})|(?<!{WORD})(?={WORD}))");
            }
            Some(b'B') => {
                _ = write!(self.out, "(?:(?<={WORD})(?={WORD})|(?<!{WORD})(?!{WORD}))");
            }
            _ => {
                let mask = class(self.next())?;
                self.set(mask);
                return Ok(true);
            }
        }
        self.next();
        Ok(false)
    }

    /// What follows `[`.
    fn read_set(&mut self) -> Read<u128> {
        const OPEN: &str = "a set without an end";
        let negated = self.take("^");
        let (mut mask, mut first) = (0, true);
        loop {
            let byte = self.next().ok_or(OPEN)?;
            if byte == b']' && !first {
                break;
            }
            first = false;
            let low = if byte == b'\\' { class(self.next())? } else { 1 << byte };
            if self.rest.starts_with(b"-") && self.rest.get(1) != Some(&b']') {
                self.next();
                let byte = self.next().ok_or(OPEN)?;
                let high = if byte == b'\\' { class(self.next())? } else { 1 << byte };
                if low.count_ones() != 1 || high.count_ones() != 1 || high < low {
                    return Err("a range of no characters");
                }
                mask |= (high - low) | high;
            } else {
                mask |= low;
            }
        }
        Ok(if negated { !mask } else { mask })
    }
}

/// What an escape stands for, in a set and out of it.
fn class(escaped: Option<u8>) -> Read<u128> {
    Ok(match escaped.ok_or("a backslash at its end")? {
        b'd' => DIGIT,
        b'D' => !DIGIT,
        b'w' => WORD,
        b'W' => !WORD,
        b's' => SPACE,
        b'S' => !SPACE,
        other if !other.is_ascii_alphanumeric() => 1 << other,
        _ => return Err(r"an escape other than \d, \w, \s, \b, \A, \Z and punctuation"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file may have any number of modules that match quickly, but few that match slowly.
    #[test]
    fn slow_matches_are_counted() {
        // About 300 and 20 000 steps back.
        let (short, long) = ("a".repeat(8), "a".repeat(14));
        let regex = Budgeted::new("((a|aa)+)(?=b)c").unwrap();
        let budget = Budget::default();
        assert!(regex.quick.matches(&short).is_ok() && regex.quick.matches(&long).is_err());
        for _ in 0..2 * MAX_SLOW {
            assert_eq!(regex.matches(&short, &budget), Ok(false));
        }
        for _ in 0..MAX_SLOW {
            assert_eq!(regex.matches(&long, &budget), Ok(false));
        }
        assert_eq!(regex.matches(&long, &budget), Err(TooCostly));
        assert_eq!(regex.matches(&short, &budget), Ok(false));
    }
}
