// Shared by the build script and the engine.

/// Whether two parts that have to be of one version are, each named by what it is and its version
/// as fio writes it (`fio-3.33`).
///
/// # Errors
/// A sentence with both versions.
pub(crate) fn check_same(
    (ours, our_version): (&str, &str),
    (theirs, their_version): (&str, &str),
) -> Result<(), String> {
    if our_version == their_version {
        return Ok(());
    }
    Err(format!(
        "{ours} {our_version}, but {theirs} {their_version}: fio's structures differ from version \
         to version, so the two have to be the same"
    ))
}
