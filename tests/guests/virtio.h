/* Virtio devices behind PCI (virtio 1.2, sections 2.7 and 4.1), as honest or hostile drivers have
 * them: nothing here keeps to any rule by itself. */

#ifndef VIRTIO_H
#define VIRTIO_H

#include "guest.h"

#define ECAM 0xe0000000ull

enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8, NEEDS_RESET = 64 };
#define RUNNING (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
#define F_INDIRECT (1ull << 28)
#define F_EVENT_INDEX (1ull << 29)
#define F_VERSION_1 (1ull << 32)
#define F_RING_RESET (1ull << 40)

/* Common configuration. */
enum {
    DEVICE_SELECT = 0, DEVICE_FEATURES = 4, DRIVER_SELECT = 8, DRIVER_FEATURES = 12,
    CONFIG_VECTOR = 16, NUM_QUEUES = 18, STATUS = 20, GENERATION = 21, QUEUE_SELECT = 22,
    QUEUE_SIZE = 24, QUEUE_VECTOR = 26, QUEUE_ENABLE = 28, QUEUE_DESC = 32, QUEUE_DRIVER = 40,
    QUEUE_DEVICE = 48, QUEUE_RESET = 58,
};

#define ENTRIES 16
/* The memory of queue n, of the device that is being driven. */
#define TABLE_OF(n) (0x300000ull + 0x8000 * (n))
#define AVAIL_OF(n) (TABLE_OF(n) + 0x2000)
#define USED_OF(n) (TABLE_OF(n) + 0x4000)

struct device {
    u32 slot, type, queues, msix;
    u64 bar, common, isr, config, notify, table;
    u32 multiplier;
};

static inline u64 pci_at(struct device *device, u32 reg) { return ECAM + (device->slot << 15) + reg; }
static inline u8 status(struct device *device) { return get8(device->common + STATUS); }
static inline void set_status(struct device *device, u8 value) { put8(device->common + STATUS, value); }
static inline void doorbell(struct device *device, u32 queue) { put16(device->notify + device->multiplier * queue, queue); }

static inline void find_parts(struct device *device)
{
    u64 at[6] = {0};
    for (u32 cap = get8(pci_at(device, 0x34)); cap; cap = get8(pci_at(device, cap + 1))) {
        if (get8(pci_at(device, cap)) == 0x11) {
            device->msix = cap;
            device->table = device->bar + (get32(pci_at(device, cap + 4)) & ~7u);
        }
        if (get8(pci_at(device, cap)) != 9) continue;
        u8 kind = get8(pci_at(device, cap + 3));
        if (kind < 6) at[kind] = device->bar + get32(pci_at(device, cap + 8));
        if (kind == 2) device->multiplier = get32(pci_at(device, cap + 16));
    }
    device->common = at[1], device->notify = at[2], device->isr = at[3], device->config = at[4];
}

static inline u32 find_devices(struct device *devices, u32 most)
{
    u32 count = 0;
    for (u32 slot = 0; slot < 32 && count < most; slot++) {
        struct device *device = &devices[count];
        device->slot = slot;
        u32 identity = get32(pci_at(device, 0));
        if ((identity & 0xffff) != 0x1af4) continue;
        device->type = (identity >> 16) - 0x1040;
        device->bar = get32(pci_at(device, 0x10)) & ~0xfu;
        put16(pci_at(device, 4), 6);
        find_parts(device);
        device->queues = get16(device->common + NUM_QUEUES);
        count++;
    }
    return count;
}

static inline u64 offered(struct device *device)
{
    put32(device->common + DEVICE_SELECT, 0);
    u64 low = get32(device->common + DEVICE_FEATURES);
    put32(device->common + DEVICE_SELECT, 1);
    return low | (u64)get32(device->common + DEVICE_FEATURES) << 32;
}

static inline void take_features(struct device *device, u64 features)
{
    put32(device->common + DRIVER_SELECT, 0);
    put32(device->common + DRIVER_FEATURES, features);
    put32(device->common + DRIVER_SELECT, 1);
    put32(device->common + DRIVER_FEATURES, features >> 32);
}

static inline void reset(struct device *device)
{
    set_status(device, 0);
    while (status(device)) asm volatile("pause");
}

static inline void negotiate(struct device *device, u64 features)
{
    reset(device);
    set_status(device, ACKNOWLEDGE);
    set_status(device, ACKNOWLEDGE | DRIVER);
    take_features(device, features);
    set_status(device, ACKNOWLEDGE | DRIVER | FEATURES_OK);
}

static inline void place_queue(struct device *device, u32 queue, u64 table, u64 avail, u64 used)
{
    put16(device->common + QUEUE_SELECT, queue);
    put32(device->common + QUEUE_DESC, table);
    put32(device->common + QUEUE_DESC + 4, table >> 32);
    put64(device->common + QUEUE_DRIVER, avail);
    put64(device->common + QUEUE_DEVICE, used);
}

static inline void set_up_queue(struct device *device, u32 queue)
{
    fill((void *)TABLE_OF(queue), 0, 16 * ENTRIES);
    fill((void *)AVAIL_OF(queue), 0, 6 + 2 * ENTRIES);
    fill((void *)USED_OF(queue), 0, 6 + 8 * ENTRIES);
    place_queue(device, queue, TABLE_OF(queue), AVAIL_OF(queue), USED_OF(queue));
    put16(device->common + QUEUE_SIZE, ENTRIES);
    put16(device->common + QUEUE_ENABLE, 1);
}

/* Up and running, with everything that it offers but the event index. */
static inline void bring_up(struct device *device)
{
    negotiate(device, offered(device) & ~F_EVENT_INDEX);
    for (u32 queue = 0; queue < device->queues; queue++) set_up_queue(device, queue);
    set_status(device, RUNNING);
}

static inline void describe(u32 queue, u32 index, u64 address, u32 length, u16 flags, u16 next)
{
    u64 at = TABLE_OF(queue) + 16 * index;
    put64(at, address);
    put32(at + 8, length);
    put16(at + 12, flags);
    put16(at + 14, next);
}

static inline u16 used_index(u32 queue) { return get16(USED_OF(queue) + 2); }

static inline void offer(u32 queue, u16 head)
{
    u16 index = get16(AVAIL_OF(queue) + 2);
    put16(AVAIL_OF(queue) + 4 + 2 * (index % ENTRIES), head);
    barrier();
    put16(AVAIL_OF(queue) + 2, index + 1);
    barrier();
}

/* Whether the device has used a chain, or has asked for a reset, in the time that it is given. */
static inline int settles(struct device *device, u32 queue, u16 before)
{
    for (u32 waited = 0; waited < 40000; waited++) {
        if (used_index(queue) != before || status(device) & NEEDS_RESET) return 1;
    }
    return 0;
}

#endif
