/* Shared-memory lanes for the endpoint, and the short cut of small messages. `_ring.pyi` says what each call does.

   A *lane* is one pair's two rings (`ring.h`) with the bell that wakes the peer. It moves bytes of the same stream of
   frames that a socket would carry; `shm.py` reads and writes it like a socket.

   A *port* is the short cut. A whole eager message that can be sent, or received, at this very moment needs nothing of
   what makes the endpoint large: no operation to wait for, no queue, no place in the matching order but the next. `send`
   and `recv` of a port do just that, in one call, and otherwise change nothing and say so; the caller then takes the
   long way, through the endpoint. So the endpoint's text stays the only truth about frames, matching and credit:

       send   False            it has no lane, no room, no credit, others wait before it, or the value is not plain
       recv   NotImplemented   what comes next on the lane is not the message that was asked for, or nothing comes

   Why that is safe. A port never runs while the endpoint's state is being changed: it holds the GIL throughout and does
   nothing if somebody holds the endpoint's lock. Messages keep their order: a port sends only what goes straight into
   the ring, with nothing waiting before it, and receives only what lies next in the ring at the edge of a frame, if
   neither an earlier arrival nor an earlier receive fits. No Python code runs between looking at the endpoint's state
   and changing the ring; where a call runs some (pickling, making an array), it looks again.

   Nothing is lost. A signal handler may raise after `recv` has returned and before its caller has stored the value; the
   port remembers what it gave (`given`, `landed`) until the caller has it, and who catches the exception puts it back.

   Waiting. `recv` spins for a bounded time, shorter when that did not pay lately, and gives the processor away
   when ranks outnumber cores. It holds the GIL meanwhile, so where there are other threads it hardly waits at all. */

#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <sched.h>
#include <structmember.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "ring.h"

/* What `frames.py` and `endpoint.py` say; a test compares them. */
#define VERSION 1
#define HEADER_SIZE 64
#define KIND_EAGER 1
#define KIND_CREDIT 5
#define EAGER_LIMIT (64 << 10)
#define CREDIT_STEP (128 << 10)
#define FRAME_COST 512
#define CREDIT (1 << 20)

/* Bytes of metadata that the short cut takes; arrays of a few dimensions have less than 100. */
#define MOST_METADATA 512

/* Buffers of one pickled value that travel beside the pickle by the short cut. */
#define MOST_SEGMENTS 8

/* Bytes from which a buffer inside a pickled value travels raw, as `codec.OUT_OF_BAND` says. */
#define OUT_OF_BAND 2048

/* Descriptions of arrays that a port remembers. */
#define DESCRIBED 64
#define MOST_DIMENSIONS 6

/* Messages received by the short cut before the caller must look at everything else (sockets, failures). */
#define LOOK_AROUND 1024

/* Looks at the ring between two looks at the other lanes; and at the clock. */
#define GLANCE 16
#define TICK 64

#define SHORTEST_SPIN 20000LL /* nanoseconds; what a wait costs at least before it is worth going to sleep */

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

static PyObject *WireError;
static PyObject *LaneType;

static void replace(PyObject **slot, PyObject *value)
{
    PyObject *old = *slot;
    *slot = value;
    Py_XDECREF(old);
}

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static long long nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* --------------------------------------------------------------------------------------------------------- Lane */

typedef struct {
    PyObject_HEAD
    struct ring out, in;
    size_t out_size, in_size; /* of the mappings */
    uint64_t ident, peer;
    int bell;
    pid_t owner;
    char closed;
    char edge;       /* the reader of frames stands between two frames */
    char wants_room; /* something waits to be written */
    char quick;      /* the short cut may be taken */
    long long credit, owed;
    PyObject *pending, *streams; /* what waits to be written */
} Lane;

static PyObject *Lane_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    unsigned long long ident, peer;
    int bell;
    long long credit;
    static char *names[] = {"ident", "peer", "bell", "credit", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "KKiL", names, &ident, &peer, &bell, &credit)) {
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Lane *lane = (Lane *)allocate(type, 0);
    if (lane == NULL) {
        return NULL;
    }
    lane->ident = ident;
    lane->peer = peer;
    lane->bell = bell;
    lane->credit = credit;
    lane->owner = getpid();
    lane->edge = 1;
    return (PyObject *)lane;
}

static void Lane_dealloc(Lane *lane)
{
    PyTypeObject *type = Py_TYPE((PyObject *)lane);
    if (lane->owner == getpid()) { /* a fork has no copy of the mappings, and may have others at their place */
        if (lane->out.shared != NULL) {
            munmap(lane->out.shared, lane->out_size);
        }
        if (lane->in.shared != NULL) {
            munmap(lane->in.shared, lane->in_size);
        }
    }
    Py_XDECREF(lane->pending);
    Py_XDECREF(lane->streams);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(lane);
    Py_DECREF(type);
}

static int map_ring(struct ring *ring, size_t *size, int fd, unsigned long long capacity)
{
    if (ring->shared != NULL || capacity < 4096 || capacity > (1ull << 40) || (capacity & (capacity - 1))) {
        PyErr_SetString(PyExc_ValueError, "a ring's capacity is a power of two, and it is mapped once");
        return -1;
    }
    *size = RING_DATA + (size_t)capacity;
    void *memory = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    madvise(memory, *size, MADV_DONTFORK);
    ring_open(ring, memory, capacity);
    return 0;
}

static PyObject *Lane_map_out(Lane *lane, PyObject *args)
{
    int fd;
    unsigned long long capacity;
    if (!PyArg_ParseTuple(args, "iK", &fd, &capacity) || map_ring(&lane->out, &lane->out_size, fd, capacity)) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *Lane_map_in(Lane *lane, PyObject *args)
{
    int fd;
    unsigned long long capacity;
    if (!PyArg_ParseTuple(args, "iK", &fd, &capacity) || map_ring(&lane->in, &lane->in_size, fd, capacity)) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static void ring_bell(const Lane *lane)
{
    ssize_t sent;
    do {
        sent = send(lane->bell, "!", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR); /* no room: it has been rung often enough; gone: its router says so */
}

static bool has_in(const Lane *lane) { return lane->in.shared != NULL && !lane->closed; }
static bool has_out(const Lane *lane) { return lane->out.shared != NULL && !lane->closed; }

/* Whether the lane can move, as far as this side wants it to. */
static bool lane_stirs(Lane *lane)
{
    return (has_in(lane) && (ring_readable(&lane->in, 1) > 0 || lane->in.corrupt)) ||
           (lane->wants_room && has_out(lane) && (ring_room(&lane->out, 1) > 0 || lane->out.corrupt));
}

/* Raise the flags of what this side waits for. Whether it must not sleep. */
static bool lane_arm(Lane *lane)
{
    bool ready = has_in(lane) && ring_arm_reader(&lane->in);
    if (lane->wants_room && has_out(lane)) {
        ready = ring_arm_writer(&lane->out) || ready;
    }
    return ready;
}

static PyObject *torn(const Lane *lane)
{
    return PyErr_Format(WireError, "the shared memory of %llu and %llu is corrupt", (unsigned long long)lane->ident,
                        (unsigned long long)lane->peer);
}

/* Copy in steps, so that the reader starts before we are done; there is room. */
static void write_steps(Lane *lane, const unsigned char *from, uint64_t count)
{
    struct ring *ring = &lane->out;
    bool first = true;
    while (count) {
        uint64_t step = count < RING_STEP + RING_STEP / 2 ? count : RING_STEP;
        ring_put(ring, 0, from, step);
        ring_publish(ring, step);
        from += step;
        count -= step;
        if ((first || !count) && ring_sleeper(ring)) {
            ring_bell(lane);
        }
        first = false;
    }
}

static PyObject *Lane_write(Lane *lane, PyObject *args)
{
    Py_buffer buffer;
    uint64_t room;
    if (!PyArg_ParseTuple(args, "y*", &buffer)) {
        return NULL;
    }
    uint64_t wanted = (uint64_t)buffer.len, written = 0;
    const unsigned char *from = buffer.buf;
    while (has_out(lane) && written < wanted && (room = ring_room(&lane->out, wanted - written)) > 0) {
        uint64_t count = room < wanted - written ? room : wanted - written;
        write_steps(lane, from + written, count);
        written += count;
    }
    PyBuffer_Release(&buffer);
    if (lane->out.corrupt) {
        return torn(lane);
    }
    return PyLong_FromUnsignedLongLong(written);
}

static PyObject *Lane_read_into(Lane *lane, PyObject *args)
{
    Py_buffer buffer;
    uint64_t ready;
    if (!PyArg_ParseTuple(args, "w*", &buffer)) {
        return NULL;
    }
    uint64_t wanted = (uint64_t)buffer.len, got = 0;
    unsigned char *into = buffer.buf;
    while (has_in(lane) && got < wanted && (ready = ring_readable(&lane->in, 1)) > 0) {
        uint64_t count = ready < wanted - got ? ready : wanted - got;
        count = count < RING_STEP ? count : RING_STEP;
        ring_peek(&lane->in, 0, into + got, count);
        got += count;
        if (ring_consume(&lane->in, count)) {
            ring_bell(lane);
        }
    }
    PyBuffer_Release(&buffer);
    if (lane->in.corrupt) {
        return torn(lane);
    }
    return PyLong_FromUnsignedLongLong(got);
}

static PyObject *Lane_stirs(Lane *lane, PyObject *Py_UNUSED(none)) { return PyBool_FromLong(lane_stirs(lane)); }
static PyObject *Lane_arm(Lane *lane, PyObject *Py_UNUSED(none)) { return PyBool_FromLong(lane_arm(lane)); }

static PyObject *Lane_empty(Lane *lane, PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(!has_in(lane) || (ring_readable(&lane->in, 1) == 0 && !lane->in.corrupt));
}

static PyObject *Lane_queues(Lane *lane, PyObject *args)
{
    PyObject *pending, *streams;
    if (!PyArg_ParseTuple(args, "OO", &pending, &streams)) {
        return NULL;
    }
    Py_INCREF(pending);
    Py_INCREF(streams);
    Py_XDECREF(lane->pending);
    Py_XDECREF(lane->streams);
    lane->pending = pending;
    lane->streams = streams;
    Py_RETURN_NONE;
}

static PyObject *Lane_close(Lane *lane, PyObject *Py_UNUSED(none))
{
    lane->closed = 1;
    lane->quick = 0;
    Py_RETURN_NONE;
}

static PyMethodDef lane_methods[] = {
    {"map_out", (PyCFunction)Lane_map_out, METH_VARARGS, NULL},
    {"map_in", (PyCFunction)Lane_map_in, METH_VARARGS, NULL},
    {"write", (PyCFunction)Lane_write, METH_VARARGS, NULL},
    {"read_into", (PyCFunction)Lane_read_into, METH_VARARGS, NULL},
    {"stirs", (PyCFunction)Lane_stirs, METH_NOARGS, NULL},
    {"arm", (PyCFunction)Lane_arm, METH_NOARGS, NULL},
    {"empty", (PyCFunction)Lane_empty, METH_NOARGS, NULL},
    {"queues", (PyCFunction)Lane_queues, METH_VARARGS, NULL},
    {"close", (PyCFunction)Lane_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef lane_members[] = {
    {"peer", T_ULONGLONG, offsetof(Lane, peer), READONLY, NULL},
    {"edge", T_BOOL, offsetof(Lane, edge), 0, NULL},
    {"wants_room", T_BOOL, offsetof(Lane, wants_room), 0, NULL},
    {"quick", T_BOOL, offsetof(Lane, quick), 0, NULL},
    {"closed", T_BOOL, offsetof(Lane, closed), READONLY, NULL},
    {"credit", T_LONGLONG, offsetof(Lane, credit), 0, NULL},
    {"owed", T_LONGLONG, offsetof(Lane, owed), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot lane_slots[] = {
    {Py_tp_new, Lane_new},
    {Py_tp_dealloc, Lane_dealloc},
    {Py_tp_methods, lane_methods},
    {Py_tp_members, lane_members},
    {0, NULL},
};

static PyType_Spec lane_spec = {"rmpi.transport._ring.Lane", sizeof(Lane), 0, Py_TPFLAGS_DEFAULT, lane_slots};

/* -------------------------------------------------------------------------------------------------- many lanes */

/* A new array of the lanes in a list, each held; -1 and an exception if something else is in it. */
static Py_ssize_t hold_lanes(PyObject *list, Lane ***lanes)
{
    Py_ssize_t count = PyList_Size(list);
    if (count < 0 || (*lanes = PyMem_Malloc((size_t)(count ? count : 1) * sizeof(Lane *))) == NULL) {
        return count < 0 ? -1 : (PyErr_NoMemory(), -1);
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PyList_GetItem(list, i);
        if (!Py_IS_TYPE(item, (PyTypeObject *)LaneType)) {
            PyErr_SetString(PyExc_TypeError, "a list of lanes");
            while (i--) {
                Py_DECREF((PyObject *)(*lanes)[i]);
            }
            PyMem_Free(*lanes);
            return -1;
        }
        Py_INCREF(item);
        (*lanes)[i] = (Lane *)item;
    }
    return count;
}

static void let_go(Lane **lanes, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_DECREF((PyObject *)lanes[i]);
    }
    PyMem_Free(lanes);
}

static PyObject *stirring(PyObject *Py_UNUSED(module), PyObject *list)
{
    Lane **lanes;
    Py_ssize_t count = hold_lanes(list, &lanes);
    PyObject *found = count < 0 ? NULL : PyList_New(0);
    for (Py_ssize_t i = 0; found != NULL && i < count; i++) {
        if (lane_stirs(lanes[i]) && PyList_Append(found, (PyObject *)lanes[i])) {
            Py_CLEAR(found);
        }
    }
    if (count >= 0) {
        let_go(lanes, count);
    }
    return found;
}

static PyObject *arm_all(PyObject *Py_UNUSED(module), PyObject *list)
{
    Lane **lanes;
    Py_ssize_t count = hold_lanes(list, &lanes);
    if (count < 0) {
        return NULL;
    }
    bool ready = false;
    for (Py_ssize_t i = 0; i < count; i++) {
        ready = lane_arm(lanes[i]) || ready;
    }
    let_go(lanes, count);
    return PyBool_FromLong(ready);
}

/* Only the shared positions are looked at, because the lanes may be used meanwhile: the GIL is not held. */
static bool looks_ready(const Lane *lane, uint64_t head, uint64_t tail)
{
    return (has_in(lane) && atomic_load_explicit(&lane->in.shared->tail, memory_order_relaxed) != head) ||
           (lane->wants_room && has_out(lane) &&
            atomic_load_explicit(&lane->out.shared->head, memory_order_relaxed) + lane->out.capacity != tail);
}

static PyObject *spin(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *list;
    long long limit;
    int yield;
    Lane **lanes;
    if (!PyArg_ParseTuple(args, "OLp", &list, &limit, &yield)) {
        return NULL;
    }
    Py_ssize_t count = hold_lanes(list, &lanes);
    if (count < 0) {
        return NULL;
    }
    bool ready = false;
    Py_BEGIN_ALLOW_THREADS
    long long until = nanoseconds() + limit;
    for (unsigned long round = 0; !ready; round++) {
        for (Py_ssize_t i = 0; i < count && !ready; i++) {
            ready = looks_ready(lanes[i], lanes[i]->in.mine, lanes[i]->out.mine);
        }
        if (ready || (round % GLANCE == GLANCE - 1 && nanoseconds() >= until)) {
            break;
        }
        if (yield) {
            sched_yield();
        } else {
            relax();
        }
    }
    Py_END_ALLOW_THREADS
    let_go(lanes, count);
    return PyBool_FromLong(ready);
}

/* --------------------------------------------------------------------------------------------------------- Port */

typedef struct {
    PyObject *dtype; /* held, so that nobody else gets its address */
    PyObject *metadata;
    int dimensions;
    char order;
    Py_ssize_t shape[MOST_DIMENSIONS];
} Described;

typedef struct {
    PyObject_HEAD
    uint64_t ident, context;
    Py_ssize_t size;
    Lane **lanes; /* by rank; NULL where there is none (yet) */
    uint64_t *members;
    PyObject *member_objects;
    PyObject *arrivals, *receives, *broken; /* the endpoint's tables */
    PyObject *locked, *threads;             /* whether its lock is held; how many other threads there are */
    PyObject *array_type, *describe, *new_array, *dumps, *loads;
    PyObject *dumps_names, *keep;
    PyObject *raw; /* buffers of the value being pickled */
    PyObject *out_of_band;
    Described described[DESCRIBED];
    long long most_spin, spin; /* nanoseconds */
    char yields;
    unsigned since; /* messages received since the caller looked around */
    Py_ssize_t turn; /* where a receive from anybody begins to look */
    /* what was received last: */
    long long source, tag, length;
    PyObject *given; /* the value, or a list of a pickle's parts; NULL or None: none that could be lost */
    char landed;     /* it is in the caller's array */
    unsigned long thread;
} Port;

/* A value on its way out. */
typedef struct {
    unsigned char small[16];
    const void *metadata;
    Py_ssize_t metadata_size;
    struct {
        const void *at;
        uint64_t size;
    } segments[MOST_SEGMENTS + 1];
    int count;
    uint64_t length;
    Py_buffer views[MOST_SEGMENTS];
    int held;
    PyObject *kept;
    uint64_t sizes[MOST_SEGMENTS + 2]; /* the metadata of a pickle, after its first byte */
} Encoded;

enum { NO = 0, YES = 1, FAILED = -1 };

/* Who asks for what may follow an exception that only means: not by the short cut. */
static int decline(void)
{
    PyErr_Clear();
    return NO;
}

static void release(Encoded *value)
{
    while (value->held) {
        PyBuffer_Release(&value->views[--value->held]);
    }
    Py_CLEAR(value->kept);
}

static size_t slot_of(const PyObject *dtype, const Py_buffer *view)
{
    size_t mixed = (size_t)dtype >> 4;
    for (int i = 0; i < view->ndim; i++) {
        mixed = mixed * 31 + (size_t)view->shape[i];
    }
    return (mixed ^ mixed >> 7) % DESCRIBED;
}

static bool is_described(const Described *entry, const PyObject *dtype, const Py_buffer *view, char order)
{
    return entry->dtype == dtype && entry->dimensions == view->ndim && entry->order == order &&
           memcmp(entry->shape, view->shape, (size_t)view->ndim * sizeof(Py_ssize_t)) == 0;
}

/* The metadata of an array, borrowed; NULL without an exception if it is none for the short cut. Runs Python code only
   for what it has not seen lately. */
static PyObject *metadata_of(Port *port, PyObject *array, const Py_buffer *view)
{
    char order = PyBuffer_IsContiguous(view, 'C') ? 'C' : PyBuffer_IsContiguous(view, 'F') ? 'F' : 0;
    if (!order || view->ndim > MOST_DIMENSIONS) {
        return NULL;
    }
    PyObject *dtype = PyObject_GetAttrString(array, "dtype");
    if (dtype == NULL) {
        return NULL;
    }
    Described *entry = &port->described[slot_of(dtype, view)];
    if (is_described(entry, dtype, view, order)) {
        Py_DECREF(dtype);
        return entry->metadata;
    }
    PyObject *metadata = PyObject_CallFunctionObjArgs(port->describe, array, NULL);
    if (metadata == NULL || !PyBytes_CheckExact(metadata) || PyBytes_Size(metadata) > MOST_METADATA) {
        Py_XDECREF(metadata);
        Py_DECREF(dtype);
        return NULL;
    }
    replace(&entry->dtype, dtype);
    replace(&entry->metadata, metadata);
    entry->dimensions = view->ndim;
    entry->order = order;
    memcpy(entry->shape, view->shape, (size_t)view->ndim * sizeof(Py_ssize_t));
    return metadata;
}

static int encode_array(Port *port, PyObject *array, Encoded *value)
{
    Py_buffer *view = &value->views[0];
    if (PyObject_GetBuffer(array, view, PyBUF_STRIDED_RO)) {
        return decline(); /* such as a datetime64 */
    }
    value->held = 1;
    if (view->len > EAGER_LIMIT) {
        return NO;
    }
    PyObject *metadata = metadata_of(port, array, view);
    if (metadata == NULL) {
        return PyErr_Occurred() ? FAILED : NO;
    }
    Py_INCREF(metadata);
    value->kept = metadata;
    value->metadata_size = PyBytes_Size(metadata);
    value->metadata = PyBytes_AsString(metadata);
    value->segments[0].at = view->buf;
    value->segments[0].size = value->length = (uint64_t)view->len;
    value->count = 1;
    return YES;
}

/* Called by pickle for each buffer: true keeps it inside the pickle. */
static PyObject *out_of_band(PyObject *self, PyObject *buffer)
{
    Port *port = (Port *)self;
    PyObject *raw = PyObject_CallMethod(buffer, "raw", NULL);
    Py_buffer view;
    if (raw == NULL || PyObject_GetBuffer(raw, &view, PyBUF_SIMPLE)) {
        Py_XDECREF(raw);
        return NULL;
    }
    bool inside = view.len < OUT_OF_BAND || port->raw == NULL || PyList_Size(port->raw) >= MOST_SEGMENTS - 1;
    PyBuffer_Release(&view);
    int failed = inside ? 0 : PyList_Append(port->raw, raw);
    Py_DECREF(raw);
    return failed ? NULL : PyBool_FromLong(inside);
}

static PyMethodDef out_of_band_def = {"out_of_band", out_of_band, METH_O, NULL};

static PyObject *pickled(Port *port, PyObject *object, PyObject *raw)
{
    PyObject *outer = port->raw; /* what is pickled may send something while it is */
    port->raw = raw;
    PyObject *args = PyTuple_Pack(1, object);
    PyObject *stream = args == NULL ? NULL : PyObject_Call(port->dumps, args, port->dumps_names);
    Py_XDECREF(args);
    port->raw = outer;
    return stream;
}

static int add_segment(Encoded *value, PyObject *buffer)
{
    Py_buffer *view = &value->views[value->held];
    if (value->held >= MOST_SEGMENTS || PyObject_GetBuffer(buffer, view, PyBUF_SIMPLE)) {
        return decline();
    }
    value->held++;
    value->segments[value->count].at = view->buf;
    value->segments[value->count].size = (uint64_t)view->len;
    value->count++;
    value->sizes[value->count] = (uint64_t)view->len;
    value->length += (uint64_t)view->len;
    return YES;
}

static int encode_object(Port *port, PyObject *object, Encoded *value)
{
    PyObject *raw = PyList_New(0);
    PyObject *stream = raw == NULL ? NULL : pickled(port, object, raw);
    if (stream == NULL) {
        Py_XDECREF(raw);
        return FAILED;
    }
    int result = add_segment(value, stream);
    for (Py_ssize_t i = 0; result == YES && i < PyList_Size(raw); i++) {
        result = add_segment(value, PyList_GetItem(raw, i));
    }
    value->kept = PyTuple_Pack(2, stream, raw);
    Py_DECREF(stream);
    Py_DECREF(raw);
    if (value->kept == NULL) {
        return FAILED;
    }
    ((unsigned char *)value->sizes)[7] = 'p';
    value->metadata = (unsigned char *)value->sizes + 7;
    value->metadata_size = 1 + 8 * value->count;
    return result == YES && value->length <= EAGER_LIMIT ? YES : result == FAILED ? FAILED : NO;
}

static int encode_plain(Encoded *value, char code, const void *at, Py_ssize_t size, bool inside)
{
    value->small[0] = (unsigned char)code;
    value->metadata = value->small;
    value->metadata_size = 1;
    if (inside) {
        memcpy(value->small + 1, at, (size_t)size);
        value->metadata_size += size;
    } else if (size) {
        value->segments[0].at = at;
        value->segments[0].size = value->length = (uint64_t)size;
        value->count = 1;
    }
    return value->length <= EAGER_LIMIT ? YES : NO;
}

static int encode(Port *port, PyObject *object, Encoded *value)
{
    value->count = value->held = 0;
    value->length = 0;
    value->kept = NULL;
    PyTypeObject *type = Py_TYPE(object);
    if ((PyObject *)type == port->array_type) {
        return encode_array(port, object, value);
    }
    if (type == &PyLong_Type) {
        int overflow;
        long long number = PyLong_AsLongLongAndOverflow(object, &overflow);
        return overflow ? NO : encode_plain(value, 'i', &number, sizeof number, true);
    }
    if (type == &PyFloat_Type) {
        double number = PyFloat_AsDouble(object);
        return encode_plain(value, 'f', &number, sizeof number, true);
    }
    if (object == Py_None || type == &PyBool_Type) {
        return encode_plain(value, object == Py_None ? 'N' : object == Py_True ? 'T' : 'F', NULL, 0, true);
    }
    if (type == &PyUnicode_Type) {
        Py_ssize_t size;
        const char *text = PyUnicode_AsUTF8AndSize(object, &size);
        return text == NULL ? decline() : encode_plain(value, 's', text, size, false);
    }
    if (type == &PyBytes_Type) {
        return encode_plain(value, 'b', PyBytes_AsString(object), PyBytes_Size(object), false);
    }
    return encode_object(port, object, value);
}

/* ------------------------------------------------------------------------------------------- the short way out */

/* Whether nobody is changing the endpoint's state, and nothing of it is broken. */
static bool undisturbed(const Port *port)
{
    if (PyDict_Size(port->broken) != 0) {
        return false;
    }
    PyObject *locked = PyObject_CallNoArgs(port->locked);
    Py_XDECREF(locked);
    return locked == Py_False || (PyErr_Clear(), false);
}

/* Whether nothing waits before what would be written now. */
static bool is_clear(const Lane *lane)
{
    return lane->quick && !lane->wants_room && PyObject_Size(lane->pending) == 0 && PyObject_Size(lane->streams) == 0;
}

static void fill_header(Header *header, const Port *port, const Lane *lane, uint8_t kind)
{
    memset(header, 0, sizeof *header);
    memcpy(header->magic, "rm", 2);
    header->version = VERSION;
    header->kind = kind;
    header->source = port->ident;
    header->destination = lane->peer;
}

/* Header, metadata and all segments: there is room. Large ones are published on the way. */
static void write_frame(Lane *lane, const Header *header, const Encoded *value)
{
    struct ring *ring = &lane->out;
    uint64_t filled = HEADER_SIZE + header->metadata;
    ring_put(ring, 0, header, HEADER_SIZE);
    ring_put(ring, HEADER_SIZE, value->metadata, header->metadata);
    if (header->length <= RING_STEP) {
        for (int i = 0; i < value->count; i++) {
            ring_put(ring, filled, value->segments[i].at, value->segments[i].size);
            filled += value->segments[i].size;
        }
        ring_publish(ring, filled);
        if (ring_sleeper(ring)) {
            ring_bell(lane);
        }
        return;
    }
    ring_publish(ring, filled);
    for (int i = 0; i < value->count; i++) {
        write_steps(lane, value->segments[i].at, value->segments[i].size);
    }
}

static int post_frame(Port *port, Lane *lane, int64_t tag, uint64_t fingerprint, const Encoded *value)
{
    uint64_t size = HEADER_SIZE + (uint64_t)value->metadata_size + value->length;
    long long cost = (long long)value->length + FRAME_COST;
    if (!undisturbed(port) || !is_clear(lane) || lane->credit < cost || ring_room(&lane->out, size) < size) {
        return NO;
    }
    Header header;
    fill_header(&header, port, lane, KIND_EAGER);
    header.metadata = (uint32_t)value->metadata_size;
    header.context = port->context;
    header.tag = tag;
    header.fingerprint = fingerprint;
    header.length = value->length;
    write_frame(lane, &header, value);
    lane->credit -= cost;
    return YES;
}

/* An int argument that surely fits; anything else is for the long way to judge. */
static bool plain_number(PyObject *object, long long *number)
{
    if (Py_TYPE(object) != &PyLong_Type) {
        return false;
    }
    int overflow;
    *number = PyLong_AsLongLongAndOverflow(object, &overflow);
    return !overflow;
}

static Lane *lane_to(const Port *port, long long rank)
{
    return rank >= 0 && rank < port->size ? port->lanes[rank] : NULL;
}

static bool plain_fingerprint(PyObject *const *args, Py_ssize_t count, Py_ssize_t at, uint64_t *fingerprint)
{
    *fingerprint = 0;
    if (count <= at) {
        return true;
    }
    *fingerprint = PyLong_AsUnsignedLongLong(args[at]);
    return !PyErr_Occurred() || decline();
}

static PyObject *Port_send(Port *port, PyObject *const *args, Py_ssize_t count)
{
    long long rank, tag;
    uint64_t fingerprint;
    if (count < 3) {
        PyErr_SetString(PyExc_TypeError, "send(value, rank, tag, fingerprint=0)");
        return NULL;
    }
    if (!plain_number(args[1], &rank) || !plain_number(args[2], &tag) || tag < 0 ||
        !plain_fingerprint(args, count, 3, &fingerprint)) {
        Py_RETURN_FALSE;
    }
    Lane *lane = lane_to(port, rank);
    if (lane == NULL || !lane->quick) {
        Py_RETURN_FALSE;
    }
    Encoded value;
    Py_INCREF((PyObject *)lane); /* what pickles may do anything */
    int result = encode(port, args[0], &value);
    if (result == YES) {
        result = post_frame(port, lane, tag, fingerprint, &value);
    }
    release(&value);
    Py_DECREF((PyObject *)lane);
    return result == FAILED ? NULL : PyBool_FromLong(result);
}

/* -------------------------------------------------------------------------------------------- the short way in */

/* What was asked for, and where it shall go. */
typedef struct {
    long long tag; /* -1: any */
    uint64_t fingerprint;
    PyObject *out; /* NULL: a new value */
    Py_buffer view;
    PyObject *metadata; /* that fits `out` */
} Wanted;

static int prepare_out(Port *port, PyObject *out, Wanted *wanted)
{
    wanted->out = NULL;
    wanted->metadata = NULL;
    if (out == NULL || out == Py_None) {
        return YES;
    }
    if ((PyObject *)Py_TYPE(out) != port->array_type) {
        return NO;
    }
    if (PyObject_GetBuffer(out, &wanted->view, PyBUF_STRIDED)) { /* writable; if it is not, the long way says so */
        return decline();
    }
    PyObject *metadata = wanted->view.len > EAGER_LIMIT ? NULL : metadata_of(port, out, &wanted->view);
    if (metadata == NULL) {
        PyBuffer_Release(&wanted->view);
        return PyErr_Occurred() ? FAILED : NO;
    }
    Py_INCREF(metadata);
    wanted->metadata = metadata;
    wanted->out = out;
    return YES;
}

static void release_out(Wanted *wanted)
{
    if (wanted->out != NULL) {
        PyBuffer_Release(&wanted->view);
        Py_DECREF(wanted->metadata);
    }
}

/* Whether no earlier arrival, and no earlier receive, has to do with this one. */
static bool is_next(const Port *port, long long rank, long long tag)
{
    if (PyDict_Size(port->receives) != 0) {
        return false;
    }
    if (PyDict_Size(port->arrivals) == 0) {
        return true;
    }
    if (rank < 0 || tag < 0) {
        return false;
    }
    PyObject *number = PyLong_FromLongLong(tag), *member = PyTuple_GetItem(port->member_objects, rank);
    PyObject *key = number == NULL || member == NULL ? NULL : PyTuple_Pack(2, member, number);
    int found = key == NULL ? -1 : PyDict_Contains(port->arrivals, key);
    Py_XDECREF(number);
    Py_XDECREF(key);
    if (found < 0) {
        PyErr_Clear();
    }
    return found == 0;
}

/* Whether any other lane has something to do, which only the long way does. */
static bool others_stir(const Port *port, const Lane *awaited)
{
    for (Py_ssize_t rank = 0; rank < port->size; rank++) {
        Lane *lane = port->lanes[rank];
        if (lane != NULL && lane != awaited && lane_stirs(lane)) {
            return true;
        }
    }
    return awaited != NULL && awaited->wants_room;
}

/* How long a wait may last. Other threads cannot run meanwhile. */
static long long patience(const Port *port)
{
    PyObject *answer = PyObject_CallNoArgs(port->threads);
    long long threads = answer == NULL ? 1 : PyLong_AsLongLong(answer);
    Py_XDECREF(answer);
    PyErr_Clear();
    return threads == 0 || port->spin < SHORTEST_SPIN ? port->spin : SHORTEST_SPIN;
}

typedef struct {
    unsigned long looks;
    long long until;
} Wait;

/* One more look was in vain. False: enough. */
static bool go_on(Port *port, const Lane *awaited, Wait *wait)
{
    if (port->most_spin == 0) {
        return false;
    }
    relax();
    wait->looks++;
    if (wait->looks % GLANCE == 0 && others_stir(port, awaited)) {
        return false;
    }
    if (wait->looks % TICK != 0) {
        return true;
    }
    if (port->yields) {
        sched_yield();
    }
    long long now = nanoseconds();
    if (!wait->until) {
        wait->until = now + patience(port);
    }
    if (now < wait->until) {
        return true;
    }
    port->spin = port->spin / 2 > SHORTEST_SPIN ? port->spin / 2 : SHORTEST_SPIN;
    return false;
}

static int await(Port *port, Lane *lane, uint64_t count)
{
    Wait wait = {0, 0};
    while (ring_readable(&lane->in, count) < count) {
        if (lane->in.corrupt || !go_on(port, lane, &wait)) {
            return NO;
        }
    }
    if (wait.until) {
        port->spin = port->most_spin; /* it paid */
    }
    return YES;
}

/* The next frame that is not a CREDIT. YES: its header is there, and says what can be. */
static int next_header(Port *port, Lane *lane, Header *header)
{
    for (;;) {
        if (!await(port, lane, HEADER_SIZE)) {
            return NO;
        }
        ring_peek(&lane->in, 0, header, HEADER_SIZE);
        if (memcmp(header->magic, "rm", 2) || header->version != VERSION || header->source != lane->peer ||
            header->destination != port->ident) {
            return NO;
        }
        if (header->kind != KIND_CREDIT) {
            return YES;
        }
        if (header->metadata || header->length || header->message > CREDIT) {
            return NO;
        }
        lane->credit += (long long)header->message;
        lane->credit = lane->credit < CREDIT ? lane->credit : CREDIT;
        if (ring_consume(&lane->in, HEADER_SIZE)) {
            ring_bell(lane);
        }
    }
}

static bool is_wanted(const Port *port, const Lane *lane, const Header *header, const Wanted *wanted)
{
    return header->kind == KIND_EAGER && header->context == port->context && header->message == 0 &&
           (wanted->tag < 0 ? header->tag >= 0 : header->tag == wanted->tag) &&
           header->fingerprint == wanted->fingerprint && header->metadata && header->metadata <= MOST_METADATA &&
           header->length <= EAGER_LIMIT && HEADER_SIZE + header->metadata + header->length <= lane->in.capacity;
}

/* The payload into the caller's array, as it comes. */
static int fill_out(Port *port, Lane *lane, const Header *header, const Wanted *wanted, const char *metadata)
{
    Py_ssize_t expected = PyBytes_Size(wanted->metadata);
    if ((Py_ssize_t)header->metadata != expected || (uint64_t)wanted->view.len != header->length ||
        memcmp(metadata, PyBytes_AsString(wanted->metadata), (size_t)expected)) {
        return NO;
    }
    uint64_t start = HEADER_SIZE + header->metadata, done = 0;
    while (done < header->length) {
        uint64_t left = header->length - done, step = left < RING_STEP ? left : RING_STEP;
        if (!await(port, lane, start + done + step)) {
            return NO;
        }
        ring_peek(&lane->in, start + done, (unsigned char *)wanted->view.buf + done, step);
        done += step;
    }
    return YES;
}

static PyObject *new_array(Port *port, Lane *lane, const Header *header, const char *metadata)
{
    PyObject *described = PyBytes_FromStringAndSize(metadata, header->metadata);
    PyObject *array = described == NULL ? NULL : PyObject_CallFunctionObjArgs(port->new_array, described, NULL);
    Py_XDECREF(described);
    if (array == NULL || array == Py_None) {
        return array;
    }
    Py_buffer view;
    if (PyObject_GetBuffer(array, &view, PyBUF_STRIDED)) {
        Py_DECREF(array);
        PyErr_Clear();
        return Py_NewRef(Py_None);
    }
    bool fits = (uint64_t)view.len == header->length;
    if (fits) {
        ring_peek(&lane->in, HEADER_SIZE + header->metadata, view.buf, header->length);
    }
    PyBuffer_Release(&view);
    if (!fits) {
        Py_DECREF(array);
        return Py_NewRef(Py_None);
    }
    return array;
}

/* A pickle and its buffers, copied: a pair for `unpickle`. */
static PyObject *new_pickle(const Lane *lane, const Header *header, const char *metadata)
{
    uint64_t sizes[MOST_SEGMENTS + 1], sum = 0, count = (header->metadata - 1) / 8;
    if (header->metadata % 8 != 1 || count < 1 || count > MOST_SEGMENTS) {
        return Py_NewRef(Py_None);
    }
    memcpy(sizes, metadata + 1, count * 8);
    for (uint64_t i = 0; i < count; i++) {
        if (sizes[i] > header->length || (sum += sizes[i]) > header->length) {
            return Py_NewRef(Py_None);
        }
    }
    if (sum != header->length) {
        return Py_NewRef(Py_None);
    }
    uint64_t at = HEADER_SIZE + header->metadata;
    PyObject *pair = PyList_New(0);
    for (uint64_t i = 0; pair != NULL && i < count; i++) {
        PyObject *part = i ? PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)sizes[i])
                           : PyBytes_FromStringAndSize(NULL, (Py_ssize_t)sizes[i]);
        if (part == NULL || PyList_Append(pair, part)) {
            Py_XDECREF(part);
            Py_CLEAR(pair);
            break;
        }
        ring_peek(&lane->in, at, i ? PyByteArray_AsString(part) : PyBytes_AsString(part), sizes[i]);
        at += sizes[i];
        Py_DECREF(part);
    }
    return pair;
}

static PyObject *new_bytes(const Lane *lane, uint64_t offset, uint64_t size)
{
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (bytes != NULL) {
        ring_peek(&lane->in, offset, PyBytes_AsString(bytes), size);
    }
    return bytes;
}

static PyObject *new_text(const Lane *lane, uint64_t offset, uint64_t size)
{
    PyObject *bytes = new_bytes(lane, offset, size);
    PyObject *text = bytes == NULL ? NULL
                                   : PyUnicode_DecodeUTF8(PyBytes_AsString(bytes), (Py_ssize_t)size, "surrogatepass");
    if (bytes != NULL && text == NULL) {
        PyErr_Clear();
        text = Py_NewRef(Py_None); /* not UTF-8: the long way says what that means */
    }
    Py_XDECREF(bytes);
    return text;
}

/* The value of a message that is there as a whole; of a pickle, its parts. None: not by the short cut. */
static PyObject *new_value(Port *port, Lane *lane, const Header *header, const char *metadata)
{
    if (metadata[0] == 'a') {
        return new_array(port, lane, header, metadata);
    }
    if (metadata[0] == 'p') {
        return new_pickle(lane, header, metadata);
    }
    if (metadata[0] == 's' && header->metadata == 1) {
        return new_text(lane, HEADER_SIZE + 1, header->length);
    }
    if (metadata[0] == 'b' && header->metadata == 1) {
        return new_bytes(lane, HEADER_SIZE + 1, header->length);
    }
    return Py_NewRef(Py_None);
}

/* Values that lie in the metadata; NULL without an exception: it is none of them. */
static PyObject *small_value(const Header *header, const char *metadata)
{
    long long integer;
    double fraction;
    if (header->length) {
        return NULL;
    }
    if (header->metadata == 9 && metadata[0] == 'i') {
        memcpy(&integer, metadata + 1, 8);
        return PyLong_FromLongLong(integer);
    }
    if (header->metadata == 9 && metadata[0] == 'f') {
        memcpy(&fraction, metadata + 1, 8);
        return PyFloat_FromDouble(fraction);
    }
    if (header->metadata == 1 && (metadata[0] == 'N' || metadata[0] == 'T' || metadata[0] == 'F')) {
        return Py_NewRef(metadata[0] == 'N' ? Py_None : metadata[0] == 'T' ? Py_True : Py_False);
    }
    return NULL;
}

/* Give credit back, in large steps; if there is no room now, with a later message. */
static void return_credit(Port *port, Lane *lane)
{
    if (lane->owed < CREDIT_STEP || !is_clear(lane) || ring_room(&lane->out, HEADER_SIZE) < HEADER_SIZE) {
        return;
    }
    Header header;
    fill_header(&header, port, lane, KIND_CREDIT);
    header.message = (uint64_t)lane->owed;
    lane->owed = 0;
    write_steps(lane, (const unsigned char *)&header, HEADER_SIZE);
}

/* The message is received: `given` is what could be lost before the caller has it, or NULL if it is in `out`. */
static void take(Port *port, Lane *lane, const Header *header, long long rank, PyObject *given)
{
    if (ring_consume(&lane->in, HEADER_SIZE + header->metadata + header->length)) {
        ring_bell(lane);
    }
    lane->owed += (long long)header->length + FRAME_COST;
    return_credit(port, lane);
    port->since++;
    port->source = rank;
    port->tag = header->tag;
    port->length = (long long)header->length;
    port->landed = given == NULL;
    port->thread = PyThread_get_thread_ident();
    Py_XINCREF(given);
    replace(&port->given, given);
}

static PyObject *unpickled(Port *port, PyObject *parts)
{
    PyObject *stream = PyList_GetItem(parts, 0), *rest = NULL, *args = NULL, *names = NULL, *value = NULL;
    if (PyList_Size(parts) == 1) {
        return PyObject_CallFunctionObjArgs(port->loads, stream, NULL);
    }
    rest = PyList_GetSlice(parts, 1, PyList_Size(parts));
    args = PyTuple_Pack(1, stream);
    names = PyDict_New();
    if (rest != NULL && args != NULL && names != NULL && !PyDict_SetItemString(names, "buffers", rest)) {
        value = PyObject_Call(port->loads, args, names);
    }
    Py_XDECREF(rest);
    Py_XDECREF(args);
    Py_XDECREF(names);
    return value;
}

/* Receive the frame behind `header`, if nothing speaks against it. NULL without an exception: something does. */
static PyObject *take_frame(Port *port, Lane *lane, const Header *header, long long rank, const Wanted *wanted)
{
    char metadata[MOST_METADATA];
    if (!await(port, lane, HEADER_SIZE + header->metadata)) {
        return NULL;
    }
    ring_peek(&lane->in, HEADER_SIZE, metadata, header->metadata);
    if (wanted->out != NULL) {
        if (fill_out(port, lane, header, wanted, metadata) != YES) {
            return NULL;
        }
        take(port, lane, header, rank, NULL);
        return Py_NewRef(wanted->out);
    }
    PyObject *value = small_value(header, metadata);
    if (value != NULL) {
        take(port, lane, header, rank, value);
        return value;
    }
    if (PyErr_Occurred() || !await(port, lane, HEADER_SIZE + header->metadata + header->length)) {
        return NULL;
    }
    uint64_t before = lane->in.mine;
    value = new_value(port, lane, header, metadata);
    if (value != NULL && metadata[0] == 'a' && (lane->in.mine != before || !lane->quick || !undisturbed(port))) {
        replace(&value, Py_NewRef(Py_None)); /* making an array ran Python code; perhaps it received this message */
    }
    if (value == NULL || value == Py_None) {
        Py_XDECREF(value);
        return NULL;
    }
    take(port, lane, header, rank, value);
    if (metadata[0] == 'p') {
        replace(&value, unpickled(port, value));
    }
    return value;
}

/* From whichever rank has something; the first look goes to whoever comes after the last. */
static long long find_source(Port *port)
{
    Wait wait = {0, 0};
    do {
        for (Py_ssize_t i = 0; i < port->size; i++) {
            Py_ssize_t rank = (port->turn + i) % port->size;
            Lane *lane = port->lanes[rank];
            if (lane != NULL && lane->quick && has_in(lane) && ring_readable(&lane->in, 1) > 0) {
                port->turn = rank + 1;
                return rank;
            }
        }
    } while (go_on(port, NULL, &wait));
    return -1;
}

static PyObject *receive(Port *port, long long rank, const Wanted *wanted)
{
    Header header;
    long long found = rank < 0 ? find_source(port) : rank;
    Lane *lane = lane_to(port, found);
    if (lane == NULL || !lane->quick || !lane->edge || !has_in(lane) || port->since >= LOOK_AROUND) {
        port->since = 0;
        return NULL;
    }
    Py_INCREF((PyObject *)lane);
    PyObject *value = NULL;
    if (next_header(port, lane, &header) && is_wanted(port, lane, &header, wanted)) {
        value = take_frame(port, lane, &header, found, wanted);
    }
    Py_DECREF((PyObject *)lane);
    return value;
}

static PyObject *Port_recv(Port *port, PyObject *const *args, Py_ssize_t count)
{
    long long rank;
    Wanted wanted;
    if (count < 3) {
        PyErr_SetString(PyExc_TypeError, "recv(rank, tag, out, fingerprint=0)");
        return NULL;
    }
    if (!plain_number(args[0], &rank) || !plain_number(args[1], &wanted.tag) || rank < -1 || wanted.tag < -1 ||
        !plain_fingerprint(args, count, 3, &wanted.fingerprint)) {
        return Py_NewRef(Py_NotImplemented);
    }
    port->landed = 0;
    Py_CLEAR(port->given);
    int fits = prepare_out(port, args[2], &wanted);
    if (fits != YES) {
        return fits == FAILED ? NULL : Py_NewRef(Py_NotImplemented);
    }
    PyObject *value = undisturbed(port) && is_next(port, rank, wanted.tag) ? receive(port, rank, &wanted) : NULL;
    release_out(&wanted);
    if (value == NULL && !PyErr_Occurred()) {
        return Py_NewRef(Py_NotImplemented);
    }
    return value;
}

static PyObject *Port_attach(Port *port, PyObject *args)
{
    Lane *lane;
    if (!PyArg_ParseTuple(args, "O!", (PyTypeObject *)LaneType, &lane)) {
        return NULL;
    }
    for (Py_ssize_t rank = 0; rank < port->size; rank++) {
        if (port->members[rank] == lane->peer) {
            Lane *old = port->lanes[rank];
            Py_INCREF((PyObject *)lane);
            port->lanes[rank] = lane;
            Py_XDECREF((PyObject *)old);
        }
    }
    Py_RETURN_NONE;
}

static void Port_dealloc(Port *port)
{
    PyTypeObject *type = Py_TYPE((PyObject *)port);
    PyObject_GC_UnTrack(port);
    for (Py_ssize_t rank = 0; port->lanes != NULL && rank < port->size; rank++) {
        Py_XDECREF((PyObject *)port->lanes[rank]);
    }
    PyMem_Free(port->lanes);
    PyMem_Free(port->members);
    for (int i = 0; i < DESCRIBED; i++) {
        Py_XDECREF(port->described[i].dtype);
        Py_XDECREF(port->described[i].metadata);
    }
    Py_XDECREF(port->keep);
    Py_XDECREF(port->dumps_names);
    Py_XDECREF(port->given);
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
    free_object(port);
    Py_DECREF(type);
}

/* Everything that a port refers to lies in `keep`, in the dictionary of `dumps`, or is of its own. */
static int Port_traverse(Port *port, visitproc visit, void *arg)
{
    Py_VISIT(port->keep);
    Py_VISIT(port->dumps_names);
    Py_VISIT(port->given);
    Py_VISIT((PyObject *)Py_TYPE((PyObject *)port));
    return 0;
}

static int Port_clear(Port *port)
{
    Py_CLEAR(port->dumps_names); /* it holds the port; `keep` stays, because calls may be under way */
    Py_CLEAR(port->given);
    return 0;
}

static int set_members(Port *port, PyObject *members)
{
    port->size = PyTuple_Size(members);
    port->lanes = PyMem_Calloc((size_t)(port->size ? port->size : 1), sizeof(Lane *));
    port->members = PyMem_Calloc((size_t)(port->size ? port->size : 1), sizeof(uint64_t));
    if (port->lanes == NULL || port->members == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t rank = 0; rank < port->size; rank++) {
        port->members[rank] = PyLong_AsUnsignedLongLong(PyTuple_GetItem(members, rank));
    }
    return PyErr_Occurred() ? -1 : 0;
}

static int set_pickling(Port *port)
{
    PyObject *callback = PyCFunction_New(&out_of_band_def, (PyObject *)port), *protocol = PyLong_FromLong(5);
    port->dumps_names = PyDict_New();
    int failed = callback == NULL || protocol == NULL || port->dumps_names == NULL ||
                 PyDict_SetItemString(port->dumps_names, "protocol", protocol) ||
                 PyDict_SetItemString(port->dumps_names, "buffer_callback", callback);
    Py_XDECREF(callback);
    Py_XDECREF(protocol);
    return failed ? -1 : 0;
}

static PyObject *Port_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"ident",   "context", "members",    "arrivals", "receives",  "broken", "locked", "threads",
                            "spin",    "yields",  "array_type", "describe", "new_array", "dumps",  "loads",  NULL};
    unsigned long long ident, context;
    double seconds;
    int yields;
    PyObject *o[11];
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "KKO!O!O!O!OOdpOOOOO", names, &ident, &context, &PyTuple_Type, &o[0],
                                     &PyDict_Type, &o[1], &PyDict_Type, &o[2], &PyDict_Type, &o[3], &o[4], &o[5],
                                     &seconds, &yields, &o[6], &o[7], &o[8], &o[9], &o[10])) {
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Port *port = (Port *)allocate(type, 0);
    if (port == NULL) {
        return NULL;
    }
    port->keep = PyTuple_New(11);
    for (int i = 0; port->keep != NULL && i < 11; i++) {
        PyTuple_SetItem(port->keep, i, Py_NewRef(o[i]));
    }
    port->ident = ident;
    port->context = context;
    port->member_objects = o[0];
    port->arrivals = o[1];
    port->receives = o[2];
    port->broken = o[3];
    port->locked = o[4];
    port->threads = o[5];
    port->array_type = o[6];
    port->describe = o[7];
    port->new_array = o[8];
    port->dumps = o[9];
    port->loads = o[10];
    port->most_spin = port->spin = (long long)(seconds * 1e9);
    port->yields = (char)yields;
    if (port->keep == NULL || set_members(port, o[0]) || set_pickling(port)) {
        Py_DECREF(port);
        return NULL;
    }
    return (PyObject *)port;
}

static PyMethodDef port_methods[] = {
    {"send", (PyCFunction)(void (*)(void))Port_send, METH_FASTCALL, NULL},
    {"recv", (PyCFunction)(void (*)(void))Port_recv, METH_FASTCALL, NULL},
    {"attach", (PyCFunction)Port_attach, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef port_members[] = {
    {"source", T_LONGLONG, offsetof(Port, source), READONLY, NULL},
    {"tag", T_LONGLONG, offsetof(Port, tag), READONLY, NULL},
    {"length", T_LONGLONG, offsetof(Port, length), READONLY, NULL},
    {"given", T_OBJECT, offsetof(Port, given), 0, NULL},
    {"landed", T_BOOL, offsetof(Port, landed), READONLY, NULL},
    {"thread", T_ULONG, offsetof(Port, thread), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot port_slots[] = {
    {Py_tp_new, Port_new},           {Py_tp_dealloc, Port_dealloc}, {Py_tp_traverse, Port_traverse},
    {Py_tp_clear, Port_clear},       {Py_tp_methods, port_methods}, {Py_tp_members, port_members},
    {0, NULL},
};

static PyType_Spec port_spec = {"rmpi.transport._ring.Port", sizeof(Port), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                                port_slots};

/* ------------------------------------------------------------------------------------------------------- module */

static PyMethodDef functions[] = {
    {"stirring", stirring, METH_O, NULL},
    {"arm_all", arm_all, METH_O, NULL},
    {"spin", spin, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_ring", NULL, -1, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__ring(void)
{
    PyObject *errors = PyImport_ImportModule("rmpi.errors");
    PyObject *module = errors == NULL ? NULL : PyModule_Create(&definition);
    if (module == NULL) {
        Py_XDECREF(errors);
        return NULL;
    }
    WireError = PyObject_GetAttrString(errors, "WireError");
    Py_DECREF(errors);
    LaneType = PyType_FromSpec(&lane_spec);
    PyObject *port = PyType_FromSpec(&port_spec);
    if (WireError == NULL || LaneType == NULL || port == NULL || PyModule_AddObjectRef(module, "Lane", LaneType) ||
        PyModule_AddObjectRef(module, "Port", port) || PyModule_AddIntConstant(module, "VERSION", VERSION) ||
        PyModule_AddIntConstant(module, "EAGER_LIMIT", EAGER_LIMIT) ||
        PyModule_AddIntConstant(module, "CREDIT_STEP", CREDIT_STEP) ||
        PyModule_AddIntConstant(module, "FRAME_COST", FRAME_COST) ||
        PyModule_AddIntConstant(module, "CREDIT", CREDIT) ||
        PyModule_AddIntConstant(module, "OUT_OF_BAND", OUT_OF_BAND) ||
        PyModule_AddIntConstant(module, "DATA", RING_DATA)) {
        Py_XDECREF(port);
        Py_DECREF(module);
        return NULL;
    }
    Py_DECREF(port);
    return module;
}
