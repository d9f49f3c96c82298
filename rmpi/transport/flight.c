#include "flight.h"

/* Bytes of a payload that are handed to a socket at once. Much at once costs fewer system calls; of a message that does
   not fit the processor's cache, little at once: the peer reads it while it is still there. (Measured: 1 MiB takes
   160 µs instead of 220, and 16 MiB takes 3.8 ms instead of 6.) */
#define SOCKET_STEP (256u << 10)
#define SMALL_STEP (64u << 10)
#define BEYOND_CACHE (4u << 20)

/* The next piece of the payload that lies together, at most `most` bytes. */
static unsigned char *next_piece(struct flight *flight, uint64_t most, uint64_t *size)
{
    most = most < flight->left ? most : flight->left;
    while (flight->within == flight->pieces[flight->at].size) {
        flight->at++;
        flight->within = 0;
    }
    unsigned char *piece = flight->pieces[flight->at].at + flight->within;
    *size = flight->pieces[flight->at].size - flight->within;
    *size = *size < most ? *size : most;
    return piece;
}

static void move_past(struct flight *flight, uint64_t size)
{
    flight->within += size;
    flight->offset += size;
    flight->left -= size;
}

/* ------------------------------------------------------------------------------------------------------ out */

static void begin_frame(struct flight *out)
{
    out->frame = out->left = out->length - out->offset < CHUNK ? out->length - out->offset : CHUNK;
    fill_header(&out->header, out->lane, DATA);
    out->header.context = out->context;
    out->header.tag = (int64_t)out->offset;
    out->header.message = out->message;
    out->header.length = out->frame;
}

static bool write_to_ring(struct flight *out)
{
    struct ring *ring = &out->lane->out;
    bool moved = false;
    uint64_t size;
    if (!out->left && ring_room(ring, HEADER_SIZE) >= HEADER_SIZE) {
        begin_frame(out);
        ring_put(ring, 0, &out->header, HEADER_SIZE);
        ring_publish(ring, HEADER_SIZE);
        moved = true;
    }
    uint64_t room = out->left ? ring_room(ring, 1) : 0;
    if (room) {
        const unsigned char *piece = next_piece(out, room < RING_STEP ? room : RING_STEP, &size);
        ring_put(ring, 0, piece, size);
        ring_publish(ring, size);
        move_past(out, size);
        moved = true;
    }
    if (moved && ring_sleeper(ring)) {
        ring_bell(out->lane);
    }
    return moved;
}

static bool write_to_socket(struct flight *out)
{
    uint64_t size;
    if (!out->left) {
        begin_frame(out);
        out->unsent = HEADER_SIZE;
    }
    unsigned char *piece = next_piece(out, out->length < BEYOND_CACHE ? SOCKET_STEP : SMALL_STEP, &size);
    struct iovec pieces[2] = {{(unsigned char *)(&out->header + 1) - out->unsent, out->unsent}, {piece, size}};
    uint64_t sent = socket_send(out->lane, pieces, 2), headed = sent < out->unsent ? sent : out->unsent;
    out->unsent -= headed;
    move_past(out, sent - headed);
    return sent != 0;
}

/* Write a little of the payload. Whether anything moved. */
static bool write_some(struct flight *out)
{
    bool moved = out->lane->socket ? write_to_socket(out) : write_to_ring(out);
    if (out->offset == out->length) {
        out->stage = LANDED;
    }
    return moved;
}

/* Where a flight stops, whoever goes on with it goes on with the payload. */
static void leave_header(struct flight *out)
{
    if (out->unsent) {
        struct iovec piece = {&out->header, HEADER_SIZE};
        keep_unsent(out->lane, &piece, 1, HEADER_SIZE - out->unsent);
        out->unsent = 0;
    }
}

/* ------------------------------------------------------------------------------------------------------- in */

enum found { NOTHING, MOVED, FOREIGN };

static enum found read_some(struct flight *in)
{
    uint64_t size;
    unsigned char *piece = next_piece(in, in->left, &size);
    size = lane_take(in->lane, piece, size);
    if (!size) {
        return NOTHING;
    }
    move_past(in, size);
    if (!in->left) {
        in->lane->edge = 1;
        if (in->offset == in->length) {
            in->stage = LANDED;
        }
    }
    return MOVED;
}

/* An offer comes: whose it is, its memory and the grant are the business of whoever has called us. */
static void keep_offer(struct flight *in, const Header *header)
{
    uint64_t size = HEADER_SIZE + header->metadata;
    if (in->head == NULL || header->metadata > MOST_METADATA || lane_readable(in->lane, size) < size) {
        return;
    }
    *in->head = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (*in->head != NULL) {
        ring_peek(&in->lane->in, 0, PyBytes_AsString(*in->head), size);
        consume(in->lane, size);
    }
}

static enum found take_data(struct flight *in, const Header *header)
{
    if (header->message != in->message || header->tag != (int64_t)in->offset || !header->length ||
        header->length > CHUNK || header->length > in->length - in->offset || header->metadata) {
        return FOREIGN;
    }
    consume(in->lane, HEADER_SIZE);
    in->frame = in->left = header->length;
    in->lane->edge = 0;
    return MOVED;
}

/* Read what a lane brings for either flight. */
static enum found listen(Lane *lane, struct flight *out, struct flight *in)
{
    Header header;
    if (in != NULL && in->lane == lane && in->left) {
        return read_some(in);
    }
    if (!lane->edge) {
        return FOREIGN;
    }
    if (lane_readable(lane, HEADER_SIZE) < HEADER_SIZE) {
        return is_over(lane) ? FOREIGN : NOTHING;
    }
    ring_peek(&lane->in, 0, &header, HEADER_SIZE);
    if (!is_plausible(lane, &header)) {
        return FOREIGN;
    }
    if (header.kind == CREDITED) {
        return take_credit(lane, &header) ? MOVED : FOREIGN;
    }
    if (header.kind == GRANT && out != NULL && out->lane == lane && out->stage == OFFERED &&
        header.message == out->message && !header.metadata && !header.length) {
        consume(lane, HEADER_SIZE);
        out->stage = out->length ? FLIES : LANDED;
        return MOVED;
    }
    if (header.kind == OFFER && in != NULL && in->lane == lane && in->stage == AWAITED) {
        bool busy = out != NULL && out->lane == lane && out->left; /* the grant cannot go into the middle of a frame */
        if (busy) {
            return NOTHING;
        }
        keep_offer(in, &header);
        return FOREIGN;
    }
    if (header.kind == DATA && in != NULL && in->lane == lane && in->stage == FLIES) {
        return take_data(in, &header);
    }
    return FOREIGN;
}

static enum found move(struct flight *out, struct flight *in)
{
    enum found incoming = NOTHING, answer = NOTHING;
    if (in != NULL && in->stage != LANDED) {
        incoming = listen(in->lane, out, in);
    }
    if (out != NULL && out->stage == OFFERED && (in == NULL || in->lane != out->lane || in->stage == LANDED)) {
        answer = listen(out->lane, out, in);
    }
    if (incoming == FOREIGN || answer == FOREIGN) {
        return FOREIGN;
    }
    bool moved = out != NULL && out->stage == FLIES && write_some(out);
    return moved || incoming == MOVED || answer == MOVED ? MOVED : NOTHING;
}

static bool is_done(const struct flight *flight) { return flight == NULL || flight->stage == LANDED; }

static bool is_over_socket(const struct flight *flight) { return flight != NULL && flight->lane->socket; }

bool fly_both(struct flight *out, struct flight *in, long long limit, bool yields)
{
    long long until = 0;
    unsigned long look = is_over_socket(out) || is_over_socket(in) ? SOCKET_LOOK : 1;
    for (unsigned long looks = 0; !(is_done(out) && is_done(in));) {
        enum found found = move(out, in);
        if (found == FOREIGN) {
            break;
        }
        if (found == MOVED) {
            looks = 0;
            until = 0;
            continue;
        }
        if (yields) {
            sched_yield();
            if (++looks < MOST_YIELDS) {
                continue;
            }
            break;
        }
        relax();
        if ((looks += look) % TICK) {
            continue;
        }
        long long now = nanoseconds();
        until = until ? until : now + limit;
        if (now >= until) {
            break;
        }
    }
    if (out != NULL) {
        leave_header(out);
    }
    return is_done(out) && is_done(in);
}

/* ------------------------------------------------------------------------------------------- a flight in Python */

typedef struct {
    PyObject_HEAD
    struct flight flight;
    Py_buffer *views;
    PyObject *head;
} Flight;

PyObject *FlightType;

static void Flight_dealloc(Flight *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    while (self->flight.count > 0) {
        PyBuffer_Release(&self->views[--self->flight.count]);
    }
    PyMem_Free(self->views);
    PyMem_Free(self->flight.pieces);
    Py_XDECREF((PyObject *)self->flight.lane);
    Py_XDECREF(self->head);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *Flight_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"lane", "message", "context", NULL};
    Lane *lane;
    unsigned long long message, context;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!KK", names, (PyTypeObject *)LaneType, &lane, &message,
                                     &context)) {
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Flight *self = (Flight *)allocate(type, 0);
    if (self != NULL) {
        Py_INCREF((PyObject *)lane);
        self->flight.lane = lane;
        self->flight.message = message;
        self->flight.context = context;
        self->flight.stage = message ? OFFERED : AWAITED;
        self->flight.head = &self->head;
    }
    return (PyObject *)self;
}

/* Say where the payload lies, or shall land. */
static PyObject *Flight_load(Flight *self, PyObject *args)
{
    PyObject *list;
    unsigned long long message;
    int writable;
    struct flight *flight = &self->flight;
    if (!PyArg_ParseTuple(args, "OKp", &list, &message, &writable)) {
        return NULL;
    }
    Py_ssize_t count = PySequence_Size(list);
    if (count < 0 || flight->pieces != NULL) {
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "a flight is loaded once");
    }
    self->views = PyMem_Calloc((size_t)count + 1, sizeof(Py_buffer));
    flight->pieces = PyMem_Calloc((size_t)count + 1, sizeof(Piece));
    if (self->views == NULL || flight->pieces == NULL) {
        return PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_buffer *view = &self->views[i];
        PyObject *buffer = PySequence_GetItem(list, i);
        int failed = buffer == NULL || PyObject_GetBuffer(buffer, view, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE);
        Py_XDECREF(buffer);
        if (failed) {
            return NULL;
        }
        flight->pieces[i].at = view->buf;
        flight->pieces[i].size = (uint64_t)view->len;
        flight->count++;
        flight->length += (uint64_t)view->len;
    }
    flight->message = message;
    flight->stage = writable ? FLIES : OFFERED;
    Py_RETURN_NONE;
}

static bool may_fly(const Flight *self, bool outgoing)
{
    const Lane *lane = self->flight.lane;
    bool loaded = self->flight.stage == AWAITED || self->flight.pieces != NULL;
    return loaded && lane->quick && has_in(lane) && has_out(lane) && !lane->asleep && (!outgoing || is_clear(lane));
}

PyObject *fly(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *given[2];
    long long limit;
    int yields;
    if (!PyArg_ParseTuple(args, "OOLp", &given[0], &given[1], &limit, &yields)) {
        return NULL;
    }
    for (int i = 0; i < 2; i++) {
        if (given[i] != Py_None && !Py_IS_TYPE(given[i], (PyTypeObject *)FlightType)) {
            return PyErr_Format(PyExc_TypeError, "flights, or None");
        }
    }
    Flight *out = given[0] == Py_None ? NULL : (Flight *)given[0];
    Flight *in = given[1] == Py_None ? NULL : (Flight *)given[1];
    if ((out != NULL && !may_fly(out, true)) || (in != NULL && !may_fly(in, false))) {
        Py_RETURN_FALSE;
    }
    bool landed = fly_both(out == NULL ? NULL : &out->flight, in == NULL ? NULL : &in->flight, limit, yields != 0);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(landed);
}

static PyMethodDef flight_methods[] = {
    {"load", (PyCFunction)Flight_load, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

#define FIELD(name) offsetof(Flight, flight) + offsetof(struct flight, name)

static PyMemberDef flight_members[] = {
    {"stage", T_INT, FIELD(stage), READONLY, NULL},
    {"offset", T_ULONGLONG, FIELD(offset), READONLY, NULL},
    {"frame", T_ULONGLONG, FIELD(frame), READONLY, NULL},
    {"left", T_ULONGLONG, FIELD(left), READONLY, NULL},
    {"head", T_OBJECT, offsetof(Flight, head), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot flight_slots[] = {
    {Py_tp_new, Flight_new},
    {Py_tp_dealloc, Flight_dealloc},
    {Py_tp_methods, flight_methods},
    {Py_tp_members, flight_members},
    {0, NULL},
};

static PyType_Spec flight_spec = {"rmpi.transport._ring.Flight", sizeof(Flight), 0, Py_TPFLAGS_DEFAULT, flight_slots};

int flight_ready(void)
{
    FlightType = PyType_FromSpec(&flight_spec);
    return FlightType == NULL ? -1 : 0;
}
