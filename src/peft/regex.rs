//! Python's regular expressions, as far as they decide which modules match.
//!
//! Only whether a whole text matches is asked, so greedy and lazy repetitions are the same and
//! groups capture nothing. A node of the expression maps a set of positions to the set of positions
//! at which it can end. The cost is bounded by a budget, not by the expression: nothing backtracks.

use super::syntax::{parse, Node};

/// The longest expression that is read.
const MAX_LENGTH: usize = 4096;

/// Positions that one match may visit, summed over the nodes. Real expressions visit some thousands.
const BUDGET: usize = 300_000;

/// The longest text. Module paths are at most as long.
const MAX_TEXT: usize = 1024;

/// A regular expression of Python's `re`, of ASCII, without back-references, flags, atomic groups
/// and possessive repetitions.
#[derive(Debug, Clone)]
pub(super) struct Regex(Node);

/// Why a match could not be decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooCostly;

impl Regex {
    /// The expression of a text; the reason, where its meaning in Python is not certain here.
    pub fn new(text: &str) -> Result<Self, String> {
        if text.len() > MAX_LENGTH {
            return Err(format!("a regular expression of more than {MAX_LENGTH} bytes"));
        }
        if !text.is_ascii() {
            return Err("a regular expression with characters that are not ASCII".into());
        }
        let node = parse(text).map_err(|what| format!("a regular expression with {what}"))?;
        Ok(Regex(node))
    }

    /// Whether the whole text matches (`re.fullmatch`).
    pub fn matches(&self, text: &str) -> Result<bool, TooCostly> {
        self.matches_from(text, [0])
    }

    /// Whether the text matches from one of the positions to its end.
    pub fn matches_from(
        &self,
        text: &str,
        from: impl IntoIterator<Item = usize>,
    ) -> Result<bool, TooCostly> {
        if text.len() > MAX_TEXT {
            return Err(TooCostly);
        }
        let mut start = Positions::default();
        from.into_iter().for_each(|at| start.insert(at));
        let mut matching = Matching { text: text.as_bytes(), budget: BUDGET };
        Ok(matching.ends(&self.0, &start)?.contains(text.len()))
    }
}

/// Positions in a text, of which the last is its end.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Positions([u64; MAX_TEXT / 64 + 1]);

impl Positions {
    fn insert(&mut self, at: usize) {
        self.0[at / 64] |= 1 << (at % 64);
    }

    fn contains(&self, at: usize) -> bool {
        self.0[at / 64] >> (at % 64) & 1 == 1
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|&word| word == 0)
    }

    fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        let bits = |word: u64| (0..64).filter(move |bit| word >> bit & 1 == 1);
        let words = self.0.iter().enumerate().filter(|(_, &word)| word != 0);
        words.flat_map(move |(i, &word)| bits(word).map(move |bit| 64 * i + bit))
    }

    fn filter(&self, keep: impl Fn(usize) -> bool) -> Self {
        let mut kept = Positions::default();
        self.iter().filter(|&at| keep(at)).for_each(|at| kept.insert(at));
        kept
    }

    fn with(mut self, other: &Self) -> Self {
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
        self
    }

    fn without(mut self, other: &Self) -> Self {
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word &= !other);
        self
    }
}

struct Matching<'a> {
    text: &'a [u8],
    budget: usize,
}

impl Matching<'_> {
    /// Where a node can end that begins at one of the positions.
    fn ends(&mut self, node: &Node, from: &Positions) -> Result<Positions, TooCostly> {
        if from.is_empty() {
            return Ok(*from);
        }
        self.budget = self.budget.checked_sub(1 + from.count()).ok_or(TooCostly)?;
        let text = self.text;
        match node {
            Node::Set(mask) => {
                let mut ends = Positions::default();
                let fits = |byte: &u8| byte.is_ascii() && mask >> byte & 1 == 1;
                from.iter()
                    .filter(|&at| text.get(at).is_some_and(fits))
                    .for_each(|at| ends.insert(at + 1));
                Ok(ends)
            }
            Node::Start => Ok(from.filter(|at| at == 0)),
            Node::End => Ok(from.filter(|at| at == text.len())),
            Node::Boundary { word } => {
                let is_word = |at: Option<usize>| {
                    let byte = at.and_then(|at| text.get(at));
                    byte.is_some_and(|&byte| byte.is_ascii_alphanumeric() || byte == b'_')
                };
                // Python: an empty text has no boundary, and \B does not match in it either.
                let boundary = |at: usize| is_word(at.checked_sub(1)) != is_word(Some(at));
                Ok(from.filter(|at| boundary(at) == *word && !text.is_empty()))
            }
            Node::Sequence(nodes) => {
                let mut at = *from;
                for node in nodes {
                    at = self.ends(node, &at)?;
                }
                Ok(at)
            }
            Node::Choice(nodes) => {
                let mut ends = Positions::default();
                for node in nodes {
                    ends = ends.with(&self.ends(node, from)?);
                }
                Ok(ends)
            }
            Node::Repeat { node, min, max } => self.repeated(node, *min, *max, from),
            Node::Look { node, behind, negative } => {
                let mut found = Positions::default();
                for at in from.iter() {
                    let Some(start) = at.checked_sub(behind.unwrap_or(0)) else { continue };
                    let mut one = Positions::default();
                    one.insert(start);
                    let ends = self.ends(node, &one)?;
                    let holds = match behind {
                        Some(_) => ends.contains(at),
                        None => !ends.is_empty(),
                    };
                    if holds {
                        found.insert(at);
                    }
                }
                Ok(if *negative { from.without(&found) } else { found })
            }
        }
    }

    fn repeated(
        &mut self,
        node: &Node,
        min: usize,
        max: usize,
        from: &Positions,
    ) -> Result<Positions, TooCostly> {
        // After as many rounds as there are positions, only empty ones are left: these change nothing.
        let enough = self.text.len() + 1;
        let mut at = *from;
        for _ in 0..min.min(enough) {
            let next = self.ends(node, &at)?;
            if next == at {
                break;
            }
            at = next;
        }
        let (mut all, mut new) = (at, at);
        for _ in 0..max.saturating_sub(min) {
            new = self.ends(node, &new)?.without(&all);
            if new.is_empty() {
                break;
            }
            all = all.with(&new);
        }
        Ok(all)
    }
}
