/* Two threads that talk over two rings, one in each direction, as two processes do over a `Lane`.

       cc -std=c11 -O2 -pthread -I rmpi/transport tests/transport/ring_threads.c -o ring_threads
       ./ring_threads MESSAGES SEED CAPACITY [together]

   Each thread writes MESSAGES messages of random sizes into one ring and reads as many bytes from the other, in random
   pieces, until all is done. Whoever finds nothing to do goes to sleep exactly as a lane does: raise the flags, look
   once more, then wait for the bell; and rings the other's bell only if its flag is up. Every byte is a function of its
   position in the stream, so whatever is lost, doubled, torn or read before it was written is noticed. Nobody sleeps
   longer than `PATIENCE`: that is a lost wake-up. With `together`, nobody writes before it has read as much as it wrote:
   then both go to sleep, and wake each other, with nearly every message.

   Exits with 0 and a line about what happened, or with 1 and what is wrong. */

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "ring.h"

#ifndef PATIENCE
#define PATIENCE 20000 /* milliseconds */
#endif
#define MOST_LOOKS 256
#define LONGEST_PIECE (96u << 10)

struct side {
    const char *name;
    struct ring out, in;
    int bell, peers_bell;
    uint64_t random, messages;
    uint64_t writing; /* bytes left of the message being written */
    uint64_t written, read;
    uint64_t sleeps, rings;
    bool together;
    uint64_t looks; /* before going to sleep: so that the other's news come at that very moment, too */
    unsigned char *scratch;
    const _Atomic uint64_t *total; /* bytes that the other will have written; UINT64_MAX until it knows */
    _Atomic uint64_t my_total;
};

static void fail(const struct side *side, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s: ", side->name);
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    exit(1);
}

/* xorshift64* (Vigna 2016, doi:10.1145/2845077) */
static uint64_t draw(struct side *side, uint64_t below)
{
    side->random ^= side->random >> 12;
    side->random ^= side->random << 25;
    side->random ^= side->random >> 27;
    return (side->random * 0x2545F4914F6CDD1Dull >> 16) % below;
}

static unsigned char byte_at(uint64_t position) { return (unsigned char)(position * 0x9E3779B97F4A7C15ull >> 56); }

static void ring_bell(struct side *side)
{
    uint64_t one = 1;
    side->rings++;
    if (write(side->peers_bell, &one, sizeof one) != sizeof one && errno != EAGAIN) {
        fail(side, "the bell is broken");
    }
}

/* Mostly small, as messages are; now and then around and beyond what the ring holds. */
static uint64_t draw_size(struct side *side)
{
    uint64_t kind = draw(side, 256);
    return kind ? 1 + draw(side, kind < 16 ? 4096 : 128) : 1 + draw(side, side->out.capacity + side->out.capacity / 2);
}

static void pause_sometimes(struct side *side)
{
    uint64_t kind = draw(side, 4096);
    if (kind == 0) {
        struct timespec moment = {0, (long)draw(side, 50000)};
        nanosleep(&moment, NULL);
    } else if (kind < 32) {
        sched_yield();
    }
}

/* Write what there is room for, in steps; like a lane, ask for a sleeper after the first and the last. */
static bool write_some(struct side *side)
{
    if (!side->writing) {
        if (!side->messages || (side->together && side->written > side->read)) {
            return false;
        }
        side->messages--;
        side->writing = side->together ? 64 : draw_size(side);
    }
    uint64_t room = ring_room(&side->out, draw(side, 2) ? 1 : side->writing);
    uint64_t count = room < side->writing ? room : side->writing;
    count = count < LONGEST_PIECE ? count : LONGEST_PIECE;
    for (uint64_t done = 0; done < count;) {
        uint64_t step = 1 + draw(side, count - done), half = draw(side, step + 1);
        for (uint64_t i = 0; i < step; i++) {
            side->scratch[i] = byte_at(side->written + i);
        }
        ring_put(&side->out, half, side->scratch + half, step - half); /* header and payload are put in two */
        ring_put(&side->out, 0, side->scratch, half);
        ring_publish(&side->out, step);
        bool first = done == 0;
        done += step;
        side->written += step;
        if ((first || done == count) && ring_sleeper(&side->out)) {
            ring_bell(side);
        }
    }
    side->writing -= count;
    if (!side->writing && !side->messages) {
        atomic_store(&side->my_total, side->written);
        ring_bell(side); /* the other may have read everything already, and waits to hear that it was */
    }
    return count > 0;
}

/* Look at some of what there is, at some offset, then take some. */
static bool read_some(struct side *side)
{
    uint64_t ready = ring_readable(&side->in, draw(side, 2) ? 1 : 64);
    if (!ready) {
        return false;
    }
    if (ready > side->in.capacity) {
        fail(side, "%llu bytes are readable in a ring of %llu", (unsigned long long)ready,
             (unsigned long long)side->in.capacity);
    }
    uint64_t offset = draw(side, 4) ? 0 : draw(side, ready), count = ready - offset;
    count = count < LONGEST_PIECE ? count : LONGEST_PIECE;
    ring_peek(&side->in, offset, side->scratch, count);
    for (uint64_t i = 0; i < count; i++) {
        if (side->scratch[i] != byte_at(side->read + offset + i)) {
            fail(side, "byte %llu is wrong", (unsigned long long)(side->read + offset + i));
        }
    }
    uint64_t taken = 1 + draw(side, count); /* nothing is taken that was not looked at */
    taken = offset ? (taken < offset ? taken : offset) : taken;
    if (offset) {
        ring_peek(&side->in, 0, side->scratch, taken);
        for (uint64_t i = 0; i < taken; i++) {
            if (side->scratch[i] != byte_at(side->read + i)) {
                fail(side, "byte %llu is wrong", (unsigned long long)(side->read + i));
            }
        }
    }
    side->read += taken;
    if (ring_consume(&side->in, taken)) {
        ring_bell(side);
    }
    return true;
}

static void wait_for_bell(struct side *side)
{
    struct pollfd bell = {side->bell, POLLIN, 0};
    uint64_t count;
    side->sleeps++;
    if (poll(&bell, 1, PATIENCE) != 1) {
        fail(side, "a wake-up was lost: read %llu, written %llu, flags %u %u", (unsigned long long)side->read,
             (unsigned long long)side->written, side->in.shared->reader_sleeps, side->out.shared->writer_sleeps);
    }
    if (read(side->bell, &count, sizeof count) < 0 && errno != EAGAIN) {
        fail(side, "the bell is broken");
    }
}

static bool over(const struct side *side)
{
    return !side->writing && !side->messages && side->read == atomic_load(side->total);
}

static void *work(void *argument)
{
    struct side *side = argument;
    while (!over(side)) {
        bool moved = write_some(side);
        moved = read_some(side) || moved;
        pause_sometimes(side);
        if (side->in.corrupt || side->out.corrupt) {
            fail(side, "the ring is corrupt");
        }
        if (moved) {
            side->looks = draw(side, MOST_LOOKS);
            continue;
        }
        if (side->looks && side->looks--) {
            continue;
        }
        ring_raise_reader(&side->in);
        if (side->writing) {
            ring_raise_writer(&side->out);
        }
        atomic_thread_fence(memory_order_seq_cst);
        bool ready = ring_has_bytes(&side->in) || (side->writing && ring_has_room(&side->out));
        if (!ready && !over(side)) {
            wait_for_bell(side);
        }
    }
    ring_bell(side);
    return NULL;
}

static void *new_memory(uint64_t capacity)
{
    void *memory = aligned_alloc(RING_APART, RING_DATA + capacity);
    if (memory == NULL) {
        abort();
    }
    memset(memory, 0, RING_DATA + capacity);
    return memory;
}

int main(int count, char **args)
{
    if (count != 4 && count != 5) {
        fprintf(stderr, "usage: ring_threads MESSAGES SEED CAPACITY [together]\n");
        return 2;
    }
    uint64_t messages = strtoull(args[1], NULL, 10), seed = strtoull(args[2], NULL, 10);
    uint64_t capacity = strtoull(args[3], NULL, 10);
    void *there = new_memory(capacity), *back = new_memory(capacity);
    int bells[2] = {eventfd(0, EFD_NONBLOCK), eventfd(0, EFD_NONBLOCK)};
    static struct side sides[2] = {{.name = "a"}, {.name = "b"}};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        ring_open(&sides[i].out, i ? back : there, capacity);
        ring_open(&sides[i].in, i ? there : back, capacity);
        sides[i].bell = bells[i];
        sides[i].peers_bell = bells[1 - i];
        sides[i].random = (seed * 2 + (uint64_t)i + 1) * 0x9E3779B97F4A7C15ull;
        sides[i].messages = messages;
        sides[i].together = count == 5;
        sides[i].scratch = malloc(LONGEST_PIECE);
        sides[i].total = &sides[1 - i].my_total;
        atomic_init(&sides[i].my_total, UINT64_MAX);
    }
    for (int i = 0; i < 2; i++) {
        if (sides[i].scratch == NULL || pthread_create(&threads[i], NULL, work, &sides[i])) {
            abort();
        }
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
    }
    printf("%llu messages, %llu bytes, %llu sleeps, %llu rings\n", (unsigned long long)messages * 2,
           (unsigned long long)(sides[0].read + sides[1].read), (unsigned long long)(sides[0].sleeps + sides[1].sleeps),
           (unsigned long long)(sides[0].rings + sides[1].rings));
    free(sides[0].scratch);
    free(sides[1].scratch);
    free(there);
    free(back);
    return 0;
}
