//! What every fabric must do, as tests that run on any of them.
//!
//! A fabric's own tests implement [`Testbed`] and say `conformance_tests!(TheirTestbed);`, which
//! makes one `#[test]` of each property below. The properties are those that the layers above
//! rely on; what a fabric does beyond them is tested beside it.
//!
//! The [`rig::Rig`] that drives the fabrics checks on the way, in every test, that a connection
//! has exactly one `Closed`, that nothing follows it, and that `poll` never makes the vector of
//! completions grow.

pub mod backpressure;
pub mod connect;
pub mod keys;
pub mod rig;
pub mod teardown;
pub mod transfer;
pub mod windows;

use std::io::Write;

use rnbd_base::Nanos;

use crate::{Addr, Fabric};

/// Makes fabrics of one kind that can reach each other, and lets their time pass.
pub trait Testbed: Sized {
    /// The kind.
    type Fabric: Fabric;

    /// What this host lacks for the test of this name to run, if it lacks something: a device,
    /// or one without a known defect. The test then says so instead of running.
    fn missing(test: &str) -> Option<String> {
        let _ = test;
        None
    }

    /// A fresh network with nothing in it.
    fn new() -> Self;

    /// A fabric on `host`. Several fabrics of one host share its addresses and can hand connection
    /// requests to each other; fabrics of different hosts need not be distinguishable otherwise.
    fn fabric(&mut self, host: u8) -> Self::Fabric;

    /// An address of `host` to listen on; the port may be 0, for one that the fabric picks.
    fn listen_addr(&mut self, host: u8) -> Addr;

    /// An address of a host that is there, with nobody listening.
    fn unused_addr(&mut self) -> Addr;

    /// An address from which no answer ever comes.
    fn silent_addr(&mut self) -> Addr;

    /// Called after a round of polls that found nothing to do: waits a little, or moves the clock
    /// to where something can happen. `deadline` is the earliest that any fabric named. Returns
    /// the time that it is now, later than `now`.
    fn pass_time(&mut self, now: Nanos, deadline: Option<Nanos>) -> Nanos;
}

/// Whether the tests can run here. If not, says so past the test harness, which would keep the
/// output of a test that does not fail to itself.
#[must_use]
pub fn can_run<T: Testbed>(test: &str) -> bool {
    let missing = T::missing(test);
    if let Some(missing) = &missing {
        // Nobody is left to tell if standard error is closed.
        let _outcome = writeln!(std::io::stderr(), "{test}: NOT RUN: {missing}");
    }
    missing.is_none()
}

/// Runs every conformance test on `$testbed`, a type that implements
/// [`Testbed`](crate::conformance::Testbed).
#[macro_export]
macro_rules! conformance_tests {
    ($testbed:ty) => {
        $crate::conformance_tests! { @each $testbed;
            connect::connecting_and_accepting_carry_private_data,
            connect::private_data_of_every_length_arrives,
            connect::a_reject_carries_private_data,
            connect::nobody_listening_refuses,
            connect::no_answer_times_out,
            connect::requests_may_be_answered_in_any_order,
            connect::receives_may_be_posted_before_accepting,
            connect::the_acceptor_may_send_at_once,
            connect::work_before_the_connection_is_up_is_refused,
            connect::a_taken_address_cannot_be_listened_on,
            connect::a_gid_that_no_device_has_is_refused,
            connect::after_unlisten_nobody_listens_and_connections_stay,
            connect::a_domain_that_does_not_exist_is_refused,
            connect::a_request_is_handed_to_another_fabric,
            connect::a_request_whose_peer_left_on_the_way_ends,
            connect::only_pending_requests_can_be_detached,
            transfer::a_send_fills_the_oldest_receive,
            transfer::a_send_carries_its_immediate,
            transfer::a_send_may_be_empty,
            transfer::a_write_with_immediate_tells_when_its_bytes_are_there,
            transfer::a_plain_write_is_in_place_before_what_follows,
            transfer::operations_arrive_in_the_order_posted,
            transfer::two_pieces_arrive_as_one,
            transfer::writes_may_be_empty,
            transfer::large_writes_and_sends_arrive_whole,
            transfer::lent_memory_arrives_whole_and_in_its_place,
            transfer::only_signalled_operations_complete_and_in_order,
            transfer::of_cumulative_completions_the_last_is_reported,
            transfer::both_directions_at_once_do_not_disturb_each_other,
            transfer::many_connections_do_not_mix,
            backpressure::nothing_is_lost_while_the_peer_has_no_receives,
            backpressure::a_stalled_connection_does_not_stall_another,
            backpressure::a_full_completion_vector_does_not_grow_or_lose,
            backpressure::posts_beyond_the_limit_are_refused,
            backpressure::descriptors_announce_a_message,
            keys::a_region_opens_exactly_its_bytes,
            keys::a_key_that_nobody_has_is_refused,
            keys::the_key_of_another_domain_is_refused,
            keys::a_write_beyond_the_end_is_refused,
            keys::a_write_before_the_start_is_refused,
            keys::an_address_that_overflows_is_refused,
            keys::a_region_for_local_use_is_refused,
            keys::a_deregistered_region_is_refused,
            keys::a_send_longer_than_the_receive_is_refused,
            keys::a_violation_closes_one_connection_only,
            keys::connections_of_a_domain_share_its_regions,
            keys::a_closed_domain_serves_what_it_still_has,
            windows::a_window_opens_exactly_what_it_is_bound_to,
            windows::a_bind_takes_effect_before_what_is_posted_after_it,
            windows::an_unbound_window_opens_nothing,
            windows::a_freed_window_opens_nothing,
            windows::an_invalidated_window_opens_nothing,
            windows::a_window_invalidated_at_once_opens_nothing,
            windows::each_bind_has_its_own_key,
            windows::deregistering_closes_the_windows,
            windows::a_domain_window_serves_every_connection,
            windows::a_connection_window_serves_its_connection_only,
            windows::a_send_with_invalidate_closes_the_window,
            windows::a_send_cannot_invalidate_what_is_not_a_window_here,
            windows::a_bind_outside_the_region_is_refused,
            windows::a_freed_window_cannot_be_bound,
            teardown::the_connector_closes_with_work_in_flight,
            teardown::the_acceptor_closes_with_work_in_flight,
            teardown::both_sides_close_at_once,
            teardown::disconnecting_again_changes_nothing,
            teardown::a_connector_that_leaves_ends_the_request,
            teardown::an_acceptor_may_disconnect_instead_of_rejecting,
            teardown::a_dead_handle_reaches_nothing,
            teardown::a_fabric_that_goes_away_closes_its_connections,
            teardown::no_write_lands_after_closed,
        }
    };
    (@each $testbed:ty; $($module:ident::$property:ident,)+) => {
        $(
            #[test]
            fn $property() {
                if $crate::conformance::can_run::<$testbed>(stringify!($property)) {
                    $crate::conformance::$module::$property::<$testbed>();
                }
            }
        )+
    };
}
