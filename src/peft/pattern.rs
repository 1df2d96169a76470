//! The keys of `rank_pattern` and `alpha_pattern`, which are Python regular expressions.

use super::regex::{Regex, TooCostly};

/// What a key may be that matches a module as PEFT does it, `re.match(r"(.*\.)?(KEY)$", module)`:
/// the module's path, or a part of it that begins after a dot.
#[derive(Debug, Clone)]
pub(super) enum Pattern {
    /// Characters, of which `None` is any, as nearly all keys are; after `^` the path in full.
    Text { text: Vec<Option<char>>, in_full: bool },
    /// A regular expression.
    Regex(Box<Regex>),
}

impl Pattern {
    /// The pattern of a key; the reason, if it is one whose meaning in Python is not certain here.
    pub fn new(key: &str) -> Result<Self, String> {
        if let Some(pattern) = Pattern::text(key) {
            return Ok(pattern);
        }
        Ok(Pattern::Regex(Box::new(Regex::at_dots(key)?)))
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

    /// Whether the module matches, or that this takes too long to decide.
    pub fn matches(&self, module: &str) -> Result<bool, TooCostly> {
        match self {
            Pattern::Text { text, in_full } => {
                let mut rest = module.chars().rev();
                let same = text.iter().rev().all(|expected| {
                    rest.next().is_some_and(|char| expected.is_none_or(|other| other == char))
                });
                Ok(same && rest.next().is_none_or(|char| char == '.' && !in_full))
            }
            Pattern::Regex(regex) => regex.matches(module),
        }
    }
}

/// Whether a character stands for something else in a regular expression; a dot apart.
fn is_special(char: char) -> bool {
    r"\^$*+?{}[]|()".contains(char)
}

/// Whether a character stands for itself after a backslash.
fn is_punctuation(char: char) -> bool {
    char.is_ascii_punctuation()
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
    const REFUSED: &[&str] = &[r"(q)_\1", "q_proj)|(k_proj", "q++_proj"];

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
                        modules.iter().filter(|module| pattern.matches(module).unwrap()).collect();
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
            assert!(pattern.matches(module).unwrap(), "{key}");
            for other in [format!("c.{module}"), format!("{module}.c"), module.replace('.', "x")] {
                assert!(
                    other == module || !pattern.matches(&other).unwrap(),
                    "{key} matches {other}"
                );
            }
        }
    }

    /// The time is bounded, and what is not decided within it is said to be so.
    #[test]
    fn enormous_expressions_take_no_time() {
        let module = "a".repeat(1024);
        for key in ["(a{1000}){1000}", &"a*".repeat(600), "((a{99}){99}){99}", "(a*)*b"] {
            let pattern = Pattern::new(key);
            println!("{key:.20}: {:?}", pattern.map(|pattern| pattern.matches(&module)));
        }
        let costly = Pattern::new("((((a*a*)*a)*a)*(?=a*b)a)*c").unwrap();
        assert_eq!(costly.matches(&module), Err(TooCostly));
        assert!(Pattern::new(&"(".repeat(900)).is_err());
        assert!(Pattern::new("(?P<a>q)(?P<a>q)").is_err());
    }

    /// As `re.fullmatch` and `re.match` of Python 3.11 say.
    #[test]
    fn look_around_and_boundaries() {
        for (key, module, expected) in [
            (r"^(?!.*vision).*q_proj", "model.layers.0.q_proj", true),
            (r"^(?!.*vision).*q_proj", "vision.layers.0.q_proj", false),
            (r".*(?<!k)_proj", "a.q_proj", true),
            (r".*(?<!k)_proj", "a.k_proj", false),
            (r".*(?<=layers\.)\d+\.q", "layers.12.q", true),
            (r"\bmodel\.layers\.[\d]{1,}\.(?:mlp|attn)\.(?:q|up)", "model.layers.10.mlp.up", true),
            (r"\bmodel\.layers\.[\d]{1,}\.(?:mlp|attn)\.(?:q|up)", "x.model.layers.1.mlp.k", false),
            (r"(?P<n>q|k)_proj\Z", "a.k_proj", true),
            ("[]q]_proj", "a.q_proj", true),
            ("a{,3}b", "x.aab", true),
            ("a{,3}b", "x.aaaab", false),
            (r"[^\W\d]+", "x.ab", true),
        ] {
            assert_eq!(Pattern::new(key).unwrap().matches(module), Ok(expected), "{key} {module}");
        }
    }
}
