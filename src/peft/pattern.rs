//! The keys of `rank_pattern` and `alpha_pattern`, which are Python regular expressions.

use regex_lite::{Regex, RegexBuilder};

/// The longest regular expression that is looked at, and how much memory it may compile to.
const MAX_LENGTH: usize = 1024;
const MAX_COMPILED: usize = 1 << 15;

/// What a key may be that matches a module as PEFT does it, `re.match(r"(.*\.)?(KEY)$", module)`:
/// the module's path, or a part of it that begins after a dot.
#[derive(Debug, Clone)]
pub(super) enum Pattern {
    /// Characters, of which `None` is any, as nearly all keys are; after `^` the path in full.
    Text { text: Vec<Option<char>>, in_full: bool },
    /// What Python and this crate's regular expressions both know, and read alike.
    Regex(Box<Regex>),
}

impl Pattern {
    /// The pattern of a key; the reason, if it is one whose meaning in Python is not certain here.
    pub fn new(key: &str) -> Result<Self, String> {
        if let Some(pattern) = Pattern::text(key) {
            return Ok(pattern);
        }
        if key.len() > MAX_LENGTH {
            return Err(format!("a regular expression of more than {MAX_LENGTH} bytes"));
        }
        check_syntax(key)?;
        RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{key})$"))
            .size_limit(MAX_COMPILED)
            .build()
            .map(|regex| Pattern::Regex(Box::new(regex)))
            .map_err(|error| format!("a regular expression that is not understood: {error}"))
    }

    /// The pattern of a key with nothing special in it but dots, escapes, and `^` in front.
    fn text(key: &str) -> Option<Self> {
        let (key, in_full) = key.strip_prefix('^').map_or((key, false), |rest| (rest, true));
        let mut text = Vec::new();
        let mut chars = key.chars();
        while let Some(char) = chars.next() {
            text.push(match char {
                '.' => None,
                '\\' => Some(chars.next().filter(|&escaped| is_punctuation(escaped))?),
                special if is_special(special) => return None,
                other => Some(other),
            });
        }
        Some(Pattern::Text { text, in_full })
    }

    /// The pattern of just this module: its path, and no other that ends in it.
    pub fn for_module(module: &str) -> String {
        let mut key = String::from("^");
        for char in module.chars() {
            if char == '.' || is_special(char) {
                key.push('\\');
            }
            key.push(char);
        }
        key
    }

    pub fn is_regex(&self) -> bool {
        matches!(self, Pattern::Regex(_))
    }

    pub fn matches(&self, module: &str) -> bool {
        match self {
            Pattern::Text { text, in_full } => {
                let mut rest = module.chars().rev();
                let same = text.iter().rev().all(|expected| {
                    rest.next().is_some_and(|char| expected.is_none_or(|other| other == char))
                });
                same && rest.next().is_none_or(|char| char == '.' && !in_full)
            }
            Pattern::Regex(regex) => regex.is_match(module),
        }
    }
}

/// Whether a character stands for something else in a regular expression; a dot apart.
fn is_special(char: char) -> bool {
    r"\^$*+?{}[]|()".contains(char)
}

/// Whether a character is itself in Python's and this crate's expressions after a backslash.
fn is_punctuation(char: char) -> bool {
    char.is_ascii_punctuation() && !"<>".contains(char)
}

/// Lets through what both languages read alike: escaped punctuation, \d and \w (of ASCII: module
/// names are), plain sets, groups, alternatives, ^, $ and repetitions.
fn check_syntax(key: &str) -> Result<(), String> {
    let unknown = |what: &str| Err(format!("a regular expression with {what}"));
    if !key.is_ascii() {
        return unknown("characters that are not ASCII");
    }
    let mut rest = key;
    let (mut depth, mut after_repetition) = (0usize, false);
    while let Some(char) = rest.chars().next() {
        rest = &rest[1..];
        let mut repetition = false;
        match char {
            '\\' => {
                let escaped = rest.chars().next();
                if !escaped.is_some_and(|c| is_punctuation(c) || "dDwW".contains(c)) {
                    return unknown(r"an escape other than \d, \w and punctuation");
                }
                rest = &rest[1..];
            }
            '[' => rest = after_set(rest).ok_or("a regular expression with an unusual set")?,
            '(' => {
                depth += 1;
                rest = rest.strip_prefix("?:").unwrap_or(rest);
                if rest.starts_with('?') {
                    return unknown("a group other than (...) and (?:...)");
                }
            }
            ')' if depth == 0 => return unknown("an unbalanced parenthesis"),
            ')' => depth -= 1,
            '*' | '+' | '?' | '{' => {
                if after_repetition {
                    return unknown("a repetition of a repetition");
                }
                if char == '{' {
                    rest = after_count(rest).ok_or("a regular expression with an unusual {}")?;
                }
                // Lazy or not is all the same to whether the whole matches.
                rest = rest.strip_prefix('?').unwrap_or(rest);
                repetition = true;
            }
            ']' | '}' => return unknown("an unbalanced bracket"),
            _ => {}
        }
        after_repetition = repetition;
    }
    if depth > 0 {
        return unknown("an unbalanced parenthesis");
    }
    Ok(())
}

/// What comes after a set of letters, digits, `_`, `.`, `-`, \d, \w and escaped punctuation.
fn after_set(set: &str) -> Option<&str> {
    let mut chars = set.strip_prefix('^').unwrap_or(set).chars();
    let mut last = '[';
    loop {
        let char = chars.next()?;
        match char {
            ']' if last != '[' => return Some(chars.as_str()),
            '\\' => {
                chars.next().filter(|&c| is_punctuation(c) || "dw".contains(c))?;
            }
            '-' if last == '-' => return None,
            '-' | '_' | '.' => {}
            _ if char.is_ascii_alphanumeric() => {}
            _ => return None,
        }
        last = char;
    }
}

/// What comes after `n}`, `n,}` or `n,m}`.
fn after_count(count: &str) -> Option<&str> {
    let (count, rest) = count.split_once('}')?;
    let (least, most) = count.split_once(',').unwrap_or((count, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    (!least.is_empty() && digits(least) && digits(most)).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    /// What PEFT's own function says: tests/fixtures/peft/make.py wrote it.
    #[derive(Deserialize)]
    struct Answers {
        modules: Vec<String>,
        matches: BTreeMap<String, serde_json::Value>,
    }

    /// Keys that Python understands and this crate refuses.
    const REFUSED: &[&str] = &[
        r"layers.0\b.*",
        "(?=q)q_proj",
        r"(q)_\1",
        "q_proj)|(k_proj",
        "q++_proj",
        "a{,3}",
        "[[:alpha:]]+",
        "[a-z&&[^q]]+_proj",
        "[]q]_proj",
        "[a--q]_proj",
        "{",
        "(?P<name>q)_proj",
        r"q_proj\Z",
        "q_proj}",
    ];

    #[test]
    fn keys_match_as_in_peft() {
        let json = include_str!("../../tests/fixtures/peft/patterns.json");
        let Answers { modules, matches } = serde_json::from_str(json).unwrap();
        let mut compared = 0;
        for (key, answer) in &matches {
            let refused = REFUSED.contains(&key.as_str());
            match (Pattern::new(key), answer.as_array()) {
                (Ok(pattern), Some(expected)) => {
                    assert!(!refused, "{key} was to be refused");
                    let matching: Vec<_> =
                        modules.iter().filter(|module| pattern.matches(module)).collect();
                    assert!(matching.iter().copied().eq(expected), "{key} matches {matching:?}");
                    compared += 1;
                }
                (Ok(_), None) => panic!("{key} was taken, but {answer}"),
                (Err(reason), Some(_)) => assert!(refused, "{key}: {reason}"),
                (Err(_), None) => {}
            }
        }
        assert!(compared >= 35, "{compared} keys were compared");
    }

    #[test]
    fn a_module_s_own_pattern_matches_it_alone() {
        for module in ["a.b", "a-b.0", "a+(b).[c]", r"a\b.{2}", "x"] {
            let key = Pattern::for_module(module);
            let pattern = Pattern::new(&key).unwrap();
            assert!(pattern.matches(module), "{key}");
            for other in [format!("c.{module}"), format!("{module}.c"), module.replace('.', "x")] {
                assert!(other == module || !pattern.matches(&other), "{key} matches {other}");
            }
        }
    }

    #[test]
    fn enormous_expressions_are_refused() {
        for key in ["(a{1000}){1000}", &"a*".repeat(600), &"(".repeat(900), "((a{99}){99}){99}"] {
            assert!(Pattern::new(key).is_err(), "{key}");
        }
    }
}
