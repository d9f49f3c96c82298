/* A ring of bytes in memory that two processes share: one writes, the other reads.

   Positions count bytes since the beginning and never wrap (64 bits last for centuries); a position modulo the
   capacity, a power of two, is a place in the data. The writer alone stores `tail`, the reader alone `head`.

       data between head and tail   belongs to the reader
       everything else              belongs to the writer

   Orderings (C11, 5.1.2.4; nothing here relies on x86):

   - The writer copies, then stores `tail` with release; the reader loads it with acquire, then copies: it sees what
     was copied. The same holds for `head` in the other direction: what the writer overwrites has been read.
   - Sleeping is Dekker's problem: each side stores something of its own and then loads something of the other's.
     Whoever goes to sleep stores its flag, then looks at the position once more; whoever moves a position stores it,
     then looks at the flag. Release and acquire let both loads come before both stores (x86 does that too), and a
     wake-up would be lost. A sequentially consistent fence between the store and the load, on both sides, forbids
     it (C11, 7.17.4.1; Lê, Pop, Cohen, Zappa Nardelli: Correct and efficient work-stealing for weak memory models,
     PPoPP 2013, doi:10.1145/2442516.2442524): at least one of the two sees the other.

   Trust. The peer may be dead, stopped in the middle of a copy, or overwriting everything with garbage. Capacity and
   one's own position are kept in private memory; the peer's position is used only if it lies where it may. Beyond
   that, garbage is bytes that are not our protocol, and whoever reads them finds out.

   No Python in here: the header is also compiled into a test with threads in place of processes. */

#ifndef RMPI_RING_H
#define RMPI_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* Two cache lines: processors fetch lines in pairs. */
#define RING_APART 128
#define RING_DATA 1024

/* Bytes copied between two looks at what the other side has done: both work at the same time. */
#define RING_STEP (32u << 10)

struct ring_shared {
    _Alignas(RING_APART) _Atomic uint64_t tail; /* bytes ever written */
    _Alignas(RING_APART) _Atomic uint64_t head; /* bytes ever read */
    _Alignas(RING_APART) _Atomic uint32_t reader_sleeps;
    _Alignas(RING_APART) _Atomic uint32_t writer_sleeps;
};

_Static_assert(sizeof(struct ring_shared) <= RING_DATA, "the positions lie before the data");

/* One side's view. */
struct ring {
    struct ring_shared *shared; /* NULL: there is none */
    unsigned char *data;
    uint64_t capacity;
    uint64_t mine; /* tail of the writer, head of the reader */
    uint64_t seen; /* the other's position when last looked at */
    bool corrupt;  /* the other's position was where it cannot be */
};

static inline void ring_open(struct ring *ring, void *memory, uint64_t capacity)
{
    ring->shared = memory;
    ring->data = (unsigned char *)memory + RING_DATA;
    ring->capacity = capacity;
    ring->mine = ring->seen = 0;
    ring->corrupt = false;
}

static inline uint64_t ring_between(struct ring *ring, uint64_t ahead, uint64_t behind)
{
    uint64_t distance = ahead - behind;
    if (distance > ring->capacity) {
        ring->corrupt = true;
        return 0;
    }
    return distance;
}

/* ------------------------------------------------------------------------------------------------ the reader's side */

/* Bytes that may be read; looks at the writer's line only if fewer than `wanted` are known. */
static inline uint64_t ring_readable(struct ring *ring, uint64_t wanted)
{
    uint64_t known = ring->seen - ring->mine;
    if (known >= wanted && known <= ring->capacity) {
        return known;
    }
    ring->seen = atomic_load_explicit(&ring->shared->tail, memory_order_acquire);
    return ring_between(ring, ring->seen, ring->mine);
}

/* Copy `count` readable bytes, `offset` beyond the head, without consuming them. */
static inline void ring_peek(const struct ring *ring, uint64_t offset, void *into, uint64_t count)
{
    uint64_t place = (ring->mine + offset) & (ring->capacity - 1);
    uint64_t straight = ring->capacity - place;
    if (count <= straight) {
        memcpy(into, ring->data + place, count);
    } else {
        memcpy(into, ring->data + place, straight);
        memcpy((unsigned char *)into + straight, ring->data, count - straight);
    }
}

/* Give `count` bytes back to the writer. True: it sleeps and waits for room; ring its bell. */
static inline bool ring_consume(struct ring *ring, uint64_t count)
{
    ring->mine += count;
    atomic_store_explicit(&ring->shared->head, ring->mine, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst);
    return atomic_load_explicit(&ring->shared->writer_sleeps, memory_order_relaxed) &&
           atomic_exchange_explicit(&ring->shared->writer_sleeps, 0, memory_order_relaxed);
}

/* The reader is about to sleep, over any number of rings: it raises the flags of all, then comes one sequentially
   consistent fence, and then it must not sleep if any has bytes. */
static inline void ring_raise_reader(struct ring *ring)
{
    atomic_store_explicit(&ring->shared->reader_sleeps, 1, memory_order_relaxed);
}

static inline bool ring_has_bytes(struct ring *ring) { return ring_readable(ring, UINT64_MAX) > 0 || ring->corrupt; }

/* ------------------------------------------------------------------------------------------------ the writer's side */

/* Bytes that may be written; looks at the reader's line only if fewer than `wanted` are known to be free. */
static inline uint64_t ring_room(struct ring *ring, uint64_t wanted)
{
    uint64_t used = ring->mine - ring->seen;
    if (used <= ring->capacity && ring->capacity - used >= wanted) {
        return ring->capacity - used;
    }
    ring->seen = atomic_load_explicit(&ring->shared->head, memory_order_acquire);
    used = ring_between(ring, ring->mine, ring->seen);
    return ring->corrupt ? 0 : ring->capacity - used;
}

/* Copy bytes to `offset` beyond the tail, where there is room, without publishing them. */
static inline void ring_put(const struct ring *ring, uint64_t offset, const void *from, uint64_t count)
{
    uint64_t place = (ring->mine + offset) & (ring->capacity - 1);
    uint64_t straight = ring->capacity - place;
    if (count <= straight) {
        memcpy(ring->data + place, from, count);
    } else {
        memcpy(ring->data + place, from, straight);
        memcpy(ring->data, (const unsigned char *)from + straight, count - straight);
    }
}

/* Let the reader see `count` bytes more; it will look at them by itself, or after `ring_sleeper`. */
static inline void ring_publish(struct ring *ring, uint64_t count)
{
    ring->mine += count;
    atomic_store_explicit(&ring->shared->tail, ring->mine, memory_order_release);
}

/* After publishing. True: the reader sleeps; ring its bell. */
static inline bool ring_sleeper(struct ring *ring)
{
    atomic_thread_fence(memory_order_seq_cst);
    return atomic_load_explicit(&ring->shared->reader_sleeps, memory_order_relaxed) &&
           atomic_exchange_explicit(&ring->shared->reader_sleeps, 0, memory_order_relaxed);
}

/* The writer is about to sleep, because there was no room; as `ring_raise_reader`. */
static inline void ring_raise_writer(struct ring *ring)
{
    atomic_store_explicit(&ring->shared->writer_sleeps, 1, memory_order_relaxed);
}

static inline bool ring_has_room(struct ring *ring) { return ring_room(ring, UINT64_MAX) > 0 || ring->corrupt; }

#endif
