//! Python's regular expressions, as far as they decide which modules match.
//!
//! Only whether a whole text matches is asked, so greedy and lazy repetitions are the same and
//! groups capture nothing. A node of the expression maps a set of positions to the set of positions
//! at which it can end. The cost is bounded by a budget, not by the expression: nothing backtracks.

/// The longest expression that is read, and how deep its groups may nest.
const MAX_LENGTH: usize = 4096;
const MAX_DEPTH: usize = 32;

/// Positions that one match may visit, summed over the nodes. Real expressions visit some thousands.
const BUDGET: usize = 300_000;

/// The longest text. Module paths are at most as long.
const MAX_TEXT: usize = 1024;

/// A regular expression of Python's `re`, of ASCII, without back-references, flags, atomic groups
/// and possessive repetitions.
#[derive(Debug, Clone)]
pub(super) struct Regex(Node);

#[derive(Debug, Clone)]
enum Node {
    /// One of the ASCII characters of the mask.
    Set(u128),
    Start,
    End,
    Boundary {
        word: bool,
    },
    Sequence(Vec<Node>),
    Choice(Vec<Node>),
    Repeat {
        node: Box<Node>,
        min: usize,
        max: usize,
    },
    /// A look-ahead, or a look-behind over a fixed number of characters.
    Look {
        node: Box<Node>,
        behind: Option<usize>,
        negative: bool,
    },
}

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
        let mut parser = Parser { rest: text.as_bytes(), depth: 0 };
        let node = parser.choice().map_err(|what| format!("a regular expression with {what}"))?;
        match parser.rest {
            [] => Ok(Regex(node)),
            _ => Err("a regular expression with an unbalanced parenthesis".into()),
        }
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

const ALL: u128 = !0;
const DIGIT: u128 = 0x3ff << b'0';
const SPACE: u128 = 1 << b' ' | 0x1f << b'\t' | 0xf << 0x1c;
const WORD: u128 = DIGIT | 0x3ff_ffff << b'A' | 0x3ff_ffff << b'a' | 1 << b'_';

struct Parser<'a> {
    rest: &'a [u8],
    depth: usize,
}

type Parsed<T> = Result<T, &'static str>;

impl Parser<'_> {
    fn next(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn take(&mut self, prefix: &str) -> bool {
        let rest = self.rest.strip_prefix(prefix.as_bytes());
        rest.inspect(|rest| self.rest = rest).is_some()
    }

    fn choice(&mut self) -> Parsed<Node> {
        let mut choices = vec![self.sequence()?];
        while self.take("|") {
            choices.push(self.sequence()?);
        }
        Ok(if choices.len() == 1 { choices.remove(0) } else { Node::Choice(choices) })
    }

    fn sequence(&mut self) -> Parsed<Node> {
        let mut nodes = Vec::new();
        while let Some(&first) = self.rest.first() {
            if first == b'|' || first == b')' {
                break;
            }
            self.next();
            let node = match first {
                b'*' | b'+' | b'?' => return Err("a repetition of nothing"),
                b'{' if self.count().is_some() => return Err("a repetition of nothing"),
                b'\\' => self.escape()?,
                b'[' => Node::Set(self.set()?),
                b'(' => self.group()?,
                b'.' => Node::Set(ALL & !(1 << b'\n')),
                b'^' => Node::Start,
                b'$' => Node::End,
                other => Node::Set(1 << other),
            };
            nodes.push(self.repetition(node)?);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::Sequence(nodes) })
    }

    /// The node, or its repetition if one follows.
    fn repetition(&mut self, node: Node) -> Parsed<Node> {
        let Some((min, max)) = self.repeat() else { return Ok(node) };
        if matches!(node, Node::Start | Node::End | Node::Boundary { .. }) {
            return Err("a repetition of nothing");
        }
        if max < min {
            return Err("a repetition from more to fewer");
        }
        if self.take("+") {
            return Err("a possessive repetition");
        }
        self.take("?");
        if self.repeat().is_some() {
            return Err("a repetition of a repetition");
        }
        Ok(Node::Repeat { node: Box::new(node), min, max })
    }

    fn repeat(&mut self) -> Option<(usize, usize)> {
        let rest = self.rest;
        let found = match self.next()? {
            b'*' => Some((0, usize::MAX)),
            b'+' => Some((1, usize::MAX)),
            b'?' => Some((0, 1)),
            b'{' => self.count(),
            _ => None,
        };
        if found.is_none() {
            self.rest = rest;
        }
        found
    }

    /// What follows `{`, if it is a count; else the brace stands for itself.
    fn count(&mut self) -> Option<(usize, usize)> {
        let end = self.rest.iter().position(|&byte| byte == b'}')?;
        let text = std::str::from_utf8(&self.rest[..end]).ok()?;
        let number = |digits: &str, missing| match digits {
            "" => Some(missing),
            _ if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok(),
            _ => None,
        };
        let count = match text.split_once(',') {
            Some((min, max)) => (number(min, 0)?, number(max, usize::MAX)?),
            None if text.is_empty() => return None,
            None => (number(text, 0)?, number(text, 0)?),
        };
        self.rest = &self.rest[end + 1..];
        Some(count)
    }

    fn escape(&mut self) -> Parsed<Node> {
        Ok(match self.next() {
            Some(b'b') => Node::Boundary { word: true },
            Some(b'B') => Node::Boundary { word: false },
            Some(b'A') => Node::Start,
            Some(b'Z') => Node::End,
            escaped => Node::Set(class(escaped)?),
        })
    }

    fn group(&mut self) -> Parsed<Node> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("groups that nest too deep");
        }
        let look = |behind, negative| Some((behind, negative));
        let look = if self.take("?:") {
            None
        } else if self.take("?=") {
            look(false, false)
        } else if self.take("?!") {
            look(false, true)
        } else if self.take("?<=") {
            look(true, false)
        } else if self.take("?<!") {
            look(true, true)
        } else if self.take("?P<") {
            let end = self.rest.iter().position(|&byte| byte == b'>');
            let end = end.ok_or("a name without an end")?;
            self.rest = &self.rest[end + 1..];
            None
        } else if self.rest.first() == Some(&b'?') {
            return Err("a group of flags, or another that is not understood");
        } else {
            None
        };
        let node = self.choice()?;
        if !self.take(")") {
            return Err("an unbalanced parenthesis");
        }
        self.depth -= 1;
        let Some((behind, negative)) = look else { return Ok(Node::Sequence(vec![node])) };
        let behind = match behind {
            true => Some(width(&node).ok_or("a look-behind of no fixed width")?),
            false => None,
        };
        Ok(Node::Look { node: Box::new(node), behind, negative })
    }

    /// What follows `[`.
    fn set(&mut self) -> Parsed<u128> {
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
fn class(escaped: Option<u8>) -> Parsed<u128> {
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

/// How many characters a node takes, if always the same number.
fn width(node: &Node) -> Option<usize> {
    match node {
        Node::Set(_) => Some(1),
        Node::Start | Node::End | Node::Boundary { .. } | Node::Look { .. } => Some(0),
        Node::Sequence(nodes) => {
            nodes.iter().try_fold(0usize, |sum, node| sum.checked_add(width(node)?))
        }
        Node::Choice(nodes) => {
            let first = width(nodes.first()?)?;
            nodes.iter().all(|node| width(node) == Some(first)).then_some(first)
        }
        Node::Repeat { node, min, max } if min == max => width(node)?.checked_mul(*min),
        Node::Repeat { .. } => None,
    }
}
