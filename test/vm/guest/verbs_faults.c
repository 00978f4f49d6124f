/* Has verbs calls of a program fail and its devices break, to be loaded with LD_PRELOAD. The folder
 * $RNBD_VERBS_FAULTS says what: while it holds a file called
 *
 *   no-windows   devices have no memory windows;
 *   failing      queue pairs, completion queues, regions, domains and identifiers of connections
 *                cannot be destroyed, and connections not be ended;
 *   fatal-NAME   the device rxe0 or rxe1 tells that it is broken, once: the file goes.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <infiniband/verbs.h>
#include <poll.h>
#include <rdma/rdma_cma.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void place(char *path, size_t size, const char *what, const char *device)
{
	const char *folder = getenv("RNBD_VERBS_FAULTS");

	snprintf(path, size, "%s/%s%s", folder ? folder : "/nonexistent", what, device);
}

static int is_wanted(const char *what)
{
	char path[256];

	place(path, sizeof(path), what, "");
	return access(path, F_OK) == 0;
}

static void *original(const char *name)
{
	void *function = dlsym(RTLD_NEXT, name);

	if (!function) {
		fprintf(stderr, "verbs_faults: there is no %s\n", name);
		abort();
	}
	return function;
}

#undef ibv_query_device
int ibv_query_device(struct ibv_context *context, struct ibv_device_attr *attr)
{
	int (*call)(struct ibv_context *, struct ibv_device_attr *) = original("ibv_query_device");
	int code = call(context, attr);

	if (code == 0 && is_wanted("no-windows")) {
		attr->max_mw = 0;
		attr->device_cap_flags &= ~(IBV_DEVICE_MEM_WINDOW | IBV_DEVICE_MEM_WINDOW_TYPE_2A |
					    IBV_DEVICE_MEM_WINDOW_TYPE_2B);
	}
	return code;
}

int ibv_get_async_event(struct ibv_context *context, struct ibv_async_event *event)
{
	int (*call)(struct ibv_context *, struct ibv_async_event *) =
		original("ibv_get_async_event");
	char path[256];

	place(path, sizeof(path), "fatal-", ibv_get_device_name(context->device));
	if (unlink(path) != 0)
		return call(context, event);
	event->event_type = IBV_EVENT_DEVICE_FATAL;
	return 0;
}

/* Events make a device's descriptor readable. */
int poll(struct pollfd *fds, nfds_t count, int timeout)
{
	int (*call)(struct pollfd *, nfds_t, int) = original("poll");
	int ready = call(fds, count, timeout);

	if (ready == 0 && (is_wanted("fatal-rxe0") || is_wanted("fatal-rxe1")))
		return 1;
	return ready;
}

/* One that returns the error's number, and one that returns -1 and sets errno. */
#define FAILING(name, object)                                                                      \
	int name(object *it)                                                                       \
	{                                                                                          \
		int (*call)(object *) = original(#name);                                           \
                                                                                                   \
		return is_wanted("failing") ? EIO : call(it);                                      \
	}
#define FAILING_WITH_ERRNO(name, object)                                                           \
	int name(object *it)                                                                       \
	{                                                                                          \
		int (*call)(object *) = original(#name);                                           \
                                                                                                   \
		if (!is_wanted("failing"))                                                         \
			return call(it);                                                           \
		errno = EIO;                                                                       \
		return -1;                                                                         \
	}

FAILING(ibv_destroy_qp, struct ibv_qp)
FAILING(ibv_destroy_cq, struct ibv_cq)
FAILING(ibv_dereg_mr, struct ibv_mr)
FAILING(ibv_dealloc_pd, struct ibv_pd)
FAILING_WITH_ERRNO(rdma_destroy_id, struct rdma_cm_id)
FAILING_WITH_ERRNO(rdma_disconnect, struct rdma_cm_id)
