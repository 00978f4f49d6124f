use std::fmt;

use rnbd_base::Errno;

/// Bdevs of another engine in the same program, which enter the registry when they are exported
/// and leave it with their last export.
pub trait BdevSource: fmt::Debug {
    /// Registers the bdev `name`; does nothing if there is none, or if it is there already.
    ///
    /// # Errors
    /// It is there but cannot be used: an errno and a sentence.
    fn provide(&self, name: &str, write: bool) -> Result<(), (Errno, String)>;

    /// No export uses the bdev any more; does nothing if it is not from this source.
    fn release(&self, name: &str);
}
