//! Devices and what they tell without being asked.

use std::ffi::CStr;
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys::{
    ___ibv_query_port, ibv_ack_async_event, ibv_async_event, ibv_close_device, ibv_context,
    ibv_device, ibv_device_attr, ibv_device_cap_flags, ibv_event_type, ibv_free_device_list,
    ibv_get_async_event, ibv_get_device_list, ibv_get_device_name, ibv_gid, ibv_open_device,
    ibv_port_attr, ibv_port_state, ibv_qp, ibv_query_device, ibv_query_gid,
};
use rustix::io::Errno;

use super::{DeviceKey, check_code, check_pointer, last_errno, set_nonblocking};
use crate::host::{Instance, User};

/// An open RDMA device.
pub(crate) struct Device {
    context: NonNull<ibv_context>,
    limits: DeviceLimits,
    /// Gone after the context is closed: then the kernel waits for this program no longer.
    user: User,
}

// SAFETY: libibverbs may be called from any thread; the context is only freed by the last owner.
unsafe impl Send for Device {}
// SAFETY: as for Send; libibverbs locks what its calls share.
unsafe impl Sync for Device {}

/// What a device can do, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceLimits {
    /// Most work requests of one queue.
    pub(crate) queue_wrs: u32,
    /// Most entries of a completion queue.
    pub(crate) cq_entries: u32,
    /// Whether it says that it has memory windows.
    pub(crate) has_windows: bool,
    /// Whether it says that it has windows of type 2.
    pub(crate) has_type_2_windows: bool,
    /// Whether it is the kernel's emulation over an ordinary network interface.
    pub(crate) is_soft_roce: bool,
    ports: u8,
}

/// What soft-RoCE gives as its vendor.
const SOFT_ROCE_VENDOR: u32 = 0x00ff_ffff;

/// The first port of a device that is up.
#[derive(Clone, Copy)]
pub(crate) struct Port {
    pub(super) number: u8,
    pub(super) attr: ibv_port_attr,
    pub(super) gid: ibv_gid,
}

/// What a device told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AsyncEvent {
    /// The device is broken or gone.
    DeviceFatal,
    /// A completion queue was overrun or is broken.
    QueueFatal,
    /// The queue pair of this number stopped.
    QpStopped {
        /// Of the queue pair.
        number: u32,
        /// Whether the peer asked for something that it may not.
        is_violation: bool,
    },
    /// A port came or went, or an address of it changed.
    PortChanged,
    /// Of no interest.
    Other,
}

impl Device {
    /// Opens the device that the user names, for as long as it lives. May take milliseconds.
    ///
    /// # Errors
    /// `ENODEV` if there is no such device, `EACCES` if this process may not use it.
    pub(crate) fn open(user: User) -> Result<Arc<Self>, Errno> {
        let mut count = 0;
        // SAFETY: `count` is a valid place for the result.
        let list = check_pointer(unsafe { ibv_get_device_list(&raw mut count) })?;
        let count = usize::try_from(count).unwrap_or(0);
        let named = (0..count).find_map(|at| {
            // SAFETY: the list has `count` entries.
            let entry = unsafe { list.add(at) };
            // SAFETY: as above; entries are initialised.
            let device = unsafe { entry.read() };
            (name_of(device) == user.instance().name()).then_some(device)
        });
        let opened = match named {
            Some(device) => Self::open_raw(device, user),
            None => Err(Errno::NODEV),
        };
        // SAFETY: the list came from ibv_get_device_list; open devices are counted on their own.
        unsafe { ibv_free_device_list(list.as_ptr()) };
        opened.map(Arc::new)
    }

    fn open_raw(device: *mut ibv_device, user: User) -> Result<Self, Errno> {
        // SAFETY: callers name a device that a list holds.
        let context = check_pointer(unsafe { ibv_open_device(device) })?;
        let mut opened = Self {
            context,
            limits: DeviceLimits::NONE,
            user,
        };
        opened.limits = opened.query()?;
        set_nonblocking(opened.async_fd())?;
        Ok(opened)
    }

    fn query(&self) -> Result<DeviceLimits, Errno> {
        let mut attr = MaybeUninit::<ibv_device_attr>::zeroed();
        // SAFETY: the context is open and `attr` has room for the answer.
        check_code(unsafe { ibv_query_device(self.context.as_ptr(), attr.as_mut_ptr()) })?;
        // SAFETY: zeroed, then filled; every field is an integer.
        let attr = unsafe { attr.assume_init() };
        let has = |flag: ibv_device_cap_flags| attr.device_cap_flags & flag.0 != 0;
        Ok(DeviceLimits {
            queue_wrs: u32::try_from(attr.max_qp_wr).unwrap_or(0),
            cq_entries: u32::try_from(attr.max_cqe).unwrap_or(0),
            has_windows: attr.max_mw > 0 && has(ibv_device_cap_flags::IBV_DEVICE_MEM_WINDOW),
            has_type_2_windows: has(ibv_device_cap_flags::IBV_DEVICE_MEM_WINDOW_TYPE_2A)
                || has(ibv_device_cap_flags::IBV_DEVICE_MEM_WINDOW_TYPE_2B),
            is_soft_roce: attr.vendor_id == SOFT_ROCE_VENDOR,
            ports: attr.phys_port_cnt,
        })
    }

    /// For people.
    pub(crate) fn name(&self) -> &str {
        self.user.instance().name()
    }

    /// Which life of the device it is.
    pub(crate) fn instance(&self) -> &Arc<Instance> {
        self.user.instance()
    }

    /// What it can do.
    pub(crate) fn limits(&self) -> DeviceLimits {
        self.limits
    }

    /// Which device of the host it is.
    pub(crate) fn key(&self) -> DeviceKey {
        // SAFETY: the context is open.
        let device = unsafe { (*self.context.as_ptr()).device };
        DeviceKey::new(device)
    }

    /// Readable when [`Device::next_async_event`] has something.
    pub(crate) fn async_fd(&self) -> RawFd {
        // SAFETY: the context is open.
        unsafe { (*self.context.as_ptr()).async_fd }
    }

    /// The next thing that it has to tell, without waiting.
    pub(crate) fn next_async_event(&self) -> Option<AsyncEvent> {
        let mut event = MaybeUninit::<ibv_async_event>::zeroed();
        // SAFETY: the context is open, its descriptor does not block, `event` has room.
        check_code(unsafe { ibv_get_async_event(self.context.as_ptr(), event.as_mut_ptr()) })
            .ok()?;
        let told = read_async_event(&event);
        // SAFETY: the event was got above and is acknowledged once.
        unsafe { ibv_ack_async_event(event.as_mut_ptr()) };
        Some(told)
    }

    /// A port that packets can go through to itself, for trying things out.
    pub(crate) fn active_port(&self) -> Option<Port> {
        (1..=self.limits.ports).find_map(|number| self.port(number))
    }

    fn port(&self, number: u8) -> Option<Port> {
        let mut attr = MaybeUninit::<ibv_port_attr>::zeroed();
        // SAFETY: the context is open and `attr` has room for the answer.
        let code = unsafe { ___ibv_query_port(self.raw(), number, attr.as_mut_ptr()) };
        check_code(code).ok()?;
        // SAFETY: zeroed, then filled; every field is an integer.
        let attr = unsafe { attr.assume_init() };
        let mut gid = MaybeUninit::<ibv_gid>::zeroed();
        // SAFETY: as above.
        check_code(unsafe { ibv_query_gid(self.raw(), number, 0, gid.as_mut_ptr()) }).ok()?;
        // SAFETY: any bytes are a GID.
        let gid = unsafe { gid.assume_init() };
        (attr.state == ibv_port_state::IBV_PORT_ACTIVE).then_some(Port { number, attr, gid })
    }

    pub(super) fn raw(&self) -> *mut ibv_context {
        self.context.as_ptr()
    }
}

impl DeviceLimits {
    const NONE: Self = Self {
        queue_wrs: 0,
        cq_entries: 0,
        has_windows: false,
        has_type_2_windows: false,
        is_soft_roce: false,
        ports: 0,
    };
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: everything made from the context keeps the device alive, so it is gone.
        let code = unsafe { ibv_close_device(self.context.as_ptr()) };
        if code != 0 {
            log::warn!("verbs: closing {}: {}", self.name(), last_errno());
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.name())
    }
}

fn name_of(device: *mut ibv_device) -> String {
    // SAFETY: callers name a device that a list holds.
    let name = unsafe { ibv_get_device_name(device) };
    // SAFETY: the name is a C string inside the device.
    let name = unsafe { CStr::from_ptr(name) };
    name.to_string_lossy().into_owned()
}

/// Reads the kind as a number, because a newer library may know more kinds than the bindings.
fn read_async_event(event: &MaybeUninit<ibv_async_event>) -> AsyncEvent {
    const DEVICE_FATAL: u32 = ibv_event_type::IBV_EVENT_DEVICE_FATAL as u32;
    const CQ_ERR: u32 = ibv_event_type::IBV_EVENT_CQ_ERR as u32;
    const QP_FATAL: u32 = ibv_event_type::IBV_EVENT_QP_FATAL as u32;
    const QP_REQ_ERR: u32 = ibv_event_type::IBV_EVENT_QP_REQ_ERR as u32;
    const QP_ACCESS_ERR: u32 = ibv_event_type::IBV_EVENT_QP_ACCESS_ERR as u32;
    const PORTS: [u32; 7] = [
        ibv_event_type::IBV_EVENT_PORT_ACTIVE as u32,
        ibv_event_type::IBV_EVENT_PORT_ERR as u32,
        ibv_event_type::IBV_EVENT_LID_CHANGE as u32,
        ibv_event_type::IBV_EVENT_PKEY_CHANGE as u32,
        ibv_event_type::IBV_EVENT_SM_CHANGE as u32,
        ibv_event_type::IBV_EVENT_CLIENT_REREGISTER as u32,
        ibv_event_type::IBV_EVENT_GID_CHANGE as u32,
    ];
    let offset = std::mem::offset_of!(ibv_async_event, event_type);
    // SAFETY: the offset lies within the event.
    let kind = unsafe { event.as_ptr().byte_add(offset) };
    // SAFETY: the event was zeroed and then filled, and the kind is an enum of C's int size.
    let kind = unsafe { kind.cast::<u32>().read() };
    match kind {
        DEVICE_FATAL => AsyncEvent::DeviceFatal,
        CQ_ERR => AsyncEvent::QueueFatal,
        QP_FATAL | QP_REQ_ERR | QP_ACCESS_ERR => {
            // SAFETY: for these kinds the first member names a queue pair; pointers come first
            // in the event.
            let qp = unsafe { event.as_ptr().cast::<*mut ibv_qp>().read() };
            // SAFETY: a queue pair is not freed while an event of it is not acknowledged.
            let number = unsafe { (*qp).qp_num };
            AsyncEvent::QpStopped {
                number,
                is_violation: kind != QP_FATAL,
            }
        }
        kind if PORTS.contains(&kind) => AsyncEvent::PortChanged,
        _ => AsyncEvent::Other,
    }
}
