/* Lanes: the two rings of a pair with the bell that wakes the peer, read and written like a socket; or a socket,
   read and written like two rings; and looking after many of them in one call.

   A *socket lane* reads ahead: one system call brings many small frames into a ring of our own, of which this
   process is both the writer and the reader. Large payloads go past it, straight to where they belong. What it
   writes leaves at once; what the socket does not take joins the link's queue (`pending`), and while there is such
   a queue, nothing else is written here.

   Nobody rings for a socket lane: its socket is in the crank's epoll. But of bytes that lie in the ring already the
   epoll knows nothing, nor of those in the queue that a port has just put there. So a lane that has some *stirs*,
   and whoever is about to sleep looks at that last of all (`arm`). From then on until the next turn ports leave the
   lane alone (`asleep`), whatever their thread: bytes that they read, and did not want, would never wake the
   sleeper. */

#include "lane.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

PyObject *LaneType;

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
    lane->fd = bell;
    lane->credit = credit;
    lane->owner = getpid();
    lane->edge = 1;
    return (PyObject *)lane;
}

static void Lane_dealloc(Lane *lane)
{
    PyTypeObject *type = Py_TYPE((PyObject *)lane);
    if (lane->socket) {
        free(lane->in.shared);
    } else if (lane->owner == getpid()) { /* a fork has no copy of the mappings, and may have others at their place */
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

static PyObject *map_ring(struct ring *ring, size_t *size, PyObject *args)
{
    int fd;
    unsigned long long capacity;
    if (!PyArg_ParseTuple(args, "iK", &fd, &capacity)) {
        return NULL;
    }
    if (ring->shared != NULL || capacity < 4096 || capacity > (1ull << 40) || (capacity & (capacity - 1))) {
        return PyErr_Format(PyExc_ValueError, "a ring's capacity is a power of two, and it is mapped once");
    }
    *size = RING_DATA + (size_t)capacity;
    void *memory = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    madvise(memory, *size, MADV_DONTFORK);
    ring_open(ring, memory, capacity);
    Py_RETURN_NONE;
}

static PyObject *Lane_use_socket(Lane *lane, PyObject *Py_UNUSED(none))
{
    void *memory;
    if (lane->in.shared != NULL || lane->out.shared != NULL) {
        return PyErr_Format(PyExc_ValueError, "a lane has rings, or a socket");
    }
    if (posix_memalign(&memory, RING_APART, RING_DATA + PRIVATE_RING)) {
        return PyErr_NoMemory();
    }
    memset(memory, 0, RING_DATA);
    ring_open(&lane->in, memory, PRIVATE_RING);
    lane->socket = 1;
    Py_RETURN_NONE;
}

static PyObject *Lane_map_out(Lane *lane, PyObject *args) { return map_ring(&lane->out, &lane->out_size, args); }
static PyObject *Lane_map_in(Lane *lane, PyObject *args) { return map_ring(&lane->in, &lane->in_size, args); }

void ring_bell(const Lane *lane)
{
    ssize_t sent;
    do {
        sent = send(lane->fd, "!", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR); /* no room: it has been rung often enough; gone: its router says so */
}

/* ------------------------------------------------------------------------------------------------------ sockets */

static void put_ahead(struct ring *ring, uint64_t tail)
{
    ring->seen = tail;
    atomic_store_explicit(&ring->shared->tail, tail, memory_order_relaxed);
}

/* Read into `into`, and then into the ring, which is empty if `count` is not 0: at most ``ahead`` bytes. */
static uint64_t socket_read(Lane *lane, void *into, uint64_t count, uint64_t ahead)
{
    struct ring *ring = &lane->in;
    uint64_t have = ring->seen - ring->mine;
    if (lane->hung_up || lane->closed || lane->asleep) {
        return 0;
    }
    if (!have) { /* from its beginning, which is in the cache */
        ring->mine = (ring->mine + ring->capacity - 1) & ~(ring->capacity - 1);
        put_ahead(ring, ring->mine);
    }
    uint64_t place = ring->seen & (ring->capacity - 1), straight = ring->capacity - place;
    straight = straight < ahead ? straight : ahead;
    struct iovec pieces[3] = {{into, count}, {ring->data + place, straight}, {ring->data, ahead - straight}};
    struct msghdr message = {.msg_iov = pieces + !count, .msg_iovlen = 1 + (count != 0) + (ahead > straight)};
    ssize_t got;
    do {
        got = recvmsg(lane->fd, &message, MSG_DONTWAIT);
    } while (got < 0 && errno == EINTR);
    if (got <= 0) {
        lane->hung_up = got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK);
        return 0;
    }
    lane->received += (uint64_t)got;
    if ((uint64_t)got > count) {
        put_ahead(ring, ring->seen + (uint64_t)got - count);
    }
    return (uint64_t)got < count ? (uint64_t)got : count;
}

uint64_t socket_fill(Lane *lane, uint64_t wanted)
{
    struct ring *ring = &lane->in;
    uint64_t have = ring->seen - ring->mine;
    if (wanted > ring->capacity) {
        return have;
    }
    socket_read(lane, NULL, 0, lane->exactly ? wanted - have : ring->capacity - have);
    have = ring->seen - ring->mine;
    if (have >= wanted) {
        lane->exactly = 0;
    }
    return have;
}

uint64_t lane_take(Lane *lane, unsigned char *into, uint64_t most)
{
    uint64_t ready = ring_readable(&lane->in, 1);
    if (!ready && lane->socket) {
        if (most >= STRAIGHT) {
            lane->exactly = 1;
            return socket_read(lane, into, most, HEADER_SIZE);
        }
        ready = socket_fill(lane, lane->exactly ? most : 1);
    }
    ready = ready < most ? ready : most;
    ready = ready < RING_STEP ? ready : RING_STEP;
    if (ready) {
        ring_peek(&lane->in, 0, into, ready);
        consume(lane, ready);
    }
    return ready;
}

size_t socket_send(Lane *lane, const struct iovec *pieces, int count)
{
    struct msghdr message = {.msg_iov = (struct iovec *)pieces, .msg_iovlen = (size_t)count};
    ssize_t sent;
    do {
        sent = sendmsg(lane->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    if (sent < 0) {
        return 0; /* a peer that is gone: Python writes next, and sees it */
    }
    lane->sent += (uint64_t)sent;
    return (size_t)sent;
}

void keep_unsent(Lane *lane, const struct iovec *pieces, int count, size_t sent)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    for (int i = 0; i < count; i++) {
        size_t skipped = sent < pieces[i].iov_len ? sent : pieces[i].iov_len;
        sent -= skipped;
        if (skipped == pieces[i].iov_len) {
            continue;
        }
        PyObject *rest = PyBytes_FromStringAndSize((const char *)pieces[i].iov_base + skipped,
                                                   (Py_ssize_t)(pieces[i].iov_len - skipped));
        PyObject *kept = rest == NULL ? NULL : PyObject_CallMethod(lane->pending, "append", "O", rest);
        Py_XDECREF(rest);
        if (kept == NULL) { /* no memory: the stream is torn, and nothing may follow */
            lane->closed = 1;
            lane->quick = 0;
            break;
        }
        Py_DECREF(kept);
    }
    PyErr_Restore(type, value, trace);
}

/* ---------------------------------------------------------------------------------------------- what both have */

bool has_unsent(const Lane *lane)
{
    return lane->wants_room || (lane->socket && lane->pending != NULL && PyObject_Size(lane->pending) != 0);
}

static bool socket_stirs(const Lane *lane)
{
    return (has_in(lane) && lane->in.seen != lane->in.mine) || (has_out(lane) && !lane->wants_room && has_unsent(lane));
}

/* Whether the lane can move, as far as this side wants it to. */
bool lane_stirs(Lane *lane)
{
    if (lane->socket) {
        return socket_stirs(lane);
    }
    return (has_in(lane) && (ring_readable(&lane->in, 1) > 0 || lane->in.corrupt || lane->out.corrupt)) ||
           (lane->wants_room && has_out(lane) && ring_room(&lane->out, 1) > 0);
}

/* Raise the flags of what this side waits for; a fence follows, and then `must_wake`. */
static void raise_flags(Lane *lane)
{
    lane->asleep = lane->socket;
    if (!lane->socket && has_in(lane)) {
        ring_raise_reader(&lane->in);
    }
    if (!lane->socket && lane->wants_room && has_out(lane)) {
        ring_raise_writer(&lane->out);
    }
}

/* Whether this side must not sleep. */
static bool must_wake(Lane *lane)
{
    if (lane->socket) {
        return socket_stirs(lane);
    }
    return (has_in(lane) && ring_has_bytes(&lane->in)) ||
           (lane->wants_room && has_out(lane) && ring_has_room(&lane->out));
}

static bool lane_arm(Lane *lane)
{
    raise_flags(lane);
    atomic_thread_fence(memory_order_seq_cst);
    return must_wake(lane);
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

static void write_ring(Lane *lane, const struct iovec *pieces, int count)
{
    struct ring *ring = &lane->out;
    uint64_t filled = 0;
    int i = 0;
    for (; i < count && pieces[i].iov_len <= RING_STEP; i++) {
        ring_put(ring, filled, pieces[i].iov_base, pieces[i].iov_len);
        filled += pieces[i].iov_len;
    }
    ring_publish(ring, filled);
    if (i == count && ring_sleeper(ring)) {
        ring_bell(lane);
    }
    for (; i < count; i++) {
        write_steps(lane, pieces[i].iov_base, pieces[i].iov_len);
    }
}

void lane_write(Lane *lane, const struct iovec *pieces, int count)
{
    if (!lane->socket) {
        write_ring(lane, pieces, count);
        return;
    }
    size_t size = 0, sent = socket_send(lane, pieces, count);
    for (int i = 0; i < count; i++) {
        size += pieces[i].iov_len;
    }
    if (sent < size) {
        keep_unsent(lane, pieces, count, sent);
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
    while (!lane->socket && has_out(lane) && written < wanted &&
           (room = ring_room(&lane->out, wanted - written)) > 0) {
        uint64_t count = room < wanted - written ? room : wanted - written;
        write_steps(lane, from + written, count);
        written += count;
    }
    PyBuffer_Release(&buffer);
    return PyLong_FromUnsignedLongLong(written); /* if the peer's position is garbage, whoever reads next says so */
}

static PyObject *Lane_read_into(Lane *lane, PyObject *args)
{
    Py_buffer buffer;
    uint64_t count;
    if (!PyArg_ParseTuple(args, "w*", &buffer)) {
        return NULL;
    }
    uint64_t wanted = (uint64_t)buffer.len, got = 0;
    unsigned char *into = buffer.buf;
    lane->asleep = 0; /* it is the crank that reads, so nobody sleeps */
    while (has_in(lane) && got < wanted && (count = lane_take(lane, into + got, wanted - got)) > 0) {
        got += count;
    }
    PyBuffer_Release(&buffer);
    if (lane->in.corrupt || lane->out.corrupt) {
        return torn(lane);
    }
    return PyLong_FromUnsignedLongLong(got);
}

static PyObject *Lane_stirs(Lane *lane, PyObject *Py_UNUSED(none)) { return PyBool_FromLong(lane_stirs(lane)); }
static PyObject *Lane_arm(Lane *lane, PyObject *Py_UNUSED(none)) { return PyBool_FromLong(lane_arm(lane)); }

static PyObject *Lane_hush(Lane *lane, PyObject *Py_UNUSED(none))
{
    char rung[64];
    ssize_t count = sizeof rung;
    if (lane->socket) { /* what is in it is for a port, if there is more than its end, and ports may read it */
        return PyBool_FromLong(lane->quick && !lane->hung_up);
    }
    if (!has_in(lane)) {
        Py_RETURN_FALSE; /* the greeting may be in it */
    }
    while (count == sizeof rung || (count < 0 && errno == EINTR)) {
        count = recv(lane->fd, rung, sizeof rung, MSG_DONTWAIT);
    }
    return PyBool_FromLong(count > 0 || (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)));
}

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

static PyObject *Lane_sent(Lane *lane, PyObject *Py_UNUSED(none))
{
    return PyLong_FromUnsignedLongLong(lane->socket ? lane->sent : lane->out.mine);
}

static PyObject *Lane_taken(Lane *lane, PyObject *Py_UNUSED(none))
{
    uint64_t ahead = lane->in.seen - lane->in.mine; /* of a socket's bytes: those that nobody has looked at */
    return PyLong_FromUnsignedLongLong(lane->socket ? lane->received - ahead : lane->in.mine);
}

static PyObject *Lane_close(Lane *lane, PyObject *Py_UNUSED(none))
{
    lane->closed = 1;
    lane->quick = 0;
    Py_RETURN_NONE;
}

static PyMethodDef lane_methods[] = {
    {"use_socket", (PyCFunction)Lane_use_socket, METH_NOARGS, NULL},
    {"map_out", (PyCFunction)Lane_map_out, METH_VARARGS, NULL},
    {"map_in", (PyCFunction)Lane_map_in, METH_VARARGS, NULL},
    {"write", (PyCFunction)Lane_write, METH_VARARGS, NULL},
    {"read_into", (PyCFunction)Lane_read_into, METH_VARARGS, NULL},
    {"stirs", (PyCFunction)Lane_stirs, METH_NOARGS, NULL},
    {"arm", (PyCFunction)Lane_arm, METH_NOARGS, NULL},
    {"hush", (PyCFunction)Lane_hush, METH_NOARGS, NULL},
    {"empty", (PyCFunction)Lane_empty, METH_NOARGS, NULL},
    {"queues", (PyCFunction)Lane_queues, METH_VARARGS, NULL},
    {"sent", (PyCFunction)Lane_sent, METH_NOARGS, NULL},
    {"taken", (PyCFunction)Lane_taken, METH_NOARGS, NULL},
    {"close", (PyCFunction)Lane_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef lane_members[] = {
    {"peer", T_ULONGLONG, offsetof(Lane, peer), READONLY, NULL},
    {"fd", T_INT, offsetof(Lane, fd), READONLY, NULL},
    {"edge", T_BOOL, offsetof(Lane, edge), 0, NULL},
    {"wants_room", T_BOOL, offsetof(Lane, wants_room), 0, NULL},
    {"quick", T_BOOL, offsetof(Lane, quick), 0, NULL},
    {"closed", T_BOOL, offsetof(Lane, closed), READONLY, NULL},
    {"socket", T_BOOL, offsetof(Lane, socket), READONLY, NULL},
    {"hung_up", T_BOOL, offsetof(Lane, hung_up), READONLY, NULL},
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

PyObject *stirring(PyObject *Py_UNUSED(module), PyObject *list)
{
    Lane **lanes;
    Py_ssize_t count = hold_lanes(list, &lanes);
    PyObject *found = count < 0 ? NULL : PyList_New(0);
    for (Py_ssize_t i = 0; found != NULL && i < count; i++) {
        lanes[i]->asleep = 0;
        if (lane_stirs(lanes[i]) && PyList_Append(found, (PyObject *)lanes[i])) {
            Py_CLEAR(found);
        }
    }
    if (count >= 0) {
        let_go(lanes, count);
    }
    return found;
}

PyObject *arm_all(PyObject *Py_UNUSED(module), PyObject *list)
{
    Lane **lanes;
    Py_ssize_t count = hold_lanes(list, &lanes);
    if (count < 0) {
        return NULL;
    }
    bool ready = false;
    for (Py_ssize_t i = 0; i < count; i++) {
        raise_flags(lanes[i]);
    }
    atomic_thread_fence(memory_order_seq_cst);
    for (Py_ssize_t i = 0; i < count && !ready; i++) {
        ready = must_wake(lanes[i]);
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

PyObject *spin(PyObject *Py_UNUSED(module), PyObject *args)
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

/* ----------------------------------------------------------------------------------------------------- frames */

bool is_clear(const Lane *lane)
{
    return lane->quick && !lane->wants_room && !lane->asleep && PyObject_Size(lane->pending) == 0 &&
           PyObject_Size(lane->streams) == 0;
}

void fill_header(Header *header, const Lane *lane, enum kind kind)
{
    memset(header, 0, sizeof *header);
    memcpy(header->magic, "rm", 2);
    header->version = VERSION;
    header->kind = (uint8_t)kind;
    header->source = lane->ident;
    header->destination = lane->peer;
}

bool is_plausible(const Lane *lane, const Header *header)
{
    return memcmp(header->magic, "rm", 2) == 0 && header->version == VERSION && header->source == lane->peer &&
           header->destination == lane->ident;
}

bool take_credit(Lane *lane, const Header *header)
{
    if (header->metadata || header->length || header->message > CREDIT) {
        return false;
    }
    lane->credit += (long long)header->message;
    lane->credit = lane->credit < CREDIT ? lane->credit : CREDIT;
    consume(lane, HEADER_SIZE);
    return true;
}

int lane_ready(void)
{
    LaneType = PyType_FromSpec(&lane_spec);
    return LaneType == NULL ? -1 : 0;
}
