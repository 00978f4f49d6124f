use rnbd_base::Errno;

/// The errno that an SPDK function returned, negative or zero.
pub(crate) fn check(status: i32) -> Result<(), Errno> {
    if status == 0 {
        Ok(())
    } else {
        Err(Errno::from_raw(status))
    }
}
