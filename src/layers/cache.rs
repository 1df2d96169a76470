//! The operations that a layer has made, by T and dropout.

use crate::error::Result;
use std::sync::{Arc, Mutex, PoisonError};

/// The most operations that are kept: a server's batches come in many sizes, and what is made
/// again costs microseconds.
const MOST: usize = 16;

/// Operations of the sizes that a layer has met, the last used first.
#[derive(Debug)]
pub(super) struct OpCache<Op>(Mutex<Vec<(Key, Arc<Op>)>>);

/// T, and whether there is dropout.
type Key = (usize, bool);

impl<Op> OpCache<Op> {
    pub(super) fn new() -> Self {
        OpCache(Mutex::new(Vec::new()))
    }

    pub(super) fn get(&self, key: Key, make: impl FnOnce() -> Result<Op>) -> Result<Arc<Op>> {
        let mut ops = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(i) = ops.iter().position(|(of, _)| *of == key) {
            ops[..=i].rotate_right(1);
        } else {
            let op = Arc::new(make()?);
            ops.truncate(MOST - 1);
            ops.insert(0, (key, op));
        }
        Ok(ops[0].1.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn the_least_recently_used_goes() {
        let (cache, made) = (OpCache::new(), RefCell::new(Vec::new()));
        let get = |t: usize| {
            let make = || {
                made.borrow_mut().push(t);
                Ok(t)
            };
            assert_eq!(*cache.get((t, false), make).unwrap(), t);
        };
        (0..MOST).for_each(get);
        get(0);
        get(MOST);
        get(0);
        assert_eq!(made.borrow().len(), MOST + 1, "0 was used last but one");
        get(1);
        assert_eq!(made.borrow()[MOST + 1..], [1], "1 had gone");
        assert_eq!(*cache.get((1, true), || Ok(7)).unwrap(), 7, "with dropout");
    }
}
