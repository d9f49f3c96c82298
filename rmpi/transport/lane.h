/* What the parts of the extension share: a lane, and the header of a frame. */

#ifndef RMPI_LANE_H
#define RMPI_LANE_H

#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <sched.h>
#include <structmember.h>
#include <sys/uio.h>
#include <time.h>

#include "ring.h"

/* What `frames.py`, `peers.py` and `incoming.py` say; a test compares them. */
#define VERSION 1
#define HEADER_SIZE 64
#define EAGER_LIMIT (64 << 10)
#define CHUNK (256 << 10)
#define CREDIT (1 << 20)
#define CREDIT_STEP (128 << 10)
#define FRAME_COST 512

enum kind { EAGER = 1, OFFER = 2, GRANT = 3, DATA = 4, CREDITED = 5 };

/* Bytes of metadata that are taken here; arrays of a few dimensions have less than 100. */
#define MOST_METADATA 512

/* Looks at a ring between two looks at other lanes; and at the clock. */
#define GLANCE 16
#define TICK 64

/* Times that a wait gives the processor away, where ranks outnumber cores, before it goes to sleep. */
#define MOST_YIELDS 1000

/* Looks at a ring that one look at a socket, a system call, counts for. */
#define SOCKET_LOOK 4

/* A socket lane's own ring: room for the largest message that ports handle whole, and for what follows it. */
#define PRIVATE_RING (128 << 10)

/* Bytes from which a socket is read straight into where they belong. */
#define STRAIGHT (16 << 10)

typedef struct {
    uint8_t magic[2];
    uint8_t version;
    uint8_t kind;
    uint32_t metadata;
    uint64_t source;
    uint64_t destination;
    uint64_t context;
    int64_t tag;
    uint64_t fingerprint;
    uint64_t message;
    uint64_t length;
} Header; /* as it lies in the ring: little-endian, so only little-endian machines build this */

_Static_assert(sizeof(Header) == HEADER_SIZE, "the table in frames.py");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "frames are little-endian, and are not swapped here");

/* One pair's two rings, or its socket. Raises `WireError` where the peer's positions are garbage. */
typedef struct {
    PyObject_HEAD
    struct ring out, in; /* of a socket lane: there is no `out`, and `in` is private memory */
    size_t out_size, in_size; /* of the mappings */
    uint64_t ident, peer;
    int fd; /* the bell, or the socket itself */
    pid_t owner;
    char socket;
    char asleep;  /* somebody sleeps over the socket: what comes must stay in it, to wake him */
    char hung_up; /* nothing more will come out of the socket */
    char ready;   /* the epoll has said that the socket has something */
    char exactly; /* a payload comes next: it shall not be read together with the header before it */
    char closed;
    char edge;       /* the reader of frames stands between two frames */
    char wants_room; /* something waits to be written */
    char quick;      /* the short cut may be taken */
    long long credit, owed;
    PyObject *pending, *streams; /* what waits to be written */
    uint64_t flights;            /* large messages that ports have begun */
    uint64_t sent, received;     /* bytes that were written to a socket from here, and read from it */
} Lane;

extern PyObject *WireError;
extern PyObject *LaneType, *HubType, *PortType, *FlightType;

/* Some memory of somebody else's. */
typedef struct {
    unsigned char *at;
    uint64_t size;
} Piece;

int lane_ready(void);   /* make the types */
int hub_ready(void);
int port_ready(void);
int flight_ready(void);

PyObject *stirring(PyObject *module, PyObject *list);
PyObject *arm_all(PyObject *module, PyObject *list);
PyObject *spin(PyObject *module, PyObject *args);
PyObject *fly(PyObject *module, PyObject *args);

void ring_bell(const Lane *lane);
bool lane_stirs(Lane *lane);

/* Write all of it, in order; there is room (`lane_room`). */
void lane_write(Lane *lane, const struct iovec *pieces, int count);

/* Have Python write it as soon as the socket takes it. */
void keep_unsent(Lane *lane, const struct iovec *pieces, int count, size_t sent);

/* Write what the socket takes. */
size_t socket_send(Lane *lane, const struct iovec *pieces, int count);

/* Read what the socket has, until `wanted` bytes can be read. How many there are. */
uint64_t socket_fill(Lane *lane, uint64_t wanted);

/* Take what is there, but at most `most` bytes. How many that was. */
uint64_t lane_take(Lane *lane, unsigned char *into, uint64_t most);

/* Whether something that was to be written waits for room. */
bool has_unsent(const Lane *lane);

/* Whether nothing waits before what would be written now. */
bool is_clear(const Lane *lane);

void fill_header(Header *header, const Lane *lane, enum kind kind);

/* Whether a header that was read can be one of this lane's frames at all. */
bool is_plausible(const Lane *lane, const Header *header);

/* Take the credit that a CREDIT frame brings, and the frame. False: it is none that makes sense. */
bool take_credit(Lane *lane, const Header *header);

static inline bool has_in(const Lane *lane) { return lane->in.shared != NULL && !lane->closed; }
static inline bool has_out(const Lane *lane) { return (lane->socket || lane->out.shared != NULL) && !lane->closed; }

/* Whether ports may read. They must not take a sleeper's bytes out of the socket, or nothing would wake him. */
static inline bool is_open(const Lane *lane) { return lane->quick && lane->edge && has_in(lane) && !lane->asleep; }

/* Bytes that may be read; looks for more of them only if fewer than `wanted` are known. */
static inline uint64_t lane_readable(Lane *lane, uint64_t wanted)
{
    uint64_t ready = ring_readable(&lane->in, wanted);
    return ready < wanted && lane->socket ? socket_fill(lane, wanted) : ready;
}

/* Whether `wanted` bytes, at least one, may never come: looking on is of no use. */
static inline bool is_over(const Lane *lane) { return lane->in.corrupt || lane->hung_up; }

/* Bytes that may be written. What a socket does not take, Python keeps, so there is room until then. */
static inline uint64_t lane_room(Lane *lane, uint64_t wanted)
{
    return lane->socket ? UINT64_MAX : ring_room(&lane->out, wanted);
}

static inline void consume(Lane *lane, uint64_t count)
{
    if (ring_consume(&lane->in, count)) {
        ring_bell(lane);
    }
}

static inline void replace(PyObject **slot, PyObject *value)
{
    PyObject *old = *slot;
    *slot = value;
    Py_XDECREF(old);
}

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static inline long long nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

#endif
