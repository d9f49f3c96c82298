/* Receiving by a port: the message that comes next, if it is the one that was asked for. */

#include "port.h"

#include <sys/epoll.h>

/* Messages received by the short cut before the caller must look at everything else (sockets, failures). */
#define LOOK_AROUND 1024

/* Sockets beyond which the epoll is asked about all, instead of each about itself; and what it tells at once. */
#define FEW_SOCKETS 2
#define MOST_EVENTS 16

enum verdict prepare_out(Port *port, PyObject *out, Wanted *wanted)
{
    wanted->out = NULL;
    wanted->metadata = NULL;
    if (out == Py_None) {
        return YES;
    }
    if ((PyObject *)Py_TYPE(out) != port->hub->array_type) {
        return NO;
    }
    if (PyObject_GetBuffer(out, &wanted->view, PyBUF_STRIDED)) { /* writable; if it is not, the long way says so */
        PyErr_Clear();
        return NO;
    }
    PyObject *metadata = metadata_of(port, out, &wanted->view);
    if (metadata == NULL) {
        PyBuffer_Release(&wanted->view);
        return PyErr_Occurred() ? FAILED : NO;
    }
    wanted->metadata = Py_NewRef(metadata);
    wanted->out = out;
    return YES;
}

void release_out(Wanted *wanted)
{
    if (wanted->out != NULL) {
        PyBuffer_Release(&wanted->view);
        Py_DECREF(wanted->metadata);
    }
}

bool is_next(const Port *port, const Address *from)
{
    if (PyDict_Size(port->receives) != 0) {
        return false;
    }
    if (PyDict_Size(port->arrivals) == 0) {
        return true;
    }
    if (from->rank < 0 || (!port->open && from->rank >= port->size) || from->tag < 0) {
        return false;
    }
    PyObject *key = port->open ? Py_BuildValue("LL", from->rank, from->tag)
                               : Py_BuildValue("OL", PyTuple_GetItem(port->member_objects, from->rank), from->tag);
    int found = key == NULL ? -1 : PyDict_Contains(port->arrivals, key);
    Py_XDECREF(key);
    if (found < 0) {
        PyErr_Clear();
    }
    return found == 0;
}

/* The next frame that is not a CREDIT: whether its header is there, and says what can be. */
static bool next_header(Port *port, Lane *lane, Header *header)
{
    for (;;) {
        if (!await(port, lane, HEADER_SIZE)) {
            return false;
        }
        ring_peek(&lane->in, 0, header, HEADER_SIZE);
        if (!is_plausible(lane, header)) {
            return false;
        }
        if (header->kind != CREDITED) {
            return true;
        }
        if (!take_credit(lane, header)) {
            return false;
        }
    }
}

/* Whether it is the message that was asked for, of a kind that is handled here. */
static bool is_wanted(const Port *port, const Lane *lane, const Header *header, const Wanted *wanted)
{
    bool same_tag = wanted->from.tag < 0 ? header->tag >= 0 : header->tag == wanted->from.tag;
    if (header->context != port->context || !same_tag || header->fingerprint != wanted->from.fingerprint ||
        !header->metadata || header->metadata > MOST_METADATA) {
        return false;
    }
    if (header->kind == OFFER) {
        return header->message != 0 && header->length > 0;
    }
    return header->kind == EAGER && header->message == 0 && header->length <= EAGER_LIMIT &&
           HEADER_SIZE + header->metadata + header->length <= lane->in.capacity;
}

/* Credit goes back in large steps. Whether it can, if that of this message makes a step full. */
static bool can_return_credit(Lane *lane, const Header *header)
{
    return lane->owed + (long long)header->length + FRAME_COST < CREDIT_STEP ||
           (is_clear(lane) && lane_room(lane, HEADER_SIZE) >= HEADER_SIZE);
}

static void return_credit(Lane *lane)
{
    if (lane->owed < CREDIT_STEP) {
        return;
    }
    Header header;
    fill_header(&header, lane, CREDITED);
    header.message = (uint64_t)lane->owed;
    lane->owed = 0;
    lane_write(lane, &(struct iovec){&header, HEADER_SIZE}, 1);
}

/* The message is received: `given` is what could be lost before the caller has it, or NULL if it is in `out`. */
static void note(Port *port, const Header *header, long long rank, PyObject *given)
{
    port->since++;
    port->source = rank;
    port->tag = header->tag;
    port->length = (long long)header->length;
    port->landed = given == NULL;
    Py_XINCREF(given);
    replace(&port->given, given);
}

static void take_small(Port *port, Lane *lane, const Header *header, long long rank, PyObject *given)
{
    consume(lane, HEADER_SIZE + header->metadata + header->length);
    lane->owed += (long long)header->length + FRAME_COST;
    return_credit(lane);
    note(port, header, rank, given);
}

/* Whether `out` is such as the message. */
static bool fits_out(const Header *header, const unsigned char *metadata, const Wanted *wanted)
{
    return (Py_ssize_t)header->metadata == PyBytes_Size(wanted->metadata) &&
           (uint64_t)wanted->view.len == header->length &&
           memcmp(metadata, PyBytes_AsString(wanted->metadata), header->metadata) == 0;
}

/* The payload, as it comes, without consuming it. */
static bool fill(Port *port, Lane *lane, const Header *header, const Piece *pieces, int count)
{
    uint64_t at = HEADER_SIZE + header->metadata;
    for (int i = 0; i < count; i++) {
        for (uint64_t done = 0; done < pieces[i].size;) {
            uint64_t left = pieces[i].size - done, step = left < RING_STEP ? left : RING_STEP;
            if (!await(port, lane, at + step)) {
                return false;
            }
            ring_peek(&lane->in, at, pieces[i].at + done, step);
            done += step;
            at += step;
        }
    }
    return true;
}

/* Whether the lane is as it was before some Python code ran. */
static bool is_same(const Port *port, const Lane *lane, uint64_t before)
{
    return lane->in.mine == before && is_open(lane) && undisturbed(port);
}

static PyObject *take_new(Port *port, Lane *lane, const Header *header, const unsigned char *metadata, long long rank)
{
    Landing landing;
    PyObject *value = NULL;
    uint64_t before = lane->in.mine;
    if (open_landing(port, metadata, header->metadata, header->length, &landing) == YES &&
        is_same(port, lane, before) &&
        fill(port, lane, header, landing.pieces, landing.count)) {
        value = metadata[0] == 'p' ? Py_NewRef(landing.object) : landed_value(&landing, metadata[0]);
    }
    if (value != NULL) {
        take_small(port, lane, header, rank, value);
    }
    if (value != NULL && metadata[0] == 'p') {
        replace(&value, unpickled(port, landing.object)); /* its parts are what is given: they can be put back */
    }
    close_landing(&landing);
    return value;
}

/* Receive an eager message. NULL without an exception: something speaks against it, and nothing was changed. */
static PyObject *receive_small(Port *port, Lane *lane, const Header *header, const unsigned char *metadata,
                               long long rank, const Wanted *wanted)
{
    if (!can_return_credit(lane, header)) {
        return NULL; /* the long way lets the credit wait for room */
    }
    if (wanted->out != NULL) {
        Piece piece = {wanted->view.buf, header->length};
        if (!fits_out(header, metadata, wanted) || !fill(port, lane, header, &piece, header->length != 0)) {
            return NULL;
        }
        take_small(port, lane, header, rank, NULL);
        return Py_NewRef(wanted->out);
    }
    PyObject *value = value_in(metadata, header->metadata, header->length);
    if (value != NULL) {
        take_small(port, lane, header, rank, value);
        return value;
    }
    return PyErr_Occurred() ? NULL : take_new(port, lane, header, metadata, rank);
}

enum verdict board(Lane *lane, const Header *header, struct flight *in)
{
    if (!is_clear(lane) || lane_room(lane, HEADER_SIZE) < HEADER_SIZE) {
        return NO;
    }
    consume(lane, HEADER_SIZE + header->metadata);
    lane->exactly = 1;
    in->message = header->message;
    in->length = header->length;
    in->stage = FLIES;
    Header grant;
    fill_header(&grant, lane, GRANT);
    grant.message = header->message;
    lane_write(lane, &(struct iovec){&grant, HEADER_SIZE}, 1);
    return YES;
}


enum verdict make_room(Port *port, Inbound *in, const Wanted *wanted)
{
    in->landing.object = NULL;
    in->landing.held = false;
    if (wanted->out == NULL) {
        enum verdict verdict = open_landing(port, in->metadata, in->header.metadata, in->header.length, &in->landing);
        in->flight.pieces = in->landing.pieces;
        in->flight.count = in->landing.count;
        return verdict;
    }
    in->piece.at = wanted->view.buf;
    in->piece.size = in->header.length;
    in->flight.pieces = &in->piece;
    in->flight.count = 1;
    return fits_out(&in->header, in->metadata, wanted) ? YES : NO;
}

PyObject *disembark(Port *port, const Inbound *in, long long rank, const Wanted *wanted)
{
    if (wanted->out != NULL) {
        note(port, &in->header, rank, NULL);
        return Py_NewRef(wanted->out);
    }
    if (in->metadata[0] == 'p') {
        note(port, &in->header, rank, in->landing.object);
        return unpickled(port, in->landing.object);
    }
    PyObject *value = landed_value(&in->landing, in->metadata[0]);
    if (value == NULL) {
        PyErr_SetString(WireError, "a str that is not UTF-8");
    } else {
        note(port, &in->header, rank, value);
    }
    return value;
}

/* Go on with what was boarded until it has landed, or the endpoint has made an operation of it; the lock is held. */
static PyObject *fly_in(Port *port, Inbound *in, const Wanted *wanted)
{
    if (fly_on(port, NULL, &in->flight)) {
        return NULL;
    }
    PyObject *array = wanted->out != NULL ? wanted->out : in->metadata[0] == 'a' ? in->landing.object : NULL;
    return adopt_in(port, &in->flight, &in->header, in->metadata, array);
}

static PyObject *receive_large(Port *port, Lane *lane, Inbound *in, long long rank, const Wanted *wanted)
{
    PyObject *value = NULL;
    uint64_t before = lane->in.mine;
    if (is_ours(port) && make_room(port, in, wanted) == YES && is_same(port, lane, before) && take_lock(port)) {
        if (board(lane, &in->header, &in->flight) == YES) {
            value = fly_in(port, in, wanted);
        }
        leave_lock(port);
        if (in->flight.stage == LANDED) {
            value = disembark(port, in, rank, wanted);
        }
    }
    close_landing(&in->landing);
    return value;
}

static Lane *lane_of(const Hub *hub, int socket)
{
    for (Py_ssize_t i = 0; i < hub->count; i++) {
        if (hub->lanes[i]->socket && !hub->lanes[i]->closed && hub->lanes[i]->fd == socket) {
            return hub->lanes[i];
        }
    }
    return NULL;
}

/* Ask which sockets have something, in one system call for all of them. False: something has that is no lane's. */
static bool ask_epoll(const Hub *hub)
{
    struct epoll_event events[MOST_EVENTS];
    int count = epoll_wait(hub->epoll, events, MOST_EVENTS, 0);
    bool ours = true;
    for (int i = 0; i < count; i++) {
        Lane *lane = lane_of(hub, events[i].data.fd);
        if (lane != NULL) {
            lane->ready = 1;
        } else {
            ours = false;
        }
    }
    return ours;
}

/* Whether something comes on a lane; `asked`: of a socket the epoll has told it. */
static bool brings(Lane *lane, bool asked)
{
    if (lane == NULL || !lane->quick || !has_in(lane)) {
        return false;
    }
    if (!asked || !lane->socket || lane->ready) {
        lane->ready = 0;
        return lane_readable(lane, 1) > 0;
    }
    return ring_readable(&lane->in, 1) > 0;
}

/* Take credit that has come. Whether nothing else has but a message for another box: it can wait where it is, while
   there is nothing behind it. */
static bool can_wait(const Port *port, Lane *lane)
{
    Header header;
    while (is_open(lane) && lane_readable(lane, HEADER_SIZE) >= HEADER_SIZE) {
        ring_peek(&lane->in, 0, &header, HEADER_SIZE);
        if (!is_plausible(lane, &header)) {
            return false;
        }
        if (header.kind != CREDITED) {
            uint64_t size = HEADER_SIZE + header.metadata + header.length;
            return port->open && header.kind == EAGER && header.context != port->context &&
                   lane_readable(lane, size + 1) == size;
        }
        if (!take_credit(lane, &header)) {
            return false;
        }
    }
    return lane_readable(lane, 1) == 0;
}

/* One from which something comes; the first look goes to that after the last. NULL: there is none. */
static Lane *find_lane(Port *port, long long *rank)
{
    Wait wait = {0, 0};
    do {
        Py_ssize_t count = lane_count(port);
        bool asked = port->open && port->hub->sockets > FEW_SOCKETS;
        if (asked && !ask_epoll(port->hub)) {
            return NULL;
        }
        for (Py_ssize_t i = 0; i < count; i++) {
            Py_ssize_t at = port->turn + i < count ? port->turn + i : (port->turn + i) % count;
            Lane *lane = lane_at(port, at);
            if (brings(lane, asked) && !can_wait(port, lane)) {
                port->turn = at + 1;
                if (wait.until) {
                    learn(port, true);
                }
                *rank = port->open ? (long long)lane->peer : at;
                return lane;
            }
        }
    } while (go_on(port, NULL, &wait));
    return NULL;
}

bool expect(Port *port, Lane *lane, Inbound *in, const Wanted *wanted)
{
    memset(&in->flight, 0, sizeof in->flight);
    in->flight.lane = lane;
    in->flight.context = port->context;
    if (!next_header(port, lane, &in->header) || !is_wanted(port, lane, &in->header, wanted) ||
        !await(port, lane, HEADER_SIZE + in->header.metadata)) {
        return false;
    }
    ring_peek(&lane->in, HEADER_SIZE, in->metadata, in->header.metadata);
    return true;
}

PyObject *receive(Port *port, const Wanted *wanted)
{
    if (port->since >= LOOK_AROUND) {
        port->since = 0;
        return NULL;
    }
    long long rank = wanted->from.rank;
    Lane *lane = rank < 0 ? find_lane(port, &rank) : lane_to(port, rank);
    if (lane == NULL || !is_open(lane)) {
        return NULL;
    }
    Inbound in;
    PyObject *value = NULL;
    Py_INCREF((PyObject *)lane);
    if (expect(port, lane, &in, wanted)) {
        value = in.header.kind == OFFER ? receive_large(port, lane, &in, rank, wanted)
                                        : receive_small(port, lane, &in.header, in.metadata, rank, wanted);
    }
    Py_DECREF((PyObject *)lane);
    return value;
}
