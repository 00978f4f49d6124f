/*
 * A program that links SPDK and rnbd's static module. The configuration given with -c attaches an
 * RNBD device as bdev "R_m"; the program writes its first blocks, reads them again, compares, and
 * ends with status 0 if they are the same.
 */
#include <spdk/stdinc.h>
#include <spdk/bdev.h>
#include <spdk/env.h>
#include <spdk/event.h>
#include <spdk/log.h>

#define BYTES 65536
#define NAME "R_m"

static struct spdk_bdev_desc *g_desc;
static struct spdk_io_channel *g_channel;
static uint8_t *g_written, *g_read;

static void finish(int status)
{
	if (g_channel) {
		spdk_put_io_channel(g_channel);
	}
	if (g_desc) {
		spdk_bdev_close(g_desc);
	}
	spdk_dma_free(g_written);
	spdk_dma_free(g_read);
	spdk_app_stop(status);
}

static void on_event(enum spdk_bdev_event_type type, struct spdk_bdev *bdev, void *context)
{
	(void)type;
	(void)bdev;
	(void)context;
}

static void on_read(struct spdk_bdev_io *io, bool success, void *context)
{
	(void)context;
	spdk_bdev_free_io(io);
	if (!success) {
		SPDK_ERRLOG("the read failed\n");
		finish(1);
	} else if (memcmp(g_written, g_read, BYTES) != 0) {
		SPDK_ERRLOG("what was read is not what was written\n");
		finish(1);
	} else {
		SPDK_NOTICELOG("what was written was read again\n");
		finish(0);
	}
}

static void on_written(struct spdk_bdev_io *io, bool success, void *context)
{
	(void)context;
	spdk_bdev_free_io(io);
	if (!success || spdk_bdev_read(g_desc, g_channel, g_read, 0, BYTES, on_read, NULL) != 0) {
		SPDK_ERRLOG("the write failed, or there is no reading\n");
		finish(1);
	}
}

static void on_start(void *context)
{
	(void)context;
	if (spdk_bdev_open_ext(NAME, true, on_event, NULL, &g_desc) != 0) {
		SPDK_ERRLOG("there is no bdev " NAME "\n");
		finish(1);
		return;
	}
	g_channel = spdk_bdev_get_io_channel(g_desc);
	g_written = spdk_dma_malloc(BYTES, 4096, NULL);
	g_read = spdk_dma_zmalloc(BYTES, 4096, NULL);
	if (!g_channel || !g_written || !g_read) {
		SPDK_ERRLOG("no channel, or no memory\n");
		finish(1);
		return;
	}
	for (size_t i = 0; i < BYTES; i++) {
		g_written[i] = (uint8_t)(i * 7 + i / 251);
	}
	if (spdk_bdev_write(g_desc, g_channel, g_written, 0, BYTES, on_written, NULL) != 0) {
		SPDK_ERRLOG("there is no writing\n");
		finish(1);
	}
}

int main(int argc, char **argv)
{
	struct spdk_app_opts options = {};
	int status;

	spdk_app_opts_init(&options, sizeof(options));
	options.name = "linked";
	if (spdk_app_parse_args(argc, argv, &options, NULL, NULL, NULL, NULL) !=
	    SPDK_APP_PARSE_ARGS_SUCCESS) {
		return 1;
	}
	status = spdk_app_start(&options, on_start, NULL);
	spdk_app_fini();
	return status;
}
