//! The parameters of the launch before.

use crate::error::Result;
use std::sync::Mutex;

/// The parameters of an operation's last launch, and what they were made of.
///
/// To encode its descriptors takes a quarter of the time of a launch. Most calls have the operands
/// of the call before, also where outputs are allocated for each: the memory pool gives the same
/// addresses again.
pub(super) struct Last<Key, Params>(Mutex<Option<Box<(Key, Params)>>>);

impl<Key: PartialEq, Params> Last<Key, Params> {
    pub(super) fn new() -> Self {
        Last(Mutex::new(None))
    }

    /// Launches with the parameters for `key`. Another thread that launches at the same time makes
    /// its own.
    pub(super) fn launch(
        &self,
        key: Key,
        make: impl FnOnce() -> Result<Params>,
        launch: impl FnOnce(&Params) -> Result<()>,
    ) -> Result<()> {
        let Ok(mut last) = self.0.try_lock() else { return launch(&make()?) };
        match &mut *last {
            Some(last) if last.0 == key => launch(&last.1),
            Some(last) => {
                **last = (key, make()?);
                launch(&last.1)
            }
            none => launch(&none.insert(Box::new((key, make()?))).1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::cell::Cell;

    #[test]
    fn only_other_operands_make_other_parameters() {
        let (last, made) = (Last::new(), Cell::new(0));
        let launch = |key: u32| {
            let make = || {
                made.set(made.get() + 1);
                Ok(10 * key)
            };
            last.launch(key, make, |params| {
                assert_eq!(*params, 10 * key);
                Ok(())
            })
        };
        [1, 1, 2, 2, 1].into_iter().try_for_each(launch).unwrap();
        assert_eq!(made.get(), 3);
        // What cannot be made leaves the others as they are.
        let failed = last.launch(3, || Err(Error::Rank { r: 0 }), |_| Ok(()));
        assert_eq!(failed, Err(Error::Rank { r: 0 }));
        launch(1).unwrap();
        assert_eq!(made.get(), 3);
        // A launch within a launch, as another thread would.
        last.launch(1, || Ok(0), |_| launch(1)).unwrap();
        assert_eq!(made.get(), 4);
    }
}
