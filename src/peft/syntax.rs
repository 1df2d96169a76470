//! The syntax of Python's regular expressions.

/// How deep groups may nest.
const MAX_DEPTH: usize = 32;

/// An expression, or a part of one.
#[derive(Debug, Clone)]
pub(super) enum Node {
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

const ALL: u128 = !0;
const DIGIT: u128 = 0x3ff << b'0';
const SPACE: u128 = 1 << b' ' | 0x1f << b'\t' | 0xf << 0x1c;
const WORD: u128 = DIGIT | 0x3ff_ffff << b'A' | 0x3ff_ffff << b'a' | 1 << b'_';

/// The node of an expression of ASCII, or what is in it that is not understood.
pub(super) fn parse(text: &str) -> Parsed<Node> {
    let mut parser = Parser { rest: text.as_bytes(), depth: 0, names: Vec::new() };
    let node = parser.choice()?;
    match parser.rest {
        [] => Ok(node),
        _ => Err("an unbalanced parenthesis"),
    }
}

struct Parser<'a> {
    rest: &'a [u8],
    depth: usize,
    /// The names of groups so far.
    names: Vec<&'a [u8]>,
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
            self.group_name()?;
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

    /// What follows `(?P<`: a name of Python, once.
    fn group_name(&mut self) -> Parsed<()> {
        let end = self.rest.iter().position(|&byte| byte == b'>');
        let (name, rest) = self.rest.split_at(end.ok_or("a name without an end")?);
        let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        if name.is_empty() || name[0].is_ascii_digit() || !name.iter().all(is_name) {
            return Err("a group whose name is none");
        }
        if self.names.contains(&name) {
            return Err("a name of two groups");
        }
        self.names.push(name);
        self.rest = &rest[1..];
        Ok(())
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
