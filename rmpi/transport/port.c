/* Ports: the short cut of small messages.

   A *port* is the short cut. A whole eager message that can be sent, or received, at this very moment needs nothing of
   what makes the endpoint large: no operation to wait for, no queue, no place in the matching order but the next. `send`
   and `recv` of a port do just that, in one call, and otherwise change nothing and say so; the caller then takes the
   long way, through the endpoint. So the endpoint's text stays the only truth about frames, matching and credit:

       send   False     it has no lane, no room, no credit, others wait before it, or the value is not plain
       recv   NOTHING   what comes next on the lane is not the message that was asked for, or nothing comes

   Why that is safe. A port never runs while the endpoint's state is being changed: it holds the GIL throughout and does
   nothing if somebody holds the endpoint's lock. Messages keep their order: a port sends only what goes straight into
   the ring, with nothing waiting before it, and receives only what lies next in the ring at the edge of a frame, if
   neither an earlier arrival nor an earlier receive fits. No Python code runs between looking at the endpoint's state
   and changing the ring; where a call runs some (pickling, making an array), it looks again.

   Nothing is lost. A signal handler may raise after `recv` has returned and before its caller has stored the value; the
   port remembers what it gave (`given`, `landed`) until the caller has it, and who catches the exception puts it back.

   Large messages take a flight (`flight.h`) from here: the port offers or grants, and the payload streams while both
   sides are in their calls. Where a flight stops on the way, the endpoint adopts it, the lock still held, and what is
   returned is its operation, for the caller to wait for. Adopting is Python, and a signal handler may raise in its
   first line: then it is called again, and the exception raised afterwards.

   Threads. Any may send by a port; only the one that made it receives by it, or has large messages fly. So what was
   received last is that thread's, and only it has to know.

   Waiting. `recv` spins for a bounded time, shorter when that did not pay lately, and gives the processor away
   when ranks outnumber cores. It holds the GIL meanwhile, so where there are other threads it hardly waits at all. */

#include "port.h"

/* Messages received by the short cut before the caller must look at everything else (sockets, failures). */
#define LOOK_AROUND 1024

#define SHORTEST_SPIN 20000LL /* nanoseconds; what a wait costs at least before it is worth going to sleep */

/* The same where threads or ranks share this processor with others. */
#define FEW_YIELDS 20

/* Times that a signal handler may raise out of an adoption before something else must be the matter. */
#define MOST_ATTEMPTS 100

PyObject *PortType;

/* ------------------------------------------------------------------------------------------ what speaks against it */

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

static bool take_lock(const Port *port)
{
    if (PyDict_Size(port->broken) != 0) {
        return false;
    }
    PyObject *taken = PyObject_CallFunctionObjArgs(port->acquire, Py_False, NULL);
    Py_XDECREF(taken);
    return taken == Py_True || (PyErr_Clear(), false);
}

static void leave_lock(const Port *port)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    Py_XDECREF(PyObject_CallNoArgs(port->release));
    PyErr_Restore(type, value, trace);
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

static bool plain_fingerprint(PyObject *const *args, Py_ssize_t count, Py_ssize_t at, uint64_t *fingerprint)
{
    *fingerprint = 0;
    if (count <= at) {
        return true;
    }
    *fingerprint = PyLong_AsUnsignedLongLong(args[at]);
    return !PyErr_Occurred() || (PyErr_Clear(), false);
}

static Lane *lane_to(const Port *port, long long rank)
{
    return rank >= 0 && rank < port->size ? port->lanes[rank] : NULL;
}

static bool is_ours(const Port *port) { return PyThread_get_thread_ident() == port->thread; }

/* ---------------------------------------------------------------------------------------------------- waiting */

/* Whether a lane brings what only the long way answers, or has little room left. Whole messages may wait in it: they are
   not what is waited for here, and whoever sent them does not wait. */
static bool calls(Lane *lane)
{
    if (!lane_stirs(lane)) {
        return false;
    }
    uint64_t ready = ring_readable(&lane->in, 1);
    if (lane->wants_room || !lane->edge || lane->in.corrupt || lane->out.corrupt || ready > lane->in.capacity / 2) {
        return true;
    }
    unsigned char start[4]; /* the fourth byte of a header is its kind */
    if (ready < sizeof start) {
        return false;
    }
    ring_peek(&lane->in, 0, start, sizeof start);
    return start[3] != EAGER && start[3] != CREDITED;
}

/* To look at a socket costs a system call: one of them in turn. */
static bool next_socket_calls(Port *port, const Lane *awaited)
{
    for (Py_ssize_t i = 0; i < port->size; i++) {
        port->glance = (port->glance + 1) % port->size;
        Lane *lane = port->lanes[port->glance];
        if (lane != NULL && lane != awaited && lane->socket && has_in(lane)) {
            return lane_readable(lane, 1) > 0 && calls(lane);
        }
    }
    return false;
}

/* Whether any other lane has something to do, which only the long way does. */
static bool others_call(Port *port, const Lane *awaited)
{
    for (Py_ssize_t rank = 0; rank < port->size; rank++) {
        Lane *lane = port->lanes[rank];
        if (lane != NULL && lane != awaited && (calls(lane) || (lane->socket && has_unsent(lane)))) {
            return true;
        }
    }
    return awaited != NULL && (has_unsent(awaited) || next_socket_calls(port, awaited));
}

/* Nanoseconds that a wait may last. Other threads cannot run meanwhile. */
static long long patience(const Port *port)
{
    PyObject *answer = PyObject_CallNoArgs(port->threads);
    long long threads = answer == NULL ? 1 : PyLong_AsLongLong(answer);
    Py_XDECREF(answer);
    PyErr_Clear();
    return threads == 0 || port->spin < SHORTEST_SPIN ? port->spin : SHORTEST_SPIN;
}

static void learn(Port *port, bool paid)
{
    if (paid) {
        port->spin = port->most_spin;
    } else if (port->spin > SHORTEST_SPIN) {
        port->spin = port->spin / 2 > SHORTEST_SPIN ? port->spin / 2 : SHORTEST_SPIN;
    }
}

typedef struct {
    unsigned long looks;
    long long until;
} Wait;

/* One more look was in vain, and somebody else needs this processor. False: enough. */
static bool give_way(Port *port, const Lane *awaited, Wait *wait)
{
    sched_yield();
    wait->looks++;
    if (wait->looks % GLANCE == 0 && others_call(port, awaited)) {
        return false;
    }
    return wait->looks < MOST_YIELDS && (wait->looks != FEW_YIELDS || patience(port) > SHORTEST_SPIN);
}

/* One more look was in vain. False: enough. */
static bool go_on(Port *port, const Lane *awaited, Wait *wait)
{
    if (port->most_spin == 0) {
        return false;
    }
    if (port->yields) {
        return give_way(port, awaited, wait);
    }
    relax();
    wait->looks += awaited != NULL && awaited->socket ? SOCKET_LOOK : 1;
    if (wait->looks % GLANCE == 0 && others_call(port, awaited)) {
        return false;
    }
    if (wait->looks % TICK != 0) {
        return true;
    }
    long long now = nanoseconds();
    wait->until = wait->until ? wait->until : now + patience(port);
    if (now >= wait->until) {
        learn(port, false);
    }
    return now < wait->until;
}

static bool await(Port *port, Lane *lane, uint64_t count)
{
    Wait wait = {0, 0};
    while (lane_readable(lane, count) < count) {
        if (is_over(lane) || !go_on(port, lane, &wait)) {
            return false;
        }
    }
    if (wait.until) {
        learn(port, true);
    }
    return true;
}

static bool fly_on(Port *port, struct flight *out, struct flight *in)
{
    bool landed = fly_both(out, in, patience(port), port->yields);
    learn(port, landed);
    return landed;
}

/* --------------------------------------------------------------------------------------------------- adopting */

/* Call until it succeeds: only a signal handler can make it fail, and what flies must not be forgotten. If one did, the
   operation is in `given` and its exception is set. */
static PyObject *adopt(Port *port, Lane *lane, PyObject *callable, PyObject *args)
{
    PyObject *operation = NULL, *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace); /* there may be an exception already */
    for (int attempt = 0; args != NULL && operation == NULL && attempt < MOST_ATTEMPTS; attempt++) {
        operation = PyObject_Call(callable, args, NULL);
        if (operation == NULL && type == NULL) {
            PyErr_Fetch(&type, &value, &trace);
        }
        PyErr_Clear();
    }
    Py_XDECREF(args);
    if (operation == NULL) {
        lane->closed = 1; /* the stream is torn: nothing may follow */
        lane->quick = 0;
    }
    Py_XINCREF(operation);
    replace(&port->given, operation);
    if (type != NULL) {
        Py_XDECREF(operation);
        operation = NULL;
        PyErr_Restore(type, value, trace);
    }
    return operation;
}

static PyObject *adopt_out(Port *port, const struct flight *out, int64_t tag, uint64_t fingerprint, PyObject *value)
{
    return adopt(port, out->lane, port->adopt_send,
                 Py_BuildValue("OKLKOKiKK", out->lane, out->context, (long long)tag, fingerprint, value, out->message,
                               (int)out->stage, out->offset, out->left));
}

/* What has come so far, joined. */
static PyObject *so_far(const struct flight *in)
{
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)in->offset);
    unsigned char *into = bytes == NULL ? NULL : (unsigned char *)PyBytes_AsString(bytes);
    uint64_t left = in->offset;
    for (Py_ssize_t i = 0; into != NULL && left; i++) {
        uint64_t size = in->pieces[i].size < left ? in->pieces[i].size : left;
        memcpy(into, in->pieces[i].at, size);
        into += size;
        left -= size;
    }
    return bytes;
}

static PyObject *adopt_in(Port *port, const struct flight *in, const Header *header, const unsigned char *metadata,
                          PyObject *array)
{
    PyObject *begun = array == NULL ? so_far(in) : Py_NewRef(Py_None);
    PyObject *args = begun == NULL ? NULL
                                   : Py_BuildValue("Oy#y#OOKKK", in->lane, (const char *)header, (Py_ssize_t)HEADER_SIZE,
                                                   (const char *)metadata, (Py_ssize_t)header->metadata,
                                                   array == NULL ? Py_None : array, begun, in->offset, in->frame,
                                                   in->left);
    Py_XDECREF(begun);
    return adopt(port, in->lane, port->adopt_receive, args);
}

/* --------------------------------------------------------------------------------------------------------- out */

static void message_header(Header *header, const Port *port, const Lane *lane, enum kind kind, int64_t tag,
                           uint64_t fingerprint, const Encoded *value)
{
    fill_header(header, lane, kind);
    header->metadata = (uint32_t)value->metadata_size;
    header->context = port->context;
    header->tag = tag;
    header->fingerprint = fingerprint;
    header->length = value->length;
}

/* Header, metadata and `count` pieces: there is room. */
static void write_frame(Lane *lane, const Header *header, const Encoded *value, int count)
{
    struct iovec pieces[2 + MOST_SEGMENTS] = {{(void *)header, HEADER_SIZE},
                                              {(void *)value->metadata, header->metadata}};
    for (int i = 0; i < count; i++) {
        pieces[2 + i].iov_base = value->pieces[i].at;
        pieces[2 + i].iov_len = value->pieces[i].size;
    }
    lane_write(lane, pieces, 2 + count);
}

static enum verdict send_small(Port *port, Lane *lane, int64_t tag, uint64_t fingerprint, const Encoded *value)
{
    uint64_t size = HEADER_SIZE + (uint64_t)value->metadata_size + value->length;
    long long cost = (long long)value->length + FRAME_COST;
    if (value->length > EAGER_LIMIT || !undisturbed(port) || !is_clear(lane) || lane->credit < cost ||
        lane_room(lane, size) < size) {
        return NO;
    }
    Header header;
    message_header(&header, port, lane, EAGER, tag, fingerprint, value);
    write_frame(lane, &header, value, value->count);
    lane->credit -= cost;
    return YES;
}

/* Offer a large message; the lock is held. */
static enum verdict depart(Port *port, Lane *lane, int64_t tag, uint64_t fingerprint, Encoded *value, struct flight *out)
{
    uint64_t size = HEADER_SIZE + (uint64_t)value->metadata_size;
    if (!is_clear(lane) || lane_room(lane, size) < size) {
        return NO;
    }
    memset(out, 0, sizeof *out);
    out->lane = lane;
    out->message = 1ull << 62 | ++lane->flights; /* the endpoint counts its own from 1 */
    out->context = port->context;
    out->stage = OFFERED;
    out->length = value->length;
    out->pieces = value->pieces;
    out->count = value->count;
    Header header;
    message_header(&header, port, lane, OFFER, tag, fingerprint, value);
    header.message = out->message;
    write_frame(lane, &header, value, 0);
    return YES;
}

/* What the endpoint makes the message of, if it must. */
static PyObject *origin(PyObject *object, const Encoded *value)
{
    return value->kept != NULL && PyList_Check(value->kept) ? value->kept : object;
}

static PyObject *send_large(Port *port, Lane *lane, int64_t tag, uint64_t fingerprint, PyObject *object, Encoded *value)
{
    struct flight out;
    if (!is_ours(port) || port->most_spin == 0 || !take_lock(port)) {
        Py_RETURN_FALSE;
    }
    PyObject *result = Py_False;
    if (depart(port, lane, tag, fingerprint, value, &out) == YES) {
        result = fly_on(port, &out, NULL) ? Py_True : adopt_out(port, &out, tag, fingerprint, origin(object, value));
    }
    leave_lock(port);
    return result == Py_True || result == Py_False ? Py_NewRef(result) : result;
}

typedef struct {
    long long rank, tag;
    uint64_t fingerprint;
} Address;

static PyObject *send_or_post(Port *port, PyObject *const *args, Py_ssize_t count, bool may_fly)
{
    Address to;
    if (count < 3) {
        return PyErr_Format(PyExc_TypeError, "(value, rank, tag, fingerprint=0)");
    }
    if (!plain_number(args[1], &to.rank) || !plain_number(args[2], &to.tag) || to.tag < 0 ||
        !plain_fingerprint(args, count, 3, &to.fingerprint)) {
        Py_RETURN_FALSE;
    }
    Lane *lane = lane_to(port, to.rank);
    if (lane == NULL || !lane->quick) {
        Py_RETURN_FALSE;
    }
    Encoded value;
    PyObject *result = NULL;
    Py_INCREF((PyObject *)lane); /* what pickles may do anything */
    enum verdict verdict = encode(port, args[0], &value);
    if (verdict == YES && value.length > EAGER_LIMIT && may_fly) {
        result = send_large(port, lane, to.tag, to.fingerprint, args[0], &value);
    } else if (verdict != FAILED) {
        result = PyBool_FromLong(verdict == YES && send_small(port, lane, to.tag, to.fingerprint, &value) == YES);
    }
    release(&value);
    Py_DECREF((PyObject *)lane);
    return result;
}

static PyObject *Port_send(Port *port, PyObject *const *args, Py_ssize_t count)
{
    return send_or_post(port, args, count, true);
}

static PyObject *Port_post(Port *port, PyObject *const *args, Py_ssize_t count)
{
    return send_or_post(port, args, count, false);
}

/* ---------------------------------------------------------------------------------------------------------- in */

/* What was asked for, and where it shall go. */
typedef struct {
    Address from; /* -1: any */
    PyObject *out; /* NULL: a new value */
    Py_buffer view;
    PyObject *metadata; /* that fits `out` */
} Wanted;

static enum verdict prepare_out(Port *port, PyObject *out, Wanted *wanted)
{
    wanted->out = NULL;
    wanted->metadata = NULL;
    if (out == Py_None) {
        return YES;
    }
    if ((PyObject *)Py_TYPE(out) != port->array_type) {
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

static void release_out(Wanted *wanted)
{
    if (wanted->out != NULL) {
        PyBuffer_Release(&wanted->view);
        Py_DECREF(wanted->metadata);
    }
}

/* Whether no earlier arrival, and no earlier receive, has to do with this one. */
static bool is_next(const Port *port, const Address *from)
{
    if (PyDict_Size(port->receives) != 0) {
        return false;
    }
    if (PyDict_Size(port->arrivals) == 0) {
        return true;
    }
    if (from->rank < 0 || from->rank >= port->size || from->tag < 0) {
        return false;
    }
    PyObject *number = PyLong_FromLongLong(from->tag), *member = PyTuple_GetItem(port->member_objects, from->rank);
    PyObject *key = number == NULL || member == NULL ? NULL : PyTuple_Pack(2, member, number);
    int found = key == NULL ? -1 : PyDict_Contains(port->arrivals, key);
    Py_XDECREF(number);
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
    return lane->owed + (long long)header->length + FRAME_COST < CREDIT_STEP || (is_clear(lane) && lane_room(lane, HEADER_SIZE) >= HEADER_SIZE);
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
    if (open_landing(port, metadata, header->metadata, header->length, &landing) == YES && is_same(port, lane, before) &&
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

/* Take an offer and grant it; the lock is held. */
static enum verdict board(Lane *lane, const Header *header, struct flight *in)
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

/* A large message on its way in. */
typedef struct {
    struct flight flight;
    Header header;
    unsigned char metadata[MOST_METADATA];
    Landing landing; /* if there is no `out` */
    Piece piece;     /* if there is */
} Inbound;

/* Have memory for what is offered. Runs Python code. */
static enum verdict make_room(Port *port, Inbound *in, const Wanted *wanted)
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

/* The value that has landed, and is given. Of a pickle its parts are, because they can be put back. */
static PyObject *disembark(Port *port, const Inbound *in, long long rank, const Wanted *wanted)
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

/* From whichever rank has something; the first look goes to whoever comes after the last. */
static long long find_source(Port *port)
{
    Wait wait = {0, 0};
    do {
        for (Py_ssize_t i = 0; i < port->size; i++) {
            Py_ssize_t rank = (port->turn + i) % port->size;
            Lane *lane = port->lanes[rank];
            if (lane != NULL && lane->quick && has_in(lane) && lane_readable(lane, 1) > 0) {
                port->turn = rank + 1;
                return rank;
            }
        }
    } while (go_on(port, NULL, &wait));
    return -1;
}

/* Look at what comes next. Whether it is what was asked for. */
static bool expect(Port *port, Lane *lane, Inbound *in, const Wanted *wanted)
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

static PyObject *receive(Port *port, const Wanted *wanted)
{
    if (port->since >= LOOK_AROUND) {
        port->since = 0;
        return NULL;
    }
    long long rank = wanted->from.rank < 0 ? find_source(port) : wanted->from.rank;
    Lane *lane = lane_to(port, rank);
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

static void forget(Port *port)
{
    port->landed = 0;
    Py_CLEAR(port->given);
}

static PyObject *Port_recv(Port *port, PyObject *const *args, Py_ssize_t count)
{
    Wanted wanted;
    if (count < 3) {
        return PyErr_Format(PyExc_TypeError, "recv(rank, tag, out, fingerprint=0)");
    }
    if (!is_ours(port)) {
        return Py_NewRef(port->nothing);
    }
    forget(port);
    if (!plain_number(args[0], &wanted.from.rank) || !plain_number(args[1], &wanted.from.tag) || wanted.from.rank < -1 ||
        wanted.from.tag < -1 || !plain_fingerprint(args, count, 3, &wanted.from.fingerprint)) {
        return Py_NewRef(port->nothing);
    }
    enum verdict fits = prepare_out(port, args[2], &wanted);
    if (fits != YES) {
        return fits == FAILED ? NULL : Py_NewRef(port->nothing);
    }
    PyObject *value = undisturbed(port) && is_next(port, &wanted.from) ? receive(port, &wanted) : NULL;
    release_out(&wanted);
    return value != NULL || PyErr_Occurred() ? value : Py_NewRef(port->nothing);
}

/* ------------------------------------------------------------------------------------------------ both at once */

/* Board what is offered on a lane, if it is what was asked for; the lock is held. */
static bool board_next(Port *port, Lane *lane, Inbound *in, const struct flight *out, const Wanted *wanted)
{
    bool busy = out->lane == lane && out->left; /* the grant cannot go into the middle of a frame */
    if (busy || !is_open(lane) || lane_readable(lane, HEADER_SIZE) < HEADER_SIZE) {
        return false;
    }
    if (!expect(port, lane, in, wanted) || in->header.kind != OFFER) {
        return false;
    }
    uint64_t before = lane->in.mine;
    return make_room(port, in, wanted) == YES && lane->in.mine == before && board(lane, &in->header, &in->flight) == YES;
}

/* Offer what goes out, and move both ways as far as it goes. Whether the offer was made. */
static bool fly_both_ways(Port *port, Lane *from, struct flight *out, Inbound *in, const Wanted *wanted)
{
    memset(in, 0, sizeof *in);
    in->flight.lane = from;
    while (!fly_on(port, out, &in->flight)) {
        if (in->flight.stage != AWAITED || !board_next(port, from, in, out, wanted)) {
            return false;
        }
    }
    return true;
}

/* Send and receive where what goes out is large. `got` is NULL if the receive has not begun. */
static enum verdict exchange_large(Port *port, Lane *to, Lane *from, PyObject *object, Encoded *value,
                                   const Wanted *wanted, PyObject **sent, PyObject **got)
{
    struct flight out;
    Inbound in;
    *sent = *got = NULL;
    if (!take_lock(port)) {
        return NO;
    }
    if (depart(port, to, wanted->from.tag, wanted->from.fingerprint, value, &out) != YES) {
        leave_lock(port);
        return NO;
    }
    fly_both_ways(port, from, &out, &in, wanted);
    if (in.flight.stage == FLIES) {
        PyObject *array = wanted->out != NULL ? wanted->out : in.metadata[0] == 'a' ? in.landing.object : NULL;
        *got = adopt_in(port, &in.flight, &in.header, in.metadata, array);
    }
    *sent = out.stage == LANDED
                ? Py_NewRef(Py_True)
                : adopt_out(port, &out, wanted->from.tag, wanted->from.fingerprint, origin(object, value));
    leave_lock(port);
    if (in.flight.stage == LANDED && !PyErr_Occurred()) {
        *got = disembark(port, &in, wanted->from.rank, wanted);
    }
    close_landing(&in.landing);
    return PyErr_Occurred() ? FAILED : YES;
}

static PyObject *pair_of(const Port *port, PyObject *sent, PyObject *got)
{
    if (got == NULL && !PyErr_Occurred()) {
        got = Py_NewRef(port->nothing);
    }
    if (sent == NULL || got == NULL) {
        Py_XDECREF(sent);
        Py_XDECREF(got);
        return NULL;
    }
    return Py_BuildValue("(NN)", sent, got);
}

static PyObject *exchange(Port *port, Lane *to, PyObject *object, Encoded *value, Wanted *wanted)
{
    PyObject *sent = NULL, *got = NULL;
    Lane *from = lane_to(port, wanted->from.rank);
    bool next = undisturbed(port) && is_next(port, &wanted->from);
    if (value->length > EAGER_LIMIT && next && from != NULL && is_open(from) && port->most_spin) {
        enum verdict verdict = exchange_large(port, to, from, object, value, wanted, &sent, &got);
        if (verdict != YES || got != NULL) {
            return verdict == NO ? pair_of(port, Py_NewRef(Py_False), NULL) : pair_of(port, sent, got);
        }
    } else {
        sent = PyBool_FromLong(send_small(port, to, wanted->from.tag, wanted->from.fingerprint, value) == YES);
    }
    if (sent != Py_False && next) { /* nobody waits for us, so we may wait */
        got = receive(port, wanted);
    }
    return pair_of(port, sent, got);
}

static PyObject *Port_exchange(Port *port, PyObject *const *args, Py_ssize_t count)
{
    long long rank;
    Wanted wanted;
    if (count != 6 || !plain_number(args[1], &rank) || !plain_number(args[2], &wanted.from.rank) ||
        !plain_number(args[3], &wanted.from.tag) || wanted.from.rank < 0 || wanted.from.tag < 0 ||
        !plain_fingerprint(args, count, 5, &wanted.from.fingerprint)) {
        return PyErr_Format(PyExc_TypeError, "exchange(value, to, source, tag, out, fingerprint)");
    }
    Lane *lane = lane_to(port, rank);
    if (!is_ours(port) || lane == NULL || !lane->quick) {
        return pair_of(port, Py_NewRef(Py_False), NULL);
    }
    forget(port);
    Encoded value;
    PyObject *pair = NULL;
    Py_INCREF((PyObject *)lane);
    enum verdict verdict = encode(port, args[0], &value);
    if (verdict == YES) {
        verdict = prepare_out(port, args[4], &wanted);
        if (verdict == YES) {
            pair = exchange(port, lane, args[0], &value, &wanted);
            release_out(&wanted);
        }
    }
    if (verdict == NO) {
        pair = pair_of(port, Py_NewRef(Py_False), NULL);
    }
    release(&value);
    Py_DECREF((PyObject *)lane);
    return pair;
}

/* ------------------------------------------------------------------------------------------------------ object */

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

/* A value that was received, a list of a pickle's parts, or an operation; to a caller who may not have got it. */
static PyObject *Port_get_given(Port *port, void *Py_UNUSED(closure))
{
    return Py_NewRef(port->given != NULL ? port->given : port->nothing);
}

/* Whatever is assigned, the caller has what it was given. An assignment, because no handler can run after it and
   before the next call, as one can after a call. */
static int Port_set_given(Port *port, PyObject *Py_UNUSED(value), void *Py_UNUSED(closure))
{
    forget(port);
    return 0;
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
    Py_XDECREF(port->given);
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
    free_object(port);
    Py_DECREF(type);
}

static int Port_traverse(Port *port, visitproc visit, void *arg)
{
    Py_VISIT(port->keep);
    Py_VISIT(port->given);
    Py_VISIT((PyObject *)Py_TYPE((PyObject *)port));
    return 0;
}

static int Port_clear(Port *port)
{
    Py_CLEAR(port->given); /* `keep` is a tuple, of which others break the cycle */
    return 0;
}

static int set_members(Port *port, PyObject *members)
{
    port->size = PyTuple_Size(members);
    port->lanes = PyMem_Calloc((size_t)port->size + 1, sizeof(Lane *));
    port->members = PyMem_Calloc((size_t)port->size + 1, sizeof(uint64_t));
    if (port->lanes == NULL || port->members == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t rank = 0; rank < port->size; rank++) {
        port->members[rank] = PyLong_AsUnsignedLongLong(PyTuple_GetItem(members, rank));
    }
    return PyErr_Occurred() ? -1 : 0;
}

#define REFERENCES 16

static PyObject *Port_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"ident",     "context", "members", "arrivals", "receives",   "broken",
                            "locked",    "acquire", "release", "threads",  "array_type", "describe",
                            "new_array", "dumps",   "loads",   "adopt_send", "adopt_receive", "nothing", "spin", "yields", NULL};
    unsigned long long ident, context;
    double seconds;
    int yields;
    PyObject *o[REFERENCES];
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "KKO!O!O!O!OOOOOOOOOOOOdp", names, &ident, &context, &PyTuple_Type,
                                     &o[0], &PyDict_Type, &o[1], &PyDict_Type, &o[2], &PyDict_Type, &o[3], &o[4], &o[5],
                                     &o[6], &o[7], &o[8], &o[9], &o[10], &o[11], &o[12], &o[13], &o[14], &o[15], &seconds,
                                     &yields)) {
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Port *port = (Port *)allocate(type, 0);
    if (port == NULL) {
        return NULL;
    }
    PyObject **fields[REFERENCES] = {&port->member_objects, &port->arrivals,  &port->receives,   &port->broken,
                                     &port->locked,         &port->acquire,   &port->release,    &port->threads,
                                     &port->array_type,     &port->describe,  &port->new_array,  &port->dumps,
                                     &port->loads,          &port->adopt_send, &port->adopt_receive, &port->nothing};
    port->keep = PyTuple_New(REFERENCES);
    for (int i = 0; port->keep != NULL && i < REFERENCES; i++) {
        PyTuple_SetItem(port->keep, i, Py_NewRef(o[i]));
        *fields[i] = o[i];
    }
    port->ident = ident;
    port->context = context;
    port->thread = PyThread_get_thread_ident();
    port->most_spin = port->spin = (long long)(seconds * 1e9);
    port->yields = (char)yields;
    if (port->keep == NULL || set_members(port, o[0])) {
        Py_DECREF((PyObject *)port);
        return NULL;
    }
    return (PyObject *)port;
}

static PyMethodDef port_methods[] = {
    {"send", (PyCFunction)(void (*)(void))Port_send, METH_FASTCALL, NULL},
    {"post", (PyCFunction)(void (*)(void))Port_post, METH_FASTCALL, NULL},
    {"recv", (PyCFunction)(void (*)(void))Port_recv, METH_FASTCALL, NULL},
    {"exchange", (PyCFunction)(void (*)(void))Port_exchange, METH_FASTCALL, NULL},
    {"attach", (PyCFunction)Port_attach, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef port_members[] = {
    {"source", T_LONGLONG, offsetof(Port, source), READONLY, NULL},
    {"tag", T_LONGLONG, offsetof(Port, tag), READONLY, NULL},
    {"length", T_LONGLONG, offsetof(Port, length), READONLY, NULL},
    {"landed", T_BOOL, offsetof(Port, landed), READONLY, NULL},
    {"thread", T_ULONG, offsetof(Port, thread), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef port_getset[] = {
    {"given", (getter)Port_get_given, (setter)Port_set_given, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot port_slots[] = {
    {Py_tp_new, Port_new},         {Py_tp_dealloc, Port_dealloc}, {Py_tp_traverse, Port_traverse},
    {Py_tp_clear, Port_clear},     {Py_tp_methods, port_methods}, {Py_tp_members, port_members},
    {Py_tp_getset, port_getset},   {0, NULL},
};

static PyType_Spec port_spec = {"rmpi.transport._ring.Port", sizeof(Port), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                                port_slots};

int port_ready(void)
{
    PortType = PyType_FromSpec(&port_spec);
    return PortType == NULL ? -1 : 0;
}
