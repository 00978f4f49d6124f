//! One pinned thread a core: pollers, timers, messages, busy and idle accounting.
